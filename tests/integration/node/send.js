// Sends a message with nodemailer; prints the server's last words.
//
//     node send.js PORT SECURITY CA-FILE USER PASSWORD MECHANISM RECIPIENT
"use strict";

const fs = require("fs");
const nodemailer = require("nodemailer");

const [port, security, ca, user, pass, method, to] = process.argv.slice(2);

const transport = nodemailer.createTransport({
  host: "localhost",
  port: Number(port),
  secure: security === "tls",
  requireTLS: security !== "tls",
  tls: { ca: fs.readFileSync(ca) },
  authMethod: method,
  auth: { user, pass },
});

transport.sendMail({ from: user, to, subject: "from Node", text: "Hello.\n.\n..dots\n" }).then(
  (info) => {
    console.log(info.response);
    transport.close();
  },
  (error) => {
    console.error(error.responseCode, error.response || error);
    process.exitCode = 1;
  },
);
