"""XCLIENT before real servers, byte for byte: what mailroute writes, and that they take it."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from attrs import frozen
from servers.accounts import ALICE
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.postfix import Postfix, asking
from servers.processes import free_port
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.recorder import Recorder
from servers.site import configuration

pytestmark = pytest.mark.integration

SOURCE = "127.0.0.77"
"""An address of this machine that is nobody's unless somebody binds a socket to it."""

PLAIN = base64.b64encode(f"\0{ALICE.user}\0{ALICE.password}".encode()).decode()

VISITS = {
    "pop3": f"AUTH PLAIN {PLAIN}\r\nQUIT\r\n",
    "managesieve": f'AUTHENTICATE "PLAIN" "{PLAIN}"\r\nLOGOUT\r\n',
    "submission": f"EHLO client.example\r\nAUTH PLAIN {PLAIN}\r\nQUIT\r\n",
    "lmtp": f"LHLO client.example\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<{ALICE.user}>\r\nQUIT\r\n",
    "smtp": "EHLO client+1.example\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.net>\r\nQUIT\r\n",
}
"""What a client says that gets as far as its backend and leaves, by the protocol's name."""


@pytest.fixture(scope="module")
def ports(certificate: Certificate) -> Iterator[dict[str, int]]:
    """Ports of a Dovecot, of Postfix for submission with Dovecot's passwords, and for delivery."""
    with contextlib.ExitStack() as stack:
        relay = Controller(Sink(), "127.0.0.1", free_port())
        relay.start()
        stack.callback(relay.stop)
        terms = Terms(certificate=certificate, pop3=True, sieve=True, lmtp=True, relay=relay.port)
        dovecot = stack.enter_context(Dovecot(terms, ALICE))
        settings = {
            **asking(dovecot.sasl),
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
            "default_transport": "discard:",
        }
        postfix = stack.enter_context(Postfix(**settings))
        yield {
            "pop3 dovecot": dovecot.pop3,
            "managesieve dovecot": dovecot.sieve,
            "submission dovecot": dovecot.submission,
            "lmtp dovecot": dovecot.lmtp,
            "submission postfix": postfix.port,
            "smtp postfix": postfix.port,
        }


@frozen
class Seen:
    """What a backend has been told and has answered, line by line, and the ends of a client's connection."""

    told: list[str]
    answered: list[str]
    port: int
    to: int
    session: str


def visit(backend: int, protocol: str, security: str, authority: Authority, certificate: Certificate) -> Seen:
    """Have one client come, with this security, and say what passed between mailroute and the backend."""
    with Recorder(backend) as recorder:
        config = configuration(
            certificate, {"east": {protocol: f"tcp:127.0.0.1:{recorder.port}", "security": "none"}}
        )
        config["route"] = [{"source": "default", "backend": "east"}]
        listen = {"protocol": protocol, "security": security}
        if protocol in ("submission", "lmtp", "smtp"):
            listen["host_name"] = "mailroute.example"
        with Mailroute({"in": listen}, config) as proxy:
            with RawImap("127.0.0.1", proxy.ports["in"], SOURCE) as client:
                port = client.socket.getsockname()[1]
                if security == "tls":
                    client.handshake(authority.context())
                client.send(VISITS[protocol].encode())
                client.rest()
            session = proxy.log.wait_for(rf"session (\S+) ended: user=\S+ client={re.escape(SOURCE)}:")[1]
    told, answered = (bytes(each).decode().splitlines() for each in (recorder.told, recorder.answered))
    return Seen(told, answered, port, proxy.ports["in"], session)


SECURITY = pytest.mark.parametrize("security", ["none", "tls"])


@SECURITY
@pytest.mark.parametrize("protocol", ["pop3", "managesieve"])
def test_login_services_are_told_in_one_line(
    ports: dict[str, int], authority: Authority, certificate: Certificate, protocol: str, security: str
) -> None:
    """Dovecot takes the line right before the login, and says so; the name asked for by SNI comes last."""
    seen = visit(ports[f"{protocol} dovecot"], protocol, security, authority, certificate)
    xclient = f"XCLIENT ADDR={SOURCE} PORT={seen.port} DESTADDR=127.0.0.1 DESTPORT={seen.to}"
    xclient += f" SESSION={seen.session} TTL=6 CLIENT-TRANSPORT="
    xclient += "insecure" if security == "none" else "TLS DESTNAME=localhost"
    login, bye = VISITS[protocol].splitlines()
    assert seen.told[-3:] == [xclient, login, bye]
    ok = {"pop3": ["+OK Updated", "+OK Logged in."], "managesieve": ['OK "Updated"', 'OK "Logged in."']}
    assert seen.answered[-3:-1] == ok[protocol]


@SECURITY
@pytest.mark.parametrize(
    "where", ["submission dovecot", "submission postfix", "lmtp dovecot", "smtp postfix"]
)
def test_mail_servers_are_told_what_they_list(
    ports: dict[str, int], authority: Authority, certificate: Certificate, where: str, security: str
) -> None:
    """Between two EHLOs there is one line, with the attributes that are listed and known, in xtext.

    There is no LOGIN in it, and what follows it is taken.
    """
    protocol = where.split()[0]
    seen = visit(ports[where], protocol, security, authority, certificate)
    (listed,) = {line[4:] for line in seen.answered if line[4:].startswith("XCLIENT ")}
    known = {
        "NAME": "[UNAVAILABLE]",
        "ADDR": SOURCE,
        "PORT": str(seen.port),
        "DESTADDR": "127.0.0.1",
        "DESTPORT": str(seen.to),
        "SESSION": seen.session,
        "TTL": "6",
        "CLIENT-TRANSPORT": "insecure" if security == "none" else "TLS",
        "PROTO": "LMTP" if protocol == "lmtp" else "ESMTP",
        "HELO": "client+2B1.example" if protocol == "smtp" else "client.example",
    }
    words = [f"{name}={value}" for name, value in known.items() if name in listed.split()]
    assert {"ADDR", "PORT", "PROTO", "HELO"} <= set(listed.split())
    hello = "EHLO client.example" if protocol == "submission" else "EHLO mailroute.example"
    hello = hello if protocol != "lmtp" else hello.replace("EHLO", "LHLO")
    assert seen.told[:3] == [hello, " ".join(["XCLIENT", *words]), hello]
    assert not [line for line in seen.answered if not line.startswith("2")]
