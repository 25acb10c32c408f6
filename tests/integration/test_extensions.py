"""Extensions of SMTP that a real Postfix has: DSN and SMTPUTF8, by submission and by delivery."""

from __future__ import annotations

import email
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from servers.accounts import BOB
from servers.certificates import Certificate
from servers.dovecot import Dovecot, Terms
from servers.postfix import Postfix, asking
from servers.processes import free_port, wait_until
from servers.proxy import Mailroute
from servers.site import configuration, users

pytestmark = pytest.mark.integration


class Sink:
    """A mail server that keeps the envelopes it gets, to which Postfix delivers; it knows no DSN."""

    def __init__(self) -> None:
        self.port = free_port()
        self.envelopes: list[Any] = []

    async def handle_DATA(self, _: object, __: object, envelope: Any) -> str:  # noqa: N802
        self.envelopes.append(envelope)
        return "250 2.0.0 taken"

    def to(self, recipient: str) -> Any:
        """Return the envelope of the message for this recipient, once it is there."""

        def find() -> Any:
            return next((each for each in self.envelopes if recipient in each.rcpt_tos), None)

        return wait_until(f"a message for {recipient}", find)


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    sink = Sink()
    controller = Controller(sink, "127.0.0.1", sink.port, enable_SMTPUTF8=True)
    controller.start()
    yield sink
    controller.stop()


@pytest.fixture(scope="module")
def postfix(certificate: Certificate, sink: Sink) -> Iterator[Postfix]:
    with Dovecot(Terms(certificate=certificate), BOB) as dovecot:
        settings = {
            **asking(dovecot.sasl),
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, permit_mynetworks, reject",
            "smtputf8_enable": "yes",
            "default_transport": f"smtp:[127.0.0.1]:{sink.port}",
        }
        with Postfix(**settings) as postfix:
            yield postfix


@pytest.fixture(params=["submission", "smtp"])
def session(
    request: pytest.FixtureRequest, postfix: Postfix, certificate: Certificate
) -> Iterator[smtplib.SMTP]:
    """A client that may send mail."""
    protocol = request.param
    block = {protocol: f"tcp:127.0.0.1:{postfix.port}", "security": "none"}
    words = {"submission": ["8BITMIME", "SMTPUTF8", "DSN"], "smtp": ["DSN"]}
    listen = {"protocol": protocol, "security": "none", "capabilities": words[protocol]}
    config = configuration(certificate, {"west": block})
    config["route"].append({"source": "default", "backend": "west"})
    with (
        Mailroute({"in": listen}, config, users(BOB)) as proxy,
        smtplib.SMTP("localhost", proxy.ports["in"]) as session,
    ):
        session.ehlo("client.example")
        assert {"8bitmime", "smtputf8", "dsn"} <= session.esmtp_features.keys()
        if protocol == "submission":
            session.login(BOB.user, BOB.password)
        yield session


def test_the_sender_is_notified_as_it_wishes(session: smtplib.SMTP, sink: Sink) -> None:
    """DSN's parameters get through as they are: Postfix reports what was asked for, by the given names."""
    recipient = "dsn@example.net"
    options = ["RET=HDRS", "ENVID=QQ314159+2Bx"]
    asked = ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Some+2Bbody@example.net"]
    sink.envelopes.clear()
    text = b"Subject: with a report\r\n\r\nhello\r\n"
    assert session.sendmail(BOB.user, [recipient], text, options, asked) == {}
    assert sink.to(recipient).mail_from == BOB.user
    report = email.message_from_bytes(sink.to(BOB.user).content)
    assert report.get_content_type() == "multipart/report"
    _, status, returned = report.get_payload()
    of_message, of_recipient = status.get_payload()
    assert of_message["Original-Envelope-Id"] == "QQ314159+x"
    assert of_recipient["Original-Recipient"] == "rfc822;Some+body@example.net"
    assert of_recipient["Action"] == "relayed"
    assert returned.get_content_type() == "text/rfc822-headers"


def test_addresses_beyond_ascii(session: smtplib.SMTP, sink: Sink) -> None:
    """With SMTPUTF8 both addresses and the head arrive as they were sent."""
    sender, recipient = "bøb@example.com", "jørgen@exämple.net"
    sink.envelopes.clear()
    text = "Subject: grüße\r\n\r\nhello ø\r\n".encode()
    assert session.sendmail(sender, [recipient], text, ["SMTPUTF8", "BODY=8BITMIME"]) == {}
    envelope = sink.to(recipient)
    assert (envelope.mail_from, envelope.smtp_utf8) == (sender, True)
    assert "\r\nSubject: grüße\r\n".encode() in envelope.content
    assert envelope.content.endswith("\r\n\r\nhello ø\r\n".encode())
