"""The backend's side of mail submission, as transcripts."""

from __future__ import annotations

import base64

import pytest
from attrs import evolve
from logins import Case
from transcripts import OAUTHBEARER, XOAUTH2, refusal, started

from mailroute.dialogs.smtp import SUBMISSION
from mailroute.dialogs.smtp.dialect import TOKEN, Seam
from mailroute.events import (
    Address,
    Client,
    Credentials,
    LoggedIn,
    Method,
    Proof,
    Ready,
    Reason,
    Refused,
    StartTLS,
)
from mailroute.testing import CLIENT, Conversation

BOB = Case(Credentials("PLAIN", b"bob@x", b"secret"), "bob", seam=Seam("mx.example", b"me.example"))
GREETING = b"220 b.example ESMTP\r\n"
EHLO = b"EHLO me.example\r\n"
OFFERS = b"250-b.example\r\n250-PIPELINING\r\n250 AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER\r\n"
XCLIENT = (
    b"250-b.example\r\n250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n250 AUTH PLAIN\r\n"
)
PLAIN = base64.b64encode(b"\0bob\0secret")


def talk(case: Case = BOB) -> Conversation:
    return started(case.login(SUBMISSION))


def asked(case: Case = BOB, offers: bytes = OFFERS) -> Conversation:
    """Return a conversation in which the backend has been greeted."""
    conversation = talk(case)
    conversation.hears(GREETING)
    assert conversation.said() == EHLO
    conversation.hears(offers)
    return conversation


def test_what_a_route_forwards_goes_along():
    """FORWARD is told where it is listed, in xtext; what does not fit there refuses the login."""
    case = evolve(BOB, tell_client=True, client=CLIENT, forward=(("shard", "7"), ("what", "x y")))
    assert b"FORWARD" not in asked(case, XCLIENT).said()
    offers = b"250-b.example\r\n250-XCLIENT ADDR FORWARD\r\n250 AUTH PLAIN\r\n"
    word = base64.b64encode(b"shard=7\twhat=x y").replace(b"=", b"+3D")
    assert asked(case, offers).said() == b"XCLIENT ADDR=192.0.2.7 FORWARD=" + word + b"\r\n"
    too_long = asked(evolve(case, forward=(("k", "v" * 390),)), offers)
    assert refusal(too_long).reason is Reason.MISCONFIGURED


def test_a_port_that_is_not_known_is_unavailable():
    """A PROXY header may have 0 for a port, which Dovecot's XCLIENT does not take."""
    client = evolve(CLIENT, source=Address("192.0.2.7", 0), destination=Address("192.0.2.1", 0))
    said = asked(evolve(BOB, tell_client=True, client=client), XCLIENT).said()
    assert b" ADDR=192.0.2.7 PORT=[UNAVAILABLE] DESTADDR=192.0.2.1 DESTPORT=[UNAVAILABLE] " in said


def test_a_login():
    """EHLO has the client's own name, AUTH an initial response, and the client gets the backend's words."""
    conversation = asked()
    assert conversation.said() == b"AUTH PLAIN %s\r\n" % PLAIN
    conversation.hears(b"235 2.7.0 Hello\r\n220 more")
    assert conversation.event() == LoggedIn(b"2.7.0 Hello", b"220 more")


def test_tls_and_xclient():
    """STARTTLS, EHLO again, XCLIENT with what is listed, a greeting and EHLO again, and then AUTH."""
    conversation = talk(evolve(BOB, starttls=True, tell_client=True))
    conversation.hears(GREETING)
    assert conversation.said() == EHLO
    conversation.hears(b"250-b.example\r\n250-XCLIENT ADDR\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n")
    assert conversation.said() == b"STARTTLS\r\n"
    conversation.hears(b"220 2.0.0 go\r\n")
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    assert conversation.said() == EHLO
    conversation.hears(XCLIENT)
    assert conversation.said() == (
        b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=40000 DESTADDR=192.0.2.1 DESTPORT=143 "
        b"PROTO=ESMTP HELO=me.example\r\n"
    )
    conversation.hears(GREETING)
    assert conversation.said() == EHLO
    conversation.hears(OFFERS)
    assert conversation.said() == b"AUTH PLAIN %s\r\n" % PLAIN


def test_login_is_told_only_instead_of_auth():
    """XCLIENT's LOGIN opens an account without a password: it goes only where there is no AUTH."""
    case = evolve(BOB, tell_client=True, user="b b\r\n+", method=Method.NONE)
    conversation = asked(case, XCLIENT)
    assert b" LOGIN=b+20b+0D+0A+2B" in conversation.said()
    conversation.hears(GREETING)
    assert conversation.said() == EHLO
    conversation.hears(OFFERS)
    assert conversation.said() == b""
    assert conversation.event() == LoggedIn(b"2.7.0 Logged in")
    master = Credentials("PLAIN", b"root", b"m")
    for other in (evolve(BOB, tell_client=True), evolve(case, method=Method.MASTER, master=master)):
        assert b"LOGIN" not in asked(other, XCLIENT).said()


@pytest.mark.parametrize(
    ("hello", "source", "said"),
    [
        (b"[127.0.1.1]", None, b"[127.0.1.1]"),
        (b"[IPv6:::1]", None, b"[IPv6:::1]"),
        (b"my-pc_2.x", None, b"my-pc_2.x"),
        (b"my pc", "192.0.2.7", b"[192.0.2.7]"),
        (b"my-", "2001:db8::7", b"[IPv6:2001:db8::7]"),
        (b"[300.1.1.1]", "192.0.2.7", b"[192.0.2.7]"),
        (b"[IPv6:192.0.2.1]", "192.0.2.7", b"[192.0.2.7]"),
        (b"a.example.", "192.0.2.7", b"[192.0.2.7]"),
        (b"\xff", None, b"mx.example"),
        (b"", None, b"mx.example"),
    ],
)
def test_the_name_that_the_client_has_given_itself(hello, source, said):
    """It goes on as it is if it can; else the client's address stands for it (RFC 5321 section 4.1.4)."""
    client = Client("s", source and Address(source, 1), None)
    conversation = talk(evolve(BOB, client=client, seam=Seam("mx.example", hello)))
    conversation.hears(GREETING)
    assert conversation.said() == b"EHLO %s\r\n" % said


@pytest.mark.parametrize(
    ("case", "offers", "said", "then"),
    [
        (BOB, b"250 AUTH LOGIN", b"AUTH LOGIN\r\n", [b"Ym9i\r\n", b"c2VjcmV0\r\n"]),
        (
            evolve(BOB, method=Method.MASTER, master=Credentials("PLAIN", b"root", b"m")),
            b"250 auth plain",
            b"AUTH PLAIN %s\r\n" % base64.b64encode(b"bob\0root\0m"),
            [],
        ),
        (
            evolve(BOB, credentials=Credentials("OAUTHBEARER", b"bob", OAUTHBEARER, proof=Proof.TOKEN)),
            b"250 AUTH OAUTHBEARER",
            b"AUTH OAUTHBEARER %s\r\n" % base64.b64encode(OAUTHBEARER),
            [b"AQ==\r\n"],
        ),
        (
            evolve(BOB, credentials=Credentials("PLAIN", b"bob", b"s" * 400)),
            b"250 AUTH PLAIN",
            b"AUTH PLAIN\r\n",
            [base64.b64encode(b"\0bob\0" + b"s" * 400) + b"\r\n"],
        ),
    ],
)
def test_mechanisms(case, offers, said, then):
    """What the backend offers is used; a message that does not fit on AUTH's line waits for the 334."""
    conversation = asked(case, b"250-b.example\r\n" + offers + b"\r\n")
    assert conversation.said() == said
    for line in then:
        conversation.hears(b"334 eA==\r\n")
        assert conversation.said() == line


def test_an_oauth_servers_error():
    """Its document reaches the client's dialog, and not the log."""
    token = Credentials("XOAUTH2", b"bob", XOAUTH2, proof=Proof.TOKEN)
    conversation = asked(evolve(BOB, credentials=token))
    conversation.said()
    conversation.hears(b"334 eyJzdGF0dXMiOiJ4In0=\r\n")
    assert conversation.said() == b"\r\n"
    conversation.hears(b"535 5.7.8 no\r\n")
    refused = refusal(conversation)
    assert refused.reason is Reason.AUTHENTICATION_FAILED
    assert refused.challenge == b'{"status":"x"}'


@pytest.mark.parametrize(
    ("answer", "reason", "reply"),
    [
        (b"535 5.7.8 no such user", Reason.AUTHENTICATION_FAILED, None),
        (b"535 no", Reason.AUTHENTICATION_FAILED, None),
        (b"535 5.7.139 locked", Reason.AUTHENTICATION_FAILED, b"535 5.7.139 locked"),
        (
            b"534-5.7.9 Another\r\n534 5.7.9 password",
            Reason.AUTHENTICATION_FAILED,
            b"534 5.7.9 Another password",
        ),
        (b"525 5.7.13 disabled", Reason.CONTACT_ADMIN, b"525 5.7.13 disabled"),
        (b"454 4.7.0 later", Reason.UNAVAILABLE, None),
        (b"432 4.7.12 change it", Reason.UNAVAILABLE, b"432 4.7.12 change it"),
        (b"421 4.3.2 bye", Reason.UNAVAILABLE, None),
        (b"538 5.7.11 TLS", Reason.MISCONFIGURED, None),
        (b"530 5.7.0 STARTTLS", Reason.MISCONFIGURED, None),
        (b"504 5.5.4 what", Reason.MISCONFIGURED, None),
        (b"550 5.7.1 blocked\x01", Reason.AUTHENTICATION_FAILED, b"550 5.7.1 blocked?"),
    ],
)
def test_refusals(answer, reason, reply):
    """What a refusal means, and what of it the client may see: on one line, with its own code."""
    conversation = asked()
    conversation.hears(answer + b"\r\n")
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (reason, reply)
    assert answer[:3].decode() in refused.detail


def test_a_secret_that_is_repeated_goes_nowhere():
    """A backend that repeats what it was sent shows it neither to the client nor to the log."""
    conversation = asked()
    conversation.hears(b"535 5.7.99 what is AUTH PLAIN %s, secret\r\n" % PLAIN)
    refused = refusal(conversation)
    for text in (refused.reply, refused.detail.encode()):
        assert b"secret," not in text.replace(b"(secret)", b"")
        assert PLAIN not in text
    conversation = asked()
    conversation.hears(b"235 2.7.0 %s\r\n" % PLAIN)
    assert PLAIN not in conversation.event().welcome


@pytest.mark.parametrize(
    ("case", "said", "reason"),
    [
        (BOB, b"421 busy\r\n", Reason.UNAVAILABLE),
        (BOB, GREETING + b"502 what\r\n", Reason.MISCONFIGURED),
        (BOB, GREETING + b"250 b.example\r\n", Reason.MISCONFIGURED),
        (BOB, GREETING + b"250-b.example\r\n250 AUTH CRAM-MD5\r\n", Reason.MISCONFIGURED),
        pytest.param(
            BOB, b"220 x ESMTP mailroute %s ready\r\n" % TOKEN, Reason.MISCONFIGURED, id="ourselves"
        ),
        (BOB, GREETING + OFFERS + b"334 \r\n", Reason.UNAVAILABLE),
        (BOB, b"* OK IMAP\r\n", Reason.UNAVAILABLE),
        (evolve(BOB, starttls=True), GREETING + OFFERS, Reason.MISCONFIGURED),
        (
            evolve(BOB, starttls=True),
            GREETING + b"250-b\r\n250 STARTTLS\r\n454 4.7.0 no TLS\r\n",
            Reason.UNAVAILABLE,
        ),
        (
            evolve(BOB, starttls=True),
            GREETING + b"250-b\r\n250 STARTTLS\r\n220 go\r\n250 injected\r\n",
            Reason.MISCONFIGURED,
        ),
        (
            evolve(BOB, tell_client=True),
            GREETING + XCLIENT + b"550 5.7.0 not from you\r\n",
            Reason.MISCONFIGURED,
        ),
        (
            evolve(BOB, credentials=Credentials("XOAUTH2", b"bob", b"t", proof=Proof.TOKEN)),
            GREETING + b"250-b\r\n250 AUTH PLAIN\r\n",
            Reason.MISCONFIGURED,
        ),
    ],
)
def test_backends_of_no_use(case, said, reason):
    """A backend that lacks what is needed, is not one, or speaks out of turn ends the login with a reason."""
    conversation = talk(case)
    conversation.hears(said)
    assert [type(event) for event in conversation.events[-1:]] == [Refused]
    assert conversation.events[-1].refusal.reason is reason
    assert "secret" not in conversation.events[-1].refusal.detail


def test_a_success_before_the_credentials_is_none():
    """A 235 before the password was sent lets nobody in."""
    conversation = asked(offers=b"250-b\r\n250 AUTH LOGIN\r\n")
    conversation.hears(b"235 2.7.0 come in\r\n")
    assert refusal(conversation).reason is Reason.UNAVAILABLE


@pytest.mark.parametrize("starttls", [False, True])
def test_without_an_order_it_waits(starttls):
    """It goes as far as the greeting, and TLS, and then waits; the client's name comes with the order."""
    case = evolve(BOB, starttls=starttls)
    conversation = Conversation(case.unopened(SUBMISSION))
    conversation.take(conversation.half.start())
    conversation.hears(GREETING)
    if starttls:
        assert conversation.said() == b"EHLO localhost\r\n"
        conversation.hears(b"250-b.example\r\n250 STARTTLS\r\n")
        assert conversation.said() == b"STARTTLS\r\n"
        conversation.hears(b"220 2.0.0 go\r\n")
        assert conversation.event() == StartTLS()
        conversation.take(conversation.half.secured())
    assert conversation.event() == Ready()
    assert conversation.said() == b""
    conversation.take(conversation.half.open(case.order))
    assert conversation.said() == EHLO
    conversation.hears(OFFERS)
    conversation.hears(b"235 2.7.0 Hello\r\n")
    assert isinstance(conversation.event(), LoggedIn)


def test_a_backend_that_ends_while_it_waits_is_refused():
    """A 421 while nobody wants to log in makes the connection useless."""
    conversation = Conversation(BOB.unopened(SUBMISSION))
    conversation.hears(GREETING + b"421 4.4.2 timeout\r\n")
    assert [type(event) for event in conversation.events] == [Ready, Refused]


def test_what_it_waits_for_is_told():
    """The log can say where a backend has got stuck."""
    assert talk().half.doing() == "waiting for the greeting"
    assert asked().half.doing() == "waiting for the answer to the login"
    told = asked(evolve(BOB, tell_client=True, client=CLIENT), XCLIENT)
    assert told.half.doing() == "waiting for the answer to XCLIENT"
