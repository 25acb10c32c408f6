// Reads a mailbox and changes another one; prints what the server said, less what differs every time.
//
//     node client.js PORT SECURITY CA-FILE USER PASSWORD
"use strict";

const fs = require("fs");
const { ImapFlow } = require("imapflow");

const [port, security, ca, user, pass] = process.argv.slice(2);

const client = new ImapFlow({
  host: "localhost",
  port: Number(port),
  secure: security === "tls",
  doSTARTTLS: security !== "tls",
  tls: { ca: fs.readFileSync(ca) },
  auth: { user, pass },
  clientInfo: { name: "tests" },
  logger: false,
});

const seen = [];

function told(what, value) {
  const plain = (key, each) => {
    if (typeof each === "bigint") return each.toString();
    if (each instanceof Map) return [...each];
    if (each instanceof Set) return [...each].sort();
    if (each && each.type === "Buffer") return Buffer.from(each.data).toString("latin1");
    return ["uidValidity", "destination", "id", "modseq", "highestModseq"].includes(key) ? undefined : each;
  };
  seen.push(`${what} ${JSON.stringify(value, plain)}`);
}

async function main() {
  await client.connect();
  told("capabilities", [...client.capabilities.keys()].sort());
  told("folders", (await client.list()).map((each) => [each.path, each.flags, each.specialUse]));
  told("status", await client.status("INBOX", { messages: true, uidNext: true, unseen: true }));

  let lock = await client.getMailboxLock("INBOX");
  try {
    told("mailbox", client.mailbox);
    const wanted = { envelope: true, bodyStructure: true, flags: true, internalDate: true, size: true, source: true };
    for await (const message of client.fetch("1:*", wanted)) told("message", message);
    told("found", await client.search({ subject: "2" }));
    const { meta, content } = await client.download("1");
    let size = 0;
    for await (const chunk of content) size += chunk.length;
    told("downloaded", [meta.contentType, size]);
  } finally {
    lock.release();
  }

  told("created", (await client.mailboxCreate("Wörk")).path);
  const letter = "Subject: from Node\r\n\r\nHello.\r\n";
  await client.append("Wörk", letter, ["\\Flagged"]);
  await client.append("Wörk", letter, []);
  lock = await client.getMailboxLock("Wörk");
  try {
    told("flagged", await client.messageFlagsAdd("2", ["\\Answered"]));
    told("deleted", await client.messageDelete("1"));
    for await (const message of client.fetch("1:*", { flags: true, source: true })) told("left", message);
  } finally {
    lock.release();
  }
  told("removed", (await client.mailboxDelete("Wörk")).path);
  await client.logout();
}

main().then(
  () => console.log(seen.join("\n")),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
