"""The backend's side of ManageSieve, as transcripts."""

from __future__ import annotations

import base64

import pytest
from attrs import evolve
from logins import Case
from transcripts import b64, refusal, started

from mailroute.dialogs.common.text import MAX_SHOWN
from mailroute.dialogs.managesieve import MANAGESIEVE
from mailroute.dialogs.managesieve.dialog import ManageSieveDialog
from mailroute.dialogs.managesieve.login import MAX_CAPABILITIES
from mailroute.events import (
    Credentials,
    DialogTerms,
    LoggedIn,
    Method,
    Proof,
    Ready,
    Reason,
    StartTLS,
)
from mailroute.testing import CLIENT, Conversation
from mailroute.wire.sieve_syntax import MAX_QUOTED

BOB = Credentials("PLAIN", b"bob", b"secret")
ORDER = Case(BOB, "bob")
GREETING = b'"IMPLEMENTATION" "x"\r\n"SASL" "PLAIN LOGIN"\r\n"SIEVE" "fileinto"\r\nOK "ready"\r\n'
TRUSTED = b'"SASL" "plain login"\r\n"xclient"\r\nOK\r\n'
PLAIN = b'AUTHENTICATE "PLAIN" "%s"\r\n' % base64.b64encode(b"\0bob\0secret")
XCLIENT = (
    b"XCLIENT ADDR=192.0.2.7 PORT=40000 DESTADDR=192.0.2.1 DESTPORT=143"
    b" SESSION=session-1 TTL=6 CLIENT-TRANSPORT=insecure"
)


def talk(order: Case = ORDER, greeting: bytes = b"") -> Conversation:
    conversation = started(order.login(MANAGESIEVE))
    conversation.hears(greeting)
    return conversation


@pytest.mark.parametrize("segment", [0, 1])
def test_plain_in_one_command(segment):
    """The greeting lists all there is to know, the login is one command; what is behind OK comes out."""
    conversation = talk()
    conversation.hears(GREETING, segment)
    assert conversation.said() == PLAIN
    conversation.hears(b'OK "Logged in."\r\n"x" ACTIVE\r\n')
    assert conversation.event() == LoggedIn(b"Logged in.", b'"x" ACTIVE\r\n')


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"OK\r\n", b""),
        (b'ok (SASL "b2s=") "Hello"\r\n', b"Hello"),
        (b'OK (X {3}\r\na)" (1 "(" (b)) y)\r\n', b""),
        (b"OK {7}\r\na\r\nNO x\r\n", b"a??NO x"),
    ],
)
def test_every_form_of_ok(answer, text):
    """Codes and what belongs to them are passed over, and the text is one line, quoted or literal."""
    conversation = talk(greeting=GREETING)
    conversation.hears(answer)
    assert conversation.event() == LoggedIn(text)


def test_a_long_message_is_a_literal():
    """A quoted string has at most RFC 5804's 1024 bytes; what is longer goes as a literal, unasked."""
    secret = b"x" * MAX_QUOTED
    message = b64(b"\0bob\0" + secret)
    conversation = talk(evolve(ORDER, credentials=evolve(BOB, secret=secret)), GREETING)
    assert conversation.said() == b'AUTHENTICATE "PLAIN" {%d+}\r\n%s\r\n' % (len(message), message)


def test_login_mechanism():
    """A backend that offers only LOGIN gets name and password one by one; an empty one is an empty string."""
    order = evolve(ORDER, credentials=evolve(BOB, secret=b""))
    conversation = talk(order, b'"SASL" "LOGIN"\r\nOK\r\n')
    assert conversation.said() == b'AUTHENTICATE "LOGIN"\r\n'
    conversation.hears(b'"VXNlcm5hbWU6"\r\n')
    assert conversation.said() == b'"%s"\r\n' % b64(b"bob")
    conversation.hears(b"{12}\r\nUGFzc3dvcmQ6\r\n")
    assert conversation.said() == b'""\r\n'
    conversation.hears(b"OK\r\n")
    assert conversation.event() == LoggedIn(b"")


def test_no_mechanism_for_a_password():
    """There is no other way in ManageSieve: the backend is set up wrongly."""
    for greeting in (b'"SASL" "GSSAPI"\r\nOK\r\n', b'"SASL" ""\r\nOK\r\n', b"OK\r\n"):
        assert refusal(talk(greeting=greeting)).reason is Reason.MISCONFIGURED


def test_starttls_forgets_what_came_before():
    """Mechanisms and XCLIENT count as they are listed inside TLS, unasked, and not as in the clear."""
    conversation = talk(evolve(ORDER, starttls=True, tell_client=True))
    conversation.hears(b'"SASL" "LOGIN"\r\n"XCLIENT"\r\nOK\r\n')
    assert conversation.said() == b"STARTTLS\r\n"
    conversation.hears(b'OK "Begin."\r\n')
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    assert conversation.said() == b""
    assert conversation.half.doing() == "waiting for the capabilities"
    conversation.hears(b'"SASL" "PLAIN"\r\nOK "TLS."\r\n')
    assert conversation.said() == PLAIN


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b'NO "No."\r\n', 'the backend refused STARTTLS: NO "No."'),
        (b'OK\r\n"SASL" "LOGIN"\r\nOK\r\n', "in the clear behind its STARTTLS answer"),
        (b'OK "x"\r\n\x16', "in the clear behind its STARTTLS answer"),
    ],
)
def test_starttls_or_nothing(answer, detail):
    """Without TLS, or with an answer forged behind the backend's, no password goes out."""
    conversation = talk(evolve(ORDER, starttls=True), GREETING)
    assert conversation.said() == b"STARTTLS\r\n"
    conversation.hears(answer)
    refused = refusal(conversation)
    assert refused.reason is Reason.MISCONFIGURED
    assert detail in refused.detail
    assert conversation.said() == b""


def test_xclient_goes_out_with_the_login():
    """A backend that lists XCLIENT is told who the client is, in the segment of the login."""
    conversation = talk(evolve(ORDER, tell_client=True), TRUSTED)
    assert conversation.said() == XCLIENT + b"\r\n" + PLAIN
    assert conversation.half.doing() == "waiting for the answer to XCLIENT"
    conversation.hears(b'OK "Updated"\r\n')
    assert conversation.events == []
    conversation.hears(b'OK "Logged in."\r\n')
    assert conversation.event() == LoggedIn(b"Logged in.")


def test_xclient_only_where_it_is_offered_and_wanted():
    """A backend that does not list it, or is not to be told, gets the login alone."""
    assert talk(evolve(ORDER, tell_client=True), GREETING).said() == PLAIN
    assert talk(ORDER, TRUSTED).said() == PLAIN


def test_a_refused_xclient_is_a_misconfiguration():
    """Nobody gets in under the proxy's address; the answer to the login behind it does not count."""
    conversation = talk(evolve(ORDER, tell_client=True), TRUSTED)
    conversation.hears(b'NO "You are not from trusted IP"\r\nOK "Logged in."\r\n')
    refused = refusal(conversation)
    assert refused.reason is Reason.MISCONFIGURED
    assert 'refused it: NO "You are not from trusted IP"' in refused.detail


@pytest.mark.parametrize("name", ["a\r\nLOGOUT", 'a" ADDR=192.0.2.9', "a b"])
def test_no_name_becomes_syntax_in_xclient(name):
    """The name that a client asks for by SNI is passed on only if nothing in it means something."""
    order = evolve(ORDER, tell_client=True, client=evolve(CLIENT, server_name=name))
    assert talk(order, TRUSTED).said() == XCLIENT + b"\r\n" + PLAIN


def test_no_login():
    """With login = "none" the greeting is enough; XCLIENT tells the name, and is waited for."""
    none = evolve(ORDER, method=Method.NONE)
    conversation = talk(none, b"OK\r\nmore")
    assert conversation.said() == b""
    assert conversation.event() == LoggedIn(b"Logged in.", b"more")
    conversation = talk(evolve(none, tell_client=True), TRUSTED)
    assert conversation.said() == XCLIENT + b" FORWARD=" + b64(b"user=bob") + b"\r\n"
    assert conversation.events == []
    conversation.hears(b'OK "Updated"\r\n')
    assert conversation.event() == LoggedIn(b"Logged in.")


def test_master_login():
    """A master user logs in for the user; if it is refused, the client's password is not to blame."""
    order = evolve(ORDER, method=Method.MASTER, master=Credentials("PLAIN", b"root", b"m4ster"))
    conversation = talk(order, GREETING)
    assert conversation.said() == b'AUTHENTICATE "PLAIN" "%s"\r\n' % b64(b"bob\0root\0m4ster")
    conversation.hears(b'NO "m4ster is wrong"\r\n')
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (Reason.MISCONFIGURED, None)
    assert "m4ster" not in refused.detail


def test_the_client_may_authorize_as_another():
    """What a client sends as its authorization identity becomes the account, under its own name."""
    order = evolve(ORDER, credentials=evolve(BOB, user=b"admin", authorize_as=b"bob"))
    assert talk(order, GREETING).said() == b'AUTHENTICATE "PLAIN" "%s"\r\n' % b64(b"bob\0admin\0secret")


@pytest.mark.parametrize(
    ("answer", "reason", "reply"),
    [
        (b'NO "No such user"\r\n', Reason.AUTHENTICATION_FAILED, None),
        (b"NO\r\n", Reason.AUTHENTICATION_FAILED, None),
        (b'no (trylater) "Later"\r\n', Reason.UNAVAILABLE, b"(TRYLATER) Later"),
        (b"NO (TRYLATER) {5}\r\nLater\r\n", Reason.UNAVAILABLE, b"(TRYLATER) Later"),
        (b'BYE (TRYLATER) "Later"\r\n', Reason.UNAVAILABLE, b"(TRYLATER) Later"),
        (b'BYE "Later"\r\n', Reason.UNAVAILABLE, None),
        (
            b'NO (AUTH-TOO-WEAK) "Use a token"\r\n',
            Reason.AUTHORIZATION_FAILED,
            b"(AUTH-TOO-WEAK) Use a token",
        ),
        (b'NO (ENCRYPT-NEEDED) "TLS"\r\n', Reason.MISCONFIGURED, None),
        (b'NO (TRANSITION-NEEDED) "He exists"\r\n', Reason.AUTHENTICATION_FAILED, None),
        (b'NO (QUOTA/MAXSIZE) "Full"\r\n', Reason.LIMIT, b"(QUOTA/MAXSIZE) Full"),
        (b'BYE (REFERRAL "sieve://elsewhere") "Go"\r\n', Reason.UNAVAILABLE, None),
        (b'NO (REFERRAL sieve://u;AUTH=x@elsewhere) "Go"\r\n', Reason.UNAVAILABLE, None),
        (b'NO (X-NEW (1 ")") 2) "Something"\r\n', Reason.AUTHENTICATION_FAILED, b"(X-NEW) Something"),
    ],
)
def test_refusals(answer, reason, reply):
    """What a code means, and whether the client sees the text: never one that could tell of an account."""
    conversation = talk(greeting=GREETING)
    conversation.hears(answer)
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (reason, reply)
    assert refused.detail.startswith("the backend said: " + answer.decode().split("\r\n")[0].split("{")[0])


@pytest.mark.parametrize("password", [b"hunter22", b'hunter"22\\', b"h" * 500])
def test_no_secret_is_repeated(password):
    """A backend that repeats the password, in any form, gets it neither into the log nor to the client."""
    conversation = talk(evolve(ORDER, credentials=evolve(BOB, secret=password)), GREETING)
    echo = conversation.said().split()[2].strip(b'"')
    quoted = password.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    conversation.hears(b'NO (TRYLATER) "%s %s"\r\n' % (quoted, echo))
    refused = refusal(conversation)
    assert refused.reply == b"(TRYLATER) (secret) (secret)"
    assert refused.detail == 'the backend said: NO (TRYLATER) "(secret) (secret)"'


def test_long_words_are_cut_where_nothing_breaks():
    """A text of any length and with anything in it comes to the client as one whole quoted string."""
    conversation = talk(greeting=GREETING)
    conversation.hears(b'NO (TRYLATER) "' + rb"\"\\" * 500 + b'"\r\n')
    refused = refusal(conversation)
    assert len(refused.reply) == MAX_SHOWN
    dialog = Conversation(ManageSieveDialog(DialogTerms()))
    dialog.hears(PLAIN)
    dialog.take(dialog.half.reject(refused))
    assert dialog.said() == b'NO (TRYLATER) "' + rb"\"\\" * ((MAX_SHOWN - 11) // 2) + b'\\""\r\n'


def test_tokens_and_their_errors():
    """A token goes by its own mechanism; the error document is fetched and handed on."""
    token = b"n,a=bob,\1auth=Bearer t\1\1"
    order = evolve(ORDER, credentials=Credentials("OAUTHBEARER", b"bob", token, proof=Proof.TOKEN))
    conversation = talk(order, b'"SASL" "OAUTHBEARER"\r\nOK\r\n')
    assert conversation.said() == b'AUTHENTICATE "OAUTHBEARER" "%s"\r\n' % b64(token)
    conversation.hears(b'"%s"\r\n' % b64(b"{}"))
    assert conversation.said() == b'"AQ=="\r\n'
    conversation.hears(b'NO "no"\r\n')
    assert refusal(conversation).challenge == b"{}"
    assert refusal(talk(order, GREETING)).reason is Reason.MISCONFIGURED
    order = evolve(order, credentials=Credentials("XOAUTH2", b"bob", token, proof=Proof.TOKEN))
    conversation = talk(order, b'"SASL" "XOAUTH2"\r\nOK\r\n')
    conversation.said()
    conversation.hears(b'"%s"\r\n' % b64(b"{}"))
    assert conversation.said() == b'""\r\n'


BREAKS = [
    (b"* OK IMAP\r\n", ""),
    (b"+OK pop3\r\n", ""),
    (b'OK "a" "b"\r\n', ""),
    (b'OK (x "a"\r\n', ""),
    (b'"A" "b" "c"\r\n', ""),
    (b'"A"\r\n' * (MAX_CAPABILITIES + 1), ""),
    (b'"SIEVE" {8193}\r\n', ""),
    (b"X" * 9000, ""),
    (b'"SIEVE" "\0"\r\n', ""),
    (GREETING + b'"VXNlcm5hbWU6"\r\n', "too many"),
    (GREETING + b'"A" "b"\r\n', "string"),
    (GREETING + b"{3}\r\na\0b\r\n", ""),
    (b'"SASL" "LOGIN"\r\nOK\r\n"VXNlcm5hbWU6"\r\nOK\r\n', "before it had the credentials"),
]


@pytest.mark.parametrize(("answers", "detail"), BREAKS)
def test_a_backend_that_breaks_the_protocol(answers, detail):
    """Whatever it is, it ends the login, with the backend to blame."""
    conversation = talk(greeting=answers)
    refused = refusal(conversation)
    assert refused.reason is Reason.UNAVAILABLE
    assert "broke the protocol" in refused.detail
    assert detail in refused.detail


def test_a_string_instead_of_the_answer_to_xclient():
    """A challenge before XCLIENT has been answered gets no message and no password."""
    conversation = talk(evolve(ORDER, tell_client=True), b'"SASL" "LOGIN"\r\n"XCLIENT"\r\nOK\r\n')
    assert conversation.said() == XCLIENT + b'\r\nAUTHENTICATE "LOGIN"\r\n'
    conversation.hears(b'"VXNlcm5hbWU6"\r\n')
    assert conversation.said() == b""
    assert "waiting for the answer to XCLIENT" in refusal(conversation).detail


@pytest.mark.parametrize(
    ("starttls", "answers", "doing"),
    [
        (False, b'BYE (TRYLATER) "Full"\r\n', "waiting for the greeting"),
        (True, GREETING + b'BYE "Full"\r\n', "waiting for the answer to STARTTLS"),
        (False, TRUSTED + b'BYE "Full"\r\n', "waiting for the answer to XCLIENT"),
    ],
)
def test_a_backend_that_says_goodbye(starttls, answers, doing):
    """It cannot be reached, wherever in the dialog that was: nothing is misconfigured."""
    refused = refusal(talk(evolve(ORDER, starttls=starttls, tell_client=True), answers))
    assert refused.reason is Reason.UNAVAILABLE
    assert refused.detail.startswith(f"the backend said goodbye {doing}: BYE ")


def test_a_greeting_that_refuses():
    """A NO where OK was expected is logged as it came."""
    refused = refusal(talk(greeting=b'NO "Not today"\r\n'))
    assert (refused.reason, refused.detail) == (
        Reason.UNAVAILABLE,
        'the backend greeted with: NO "Not today"',
    )


def test_a_connection_made_ready():
    """Without an order it gets as far as the capabilities; the order then costs one round trip."""
    conversation = Conversation(ORDER.unopened(MANAGESIEVE))
    conversation.hears(GREETING)
    assert conversation.said() == b""
    assert conversation.event() == Ready()
    conversation.take(conversation.half.open(ORDER.order))
    assert conversation.said() == PLAIN


@pytest.mark.parametrize("line", [b'BYE "Disconnected for inactivity."\r\n', b'"x"\r\n', b"OK\r\n", b"\r\n"])
def test_a_ready_backend_that_speaks_is_over(line):
    """Anything that comes while nobody has asked ends the connection."""
    conversation = Conversation(ORDER.unopened(MANAGESIEVE))
    conversation.hears(GREETING)
    assert conversation.event() == Ready()
    conversation.hears(line)
    refused = refusal(conversation)
    assert refused.reason is Reason.UNAVAILABLE
    assert refused.detail == "the backend spoke before a login: " + line.decode().removesuffix("\r\n")
