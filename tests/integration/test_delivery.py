"""Mail delivered through mailroute to real Dovecots, by Python's clients and by a real Postfix."""

from __future__ import annotations

import email
import hashlib
import re
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from servers.accounts import Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.postfix import Postfix
from servers.processes import free_port, wait_until
from servers.proxy import Mailroute

pytestmark = pytest.mark.integration

EAST = [Account(f"user{n}@east.example.org", "a secret", "east") for n in range(16)]
WEST = [Account(f"user{n}@west.example.org", "a secret", "west") for n in range(16)]
SENDER = "author@example.net"


@pytest.fixture(scope="module")
def servers(certificate: Certificate) -> Iterator[dict[str, Dovecot]]:
    terms = Terms(certificate=certificate, lmtp=True)
    with Dovecot(terms, *EAST) as east, Dovecot(terms, *WEST) as west:
        yield {"east": east, "west": west}


def configuration(
    servers: dict[str, Dovecot], authority: Authority, certificate: Certificate, **keys: object
) -> dict[str, object]:
    tls = {"verify": "localhost", "ca": str(authority.file)}
    return {
        "certificate": [{"chain": str(certificate.chain), "key": str(certificate.key)}],
        "backend": {
            name: {"lmtp": f"tcp:127.0.0.1:{server.lmtp}", "security": "starttls", **tls, **keys}
            for name, server in servers.items()
        },
        "route": [
            {"source": "pattern", "match": rf".+@{name}\.example\.org", "backend": name} for name in servers
        ],
    }


@pytest.fixture(scope="module")
def proxy(servers: dict[str, Dovecot], authority: Authority, certificate: Certificate) -> Iterator[Mailroute]:
    listen = {"lmtp": {"protocol": "lmtp", "security": "starttls"}}
    with Mailroute(listen, configuration(servers, authority, certificate)) as mailroute:
        yield mailroute


def send(
    client: smtplib.LMTP, recipients: list[Account | str], text: bytes, options: tuple[str, ...] = ()
) -> list[int]:
    """Deliver a message, and return each recipient's last code; smtplib reads only one at the end."""
    client.ehlo_or_helo_if_needed()
    assert client.mail(SENDER, options)[0] == 250
    codes = [client.rcpt(getattr(recipient, "user", recipient))[0] for recipient in recipients]
    assert client.docmd("DATA")[0] == 354
    client.send(re.sub(rb"(?m)^\.", b"..", text) + b".\r\n")
    return [client.getreply()[0] if code == 250 else code for code in codes]


def body(delivered: bytes) -> bytes:
    """Return what stands behind the head."""
    return delivered.replace(b"\r\n", b"\n").partition(b"\n\n")[2]


def test_one_message_reaches_users_on_both_backends(servers: dict[str, Dovecot], proxy: Mailroute) -> None:
    """A message for users on two Dovecots is in both mailboxes, and Dovecot knows the client."""
    text = message("split", "Hello.\n.\n..\n.dots\n", number=1)
    with smtplib.LMTP("127.0.0.1", proxy.ports["lmtp"], source_address=("127.0.0.2", 0)) as client:
        codes = send(client, [EAST[0], "nobody@east.example.org", "nobody@example.com", WEST[0]], text)
    assert codes == [250, 550, 550, 250]
    for server, account in ((servers["east"], EAST[0]), (servers["west"], WEST[0])):
        [delivered] = server.delivered(account)
        assert body(delivered) == body(text)
        # What Dovecot writes of whom it has the message from.
        assert b"127.0.0.2" in delivered.partition(b"\n\n")[0]
    proxy.log.wait_for(
        r"message 1 delivered in part: from=<author@example.net> recipients=4 delivered=2 "
        r"bytes=\d+ backends=east,west to=.*user0@east"
    )


def test_starttls_from_the_client(
    servers: dict[str, Dovecot], proxy: Mailroute, authority: Authority
) -> None:
    """A client that wants TLS has it, and several messages over one connection arrive."""
    with smtplib.LMTP("localhost", proxy.ports["lmtp"]) as client:
        client.starttls(context=authority.context())
        for number in range(3):
            assert send(client, [WEST[1], EAST[1]], message(f"tls {number}", number=number)) == [250, 250]
    for server, account in ((servers["east"], EAST[1]), (servers["west"], WEST[1])):
        subjects = {email.message_from_bytes(text)["Subject"] for text in server.delivered(account)}
        assert subjects == {"tls 0", "tls 1", "tls 2"}


def large_message() -> bytes:
    """Return 50 MB of lines of all lengths, with bytes of 8 bits and dots at their beginnings."""
    line = bytes(b".abcdefgh \xe9\xff"[number * number % 12] for number in range(996)) + b"\r\n"
    lines = [line[n % 900 :] for n in range(95000)]
    text = message("large", number=3).replace(b"Content-Type", b"X-Was") + b"".join(lines)
    assert len(text) > 50_000_000
    return text


def test_a_large_message_arrives_whole(servers: dict[str, Dovecot], proxy: Mailroute) -> None:
    """50 MB arrive byte for byte in two mailboxes, and mailroute grows by a few megabytes at most."""
    text = large_message()
    before = proxy.memory()
    with smtplib.LMTP("127.0.0.1", proxy.ports["lmtp"]) as client:
        assert send(client, [EAST[2], WEST[2]], text, ("BODY=8BITMIME",)) == [250, 250]
    assert proxy.memory() - before < 10_000_000
    wanted = hashlib.sha256(body(text)).hexdigest()
    for server, account in ((servers["east"], EAST[2]), (servers["west"], WEST[2])):
        [delivered] = server.delivered(account)
        assert hashlib.sha256(body(delivered)).hexdigest() == wanted


@pytest.mark.parametrize("chunks", [1, 7])
def test_chunks_arrive_whole(servers: dict[str, Dovecot], proxy: Mailroute, chunks: int) -> None:
    """A message that comes by BDAT goes on as it is."""
    account = EAST[2 + chunks]
    text = message("chunks", "Hello.\n.\n..\nend", number=4)
    size = len(text) // chunks + 1
    with smtplib.LMTP("127.0.0.1", proxy.ports["lmtp"]) as client:
        client.ehlo()
        client.mail(SENDER)
        assert client.rcpt(account.user)[0] == 250
        for at in range(0, len(text), size):
            piece = text[at : at + size]
            last = b" LAST" if at + size >= len(text) else b""
            client.send(b"BDAT %d%s\r\n" % (len(piece), last) + piece)
            assert client.getreply()[0] == 250
    [delivered] = servers["east"].delivered(account)
    assert body(delivered) == body(text)


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2", "none"])
def test_other_ways_to_tell_who_the_client_is(
    servers: dict[str, Dovecot], authority: Authority, certificate: Certificate, identity: str
) -> None:
    """Dovecot learns the client's address from a PROXY header, and without either it sees mailroute's."""
    account = EAST[["proxy-v1", "proxy-v2", "none"].index(identity) + 4]
    settings = configuration(servers, authority, certificate, identity=identity)
    if identity != "none":
        for name, server in servers.items():
            settings["backend"][name]["lmtp"] = f"tcp:127.0.0.1:{server.lmtp_behind_proxy}"
    with (
        Mailroute({"lmtp": {"protocol": "lmtp", "security": "none"}}, settings) as mailroute,
        smtplib.LMTP("127.0.0.1", mailroute.ports["lmtp"], source_address=("127.0.0.2", 0)) as client,
    ):
        assert send(client, [account], message("identity", number=5)) == [250]
    [delivered] = servers["east"].delivered(account)
    assert (b"127.0.0.2" in delivered.partition(b"\n\n")[0]) == (identity != "none")


def test_a_backend_that_is_down_costs_its_own_recipients(
    certificate: Certificate, authority: Authority, servers: dict[str, Dovecot]
) -> None:
    """Recipients of a backend that is not there are to be tried again; the others get the message."""
    settings = configuration(servers, authority, certificate)
    settings["backend"]["east"]["lmtp"] = "tcp:127.0.0.1:1"
    with (
        Mailroute({"lmtp": {"protocol": "lmtp", "security": "none"}}, settings) as mailroute,
        smtplib.LMTP("127.0.0.1", mailroute.ports["lmtp"]) as client,
    ):
        assert send(client, [EAST[8], WEST[8]], message("down", number=6)) == [451, 250]
    assert servers["west"].delivered(WEST[8])


@pytest.mark.parametrize("identity", ["native", "proxy-v1", "proxy-v2", "none"])
def test_postfix_learns_who_the_client_is(certificate: Certificate, identity: str) -> None:
    """By XCLIENT, with what it lists, or by a PROXY header Postfix has the client's address in its log."""
    settings = {"smtpd_authorized_xclient_hosts": "127.0.0.1", "default_transport": "discard:"}
    with Postfix(certificate, **settings) as postfix:
        port = postfix.port_behind_proxy if identity.startswith("proxy") else postfix.port
        mx = {"smtp": f"tcp:127.0.0.1:{port}", "security": "none", "identity": identity}
        listen = {"smtp": {"protocol": "smtp", "security": "none", "backend": "mx"}}
        with (
            Mailroute(listen, {"backend": {"mx": mx}}) as mailroute,
            smtplib.SMTP(
                "127.0.0.1", mailroute.ports["smtp"], "client.example", source_address=("127.0.0.2", 0)
            ) as client,
        ):
            client.sendmail(SENDER, [EAST[0].user], message("who", number=11))
        seen = postfix.log.wait_for(r"smtpd.*: [0-9A-F]+: client=\S*\[(127\.0\.0\.\d)\]")[1]
    assert seen == ("127.0.0.1" if identity == "none" else "127.0.0.2")


def test_a_mail_server_tries_recipients_elsewhere_again(servers: dict[str, Dovecot]) -> None:
    """A Postfix in front hears 451 for recipients that route elsewhere, and delivers to them soon after."""
    # Of whole seconds, one may be over at once: then Postfix finds its own first attempt still under way, and
    # leaves the message alone for a minute.
    soon = {"queue_run_delay": "1s", "minimal_backoff_time": "2s"}
    stores = {
        name: Postfix(default_transport=f"lmtp:inet:127.0.0.1:{server.lmtp}")
        for name, server in servers.items()
    }
    with stores["east"] as east, stores["west"] as west:
        settings = {
            "backend": {
                name: {"smtp": f"tcp:127.0.0.1:{store.port}", "security": "none"}
                for name, store in (("east", east), ("west", west))
            },
            "route": [
                {"source": "pattern", "match": rf".+@{name}\.example\.org", "backend": name}
                for name in servers
            ],
        }
        with Mailroute({"smtp": {"protocol": "smtp", "security": "none"}}, settings) as mailroute:
            with Postfix(default_transport=f"smtp:[127.0.0.1]:{mailroute.ports['smtp']}", **soon) as front:
                with smtplib.SMTP("127.0.0.1", front.port) as client:
                    users = [EAST[14].user, WEST[14].user, EAST[15].user]
                    client.sendmail(SENDER, users, message("elsewhere", number=12))
                front.log.wait_for(rf"to=<{WEST[14].user}>.* dsn=4\.5\.3, status=deferred")
                for account in (EAST[14], WEST[14], EAST[15]):
                    front.log.wait_for(rf"to=<{account.user}>.* dsn=2\.0\.0, status=sent")
            for store, account in ((east, EAST[14]), (west, WEST[14])):
                store.log.wait_for(rf"to=<{account.user}>.* status=sent")
    for server, account in ((servers["east"], EAST[14]), (servers["west"], WEST[14])):
        assert sum(b"Subject: elsewhere" in text for text in server.delivered(account)) == 1


@pytest.mark.parametrize("command", ["DATA", "BDAT"])
def test_a_server_that_dies_at_any_step_loses_nothing(certificate: Certificate, command: str) -> None:
    """Killed before it has answered, its recipient is to be tried again; the other one has the message."""
    terms = Terms(certificate=certificate, lmtp=True)
    text = message("killed", "line\n" * 10_000, number=10)
    half = len(text) // 2
    begin = b"DATA\r\n" if command == "DATA" else b"BDAT %d LAST\r\n" % len(text)
    end = b".\r\n" if command == "DATA" else b""
    with Dovecot(terms, EAST[0]) as east, Dovecot(terms, WEST[0]) as west:
        backends = {
            name: {"lmtp": f"tcp:127.0.0.1:{server.lmtp}", "security": "none"}
            for name, server in (("east", east), ("west", west))
        }
        config = {
            "backend": backends,
            "route": [
                {"source": "pattern", "match": rf".+@{name}\.example\.org", "backend": name}
                for name in backends
            ],
        }
        with Mailroute({"lmtp": {"protocol": "lmtp", "security": "none"}}, config) as mailroute:
            for number, step in enumerate(("recipient", "begun", "half", "end")):
                if number:
                    east.start()
                had = len(east.delivered(EAST[0]))
                with smtplib.LMTP("127.0.0.1", mailroute.ports["lmtp"]) as client:
                    client.ehlo()
                    client.mail(SENDER)
                    for account in (EAST[0], WEST[0]):
                        assert client.rcpt(account.user)[0] == 250
                    parts = {"recipient": b"", "begun": begin, "half": text[:half], "end": text[half:] + end}
                    for name, part in parts.items():
                        client.send(part)
                        if name == "begun" and command == "DATA":
                            assert client.getreply()[0] == 354
                        if name == step:
                            east.kill()
                    codes = [client.getreply()[0] for _ in range(2)]
                # After its end the message may be there all the same; an answer that says so is true.
                assert codes[1] == 250
                assert codes[0] == 451 or step == "end"
                assert codes[0] == 451 or len(east.delivered(EAST[0])) == had + 1
                assert len(west.delivered(WEST[0])) == number + 1
            wait_until("the sessions' end", mailroute.idle)


def test_a_mail_server_delivers_through_it(servers: dict[str, Dovecot], proxy: Mailroute) -> None:
    """Postfix hands a message for both backends to mailroute once, and hears of each recipient."""
    nobody = "nobody@west.example.org"
    with Postfix(default_transport=f"lmtp:inet:127.0.0.1:{proxy.ports['lmtp']}") as postfix:
        with smtplib.SMTP("127.0.0.1", postfix.port) as client:
            client.sendmail(SENDER, [EAST[10].user, WEST[10].user, nobody], message("mta", number=7))
        for account in (EAST[10], WEST[10]):
            postfix.log.wait_for(rf"to=<{account.user}>.* dsn=2\.0\.0, status=sent")
        postfix.log.wait_for(r"to=<nobody@west.example.org>.* dsn=5\.1\.1, status=bounced")
    for server, account in ((servers["east"], EAST[10]), (servers["west"], WEST[10])):
        assert len(server.delivered(account)) == 1


@pytest.mark.parametrize("command", ["DATA", "BDAT"])
def test_a_large_message_goes_through_mail_servers(servers: dict[str, Dovecot], command: str) -> None:
    """50 MB that come by SMTP, in one go or in chunks, go by SMTP to a Postfix that delivers the same."""
    account, text = EAST[12 if command == "DATA" else 13], large_message()
    transport = f"lmtp:inet:127.0.0.1:{servers['east'].lmtp}"
    with Postfix(default_transport=transport, message_size_limit="100000000") as postfix:
        settings = {"backend": {"mx": {"smtp": f"tcp:127.0.0.1:{postfix.port}", "security": "none"}}}
        listen = {"smtp": {"protocol": "smtp", "security": "none", "backend": "mx"}}
        with (
            Mailroute(listen, settings) as mailroute,
            smtplib.SMTP("127.0.0.1", mailroute.ports["smtp"]) as client,
        ):
            before = mailroute.memory()
            client.ehlo()
            client.mail(SENDER, ["BODY=8BITMIME"])
            assert client.rcpt(account.user)[0] == 250
            if command == "DATA":
                assert client.data(text)[0] == 250
            else:
                half = len(text) // 2
                client.send(b"BDAT %d\r\n" % half + text[:half])
                assert client.getreply()[0] == 250
                client.send(b"BDAT %d LAST\r\n" % (len(text) - half) + text[half:])
                assert client.getreply()[0] == 250
            assert mailroute.memory() - before < 10_000_000
        postfix.log.wait_for(rf"to=<{account.user}>.* status=sent")
    [delivered] = servers["east"].delivered(account)
    assert hashlib.sha256(body(delivered)).digest() == hashlib.sha256(body(text)).digest()


def test_mail_servers_before_and_behind_it() -> None:
    """Python's SMTP client, and two of aiosmtpd's servers: recipients elsewhere are asked for again."""
    received: dict[str, list[tuple[list[str], bytes]]] = {"east": [], "west": []}

    def keep(name: str) -> object:
        class Handler:
            async def handle_DATA(self, _: object, __: object, envelope: Any) -> str:  # noqa: N802
                received[name].append((envelope.rcpt_tos, envelope.content))
                return "250 2.0.0 taken"

        return Handler()

    controllers = {name: Controller(keep(name), "127.0.0.1", free_port()) for name in received}
    for controller in controllers.values():
        controller.start()
    settings = {
        "backend": {
            name: {"smtp": f"tcp:127.0.0.1:{controller.port}", "security": "none"}
            for name, controller in controllers.items()
        },
        "route": [
            {"source": "pattern", "match": rf".+@{name}\.example\.org", "backend": name} for name in received
        ],
    }
    users = [EAST[0].user, WEST[0].user, EAST[1].user]
    text = message("smtp", "Hello.\n.\n..dots\n", number=8)
    try:
        with (
            Mailroute({"smtp": {"protocol": "smtp", "security": "none"}}, settings) as mailroute,
            smtplib.SMTP("127.0.0.1", mailroute.ports["smtp"]) as client,
        ):
            refused = client.sendmail(SENDER, users, text)
            assert {user: code for user, (code, _) in refused.items()} == {WEST[0].user: 451}
            assert not client.sendmail(SENDER, list(refused), text)
    finally:
        for controller in controllers.values():
            controller.stop()
    assert received == {"east": [([EAST[0].user, EAST[1].user], text)], "west": [([WEST[0].user], text)]}
