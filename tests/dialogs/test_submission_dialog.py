"""The client's side of mail submission, as transcripts."""

from __future__ import annotations

import pytest
from transcripts import OAUTHBEARER, XOAUTH2, attempt, b64, greeted, refuse, told

from mailroute.dialogs.common.dialog import MAX_COMMANDS
from mailroute.dialogs.smtp import SUBMISSION
from mailroute.dialogs.smtp.dialect import TOKEN, Seam
from mailroute.dialogs.smtp.submission import MAX_LINE, REPLIES
from mailroute.events import (
    Attempt,
    Credentials,
    DialogTerms,
    Farewell,
    HangUp,
    LoggedIn,
    Proof,
    Reason,
    StartTLS,
)
from mailroute.testing import Conversation
from mailroute.wire.sasl import MAX_RESPONSE

CLEAR = DialogTerms(mechanisms=("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"), host_name="mx.example")
STARTTLS = DialogTerms(tls_offered=True, login_allowed=False, host_name="mx.example")
BEFORE = b"250-mx.example\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n"
PLAIN = b"\0bob\0secret"


def talk(terms: DialogTerms = CLEAR, hello: bytes = b"EHLO me.example\r\n") -> Conversation:
    """Return a conversation in which the client has said who it is."""
    return greeted(Conversation(SUBMISSION.dialog(terms)), hello)


def test_greeting_and_ehlo():
    """The greeting names the host; EHLO tells STARTTLS before it and AUTH behind it, and is forgotten."""
    conversation = Conversation(SUBMISSION.dialog(STARTTLS))
    conversation.take(conversation.half.greet())
    assert conversation.said() == b"220 mx.example ESMTP mailroute %s ready\r\n" % TOKEN
    assert told(conversation, b"ehlo me") == BEFORE + b"250-8BITMIME\r\n250-SIZE\r\n250 STARTTLS\r\n"
    assert told(conversation, b"STARTTLS") == b"220 2.0.0 Begin TLS\r\n"
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    assert told(conversation, b"AUTH PLAIN") == b"503 5.5.1 Say EHLO first\r\n"
    assert told(conversation, b"EHLO me") == BEFORE + b"250-8BITMIME\r\n250-SIZE\r\n250 AUTH PLAIN LOGIN\r\n"
    assert told(conversation, b"STARTTLS") == b"503 5.5.1 TLS is already on\r\n"
    assert told(conversation, b"HELO me") == b"250 mx.example\r\n"


def test_what_the_backends_have_is_announced():
    """What the listener says takes the place of the usual; without mechanisms there is no AUTH."""
    terms = DialogTerms(mechanisms=(), capabilities=("SIZE 1000", "DSN", "CHUNKING"), host_name="mx.example")
    assert told(talk(terms), b"EHLO me") == BEFORE + b"250-SIZE 1000\r\n250-DSN\r\n250 CHUNKING\r\n"


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize(
    ("mechanism", "messages", "credentials"),
    [
        ("PLAIN", [PLAIN], Credentials("PLAIN", b"bob", b"secret")),
        ("PLAIN", [b"alice" + PLAIN], Credentials("PLAIN", b"bob", b"secret", b"alice")),
        ("LOGIN", [b"bob", b"secret"], Credentials("LOGIN", b"bob", b"secret")),
        ("XOAUTH2", [XOAUTH2], Credentials("XOAUTH2", b"bob", XOAUTH2, proof=Proof.TOKEN)),
        ("OAUTHBEARER", [OAUTHBEARER], Credentials("OAUTHBEARER", b"bob", OAUTHBEARER, proof=Proof.TOKEN)),
    ],
)
def test_auth(mechanism, messages, credentials, initial):
    """Each mechanism is taken with and without an initial response, and the seam has the client's name."""
    conversation = talk()
    encoded = [b64(message) for message in messages]
    line = b"auth " + mechanism.lower().encode()
    prompts = [b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n"] if mechanism == "LOGIN" else [b"334 \r\n"]
    if initial:
        line, prompts = line + b" " + encoded.pop(0), prompts[1:]
    said = told(conversation, line)
    for message in encoded:
        assert said == prompts.pop(0)
        said = told(conversation, message)
    assert said == b""
    event = conversation.event()
    assert event == Attempt(credentials, Seam("mx.example", b"me.example"))
    assert conversation.half.accept(LoggedIn(b"2.7.0 Hello bob")) == b"235 2.7.0 Hello bob\r\n"


def test_an_empty_initial_response():
    """A "=" is a message of no bytes, which no mechanism here takes; LOGIN takes it for a name."""
    conversation = talk()
    assert told(conversation, b"AUTH PLAIN =") == b"501 5.5.2 Invalid PLAIN message.\r\n"
    assert told(conversation, b"AUTH LOGIN =") == b"334 UGFzc3dvcmQ6\r\n"
    assert told(conversation, b"*") == b"501 5.5.2 Authentication aborted.\r\n"
    assert told(conversation, b"NOOP") == b"250 2.0.0 Nothing done\r\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"AUTH", b"501 5.5.4"),
        (b"AUTH PLAIN a b", b"501 5.5.4"),
        (b"AUTH CRAM-MD5", b"504 5.5.4"),
        (b"AUTH \xff", b"504 5.5.4"),
        (b"AUTH PLAIN $$$$", b"501 5.5.2"),
        (b"AUTH PLAIN AGJvYgBz=", b"501 5.5.2"),
        (b"STARTTLS", b"502 5.5.1"),
        (b"STARTTLS x", b"501 5.5.4"),
        (b"EHLO", b"501 5.5.4"),
        (b"EHLO " + b"x" * 256, b"501 5.5.4"),
        (b"MAIL FROM:<a@b.example>", b"530 5.7.0"),
        (b"RCPT TO:<a@b.example>", b"530 5.7.0"),
        (b"DATA", b"530 5.7.0"),
        (b"VRFY bob", b"530 5.7.0"),
        (b"EXPN all", b"530 5.7.0"),
        (b"XCLIENT ADDR=192.0.2.1", b"502 5.5.1"),
        (b"RSET", b"250 2.0.0"),
        (b"HELP me", b"214 2.0.0"),
        (b"LHLO me", b"500 5.5.2"),
        (b"", b"500 5.5.2"),
        (b"NOOP\nQUIT", b"500 5.5.2"),
        (b"EHLO a\rb", b"500 5.5.2"),
        (b"EHLO a\0b", b"500 5.5.2"),
    ],
)
def test_other_commands(line, code):
    """Each has one answer, with a code and an enhanced one."""
    said = told(talk(), line)
    assert said.startswith(code + b" ")
    assert said.count(b"\r\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"MAIL FROM:<a@b.example>", b"530 5.7.0 Must issue a STARTTLS command first\r\n"),
        (b"AUTH PLAIN " + b64(PLAIN), REPLIES[Reason.PRIVACY_REQUIRED] + b"\r\n"),
        (b"AUTH LOGIN", REPLIES[Reason.PRIVACY_REQUIRED] + b"\r\n"),
    ],
)
def test_before_tls(line, said):
    """Where logins need TLS, nothing but STARTTLS leads on, and no password is asked for."""
    conversation = talk(STARTTLS)
    assert told(conversation, line) == said
    assert conversation.events == []


@pytest.mark.parametrize("segment", [0, 1, 7])
def test_what_is_behind_a_login_is_left_for_the_splice(segment):
    """What a client sends with its AUTH is the first that the backend gets, whatever it is."""
    conversation = talk()
    behind = b"MAIL FROM:<a@b.example>\r\nnonsense\n\r\0"
    conversation.hears(b"AUTH PLAIN %s\r\n%s" % (b64(PLAIN), behind), segment)
    assert attempt(conversation).secret == b"secret"
    assert conversation.half.accept(LoggedIn(None)) == b"235 2.7.0 Logged in\r\n"
    assert conversation.half.rest() == behind


def test_what_is_behind_a_failed_login_is_answered():
    """After a refusal the client's next commands are read, and it may try again."""
    conversation = talk()
    conversation.hears(b"AUTH PLAIN %s\r\nNOOP\r\nAUTH PLAIN %s\r\n" % (b64(b"\0bob\0x"), b64(PLAIN)))
    assert attempt(conversation).secret == b"x"
    assert refuse(conversation) == b"535 5.7.8 Authentication failed\r\n250 2.0.0 Nothing done\r\n"
    assert attempt(conversation).secret == b"secret"
    assert refuse(conversation, reply=b"534 5.7.9 Another password, please") == (
        b"534 5.7.9 Another password, please\r\n"
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_words(reason):
    """Each refusal is a reply of 4xx or 5xx, with an enhanced code of the same class."""
    code, enhanced, _ = REPLIES[reason].split(b" ", 2)
    assert code[:1] == enhanced[:1]
    assert code[:1] in (b"4", b"5")


def test_an_oauth_servers_error():
    """Its document goes out as a challenge, and the exchange fails once the client has acknowledged it."""
    conversation = talk()
    conversation.hears(b"AUTH OAUTHBEARER %s\r\n" % b64(OAUTHBEARER))
    attempt(conversation)
    assert refuse(conversation, challenge=b'{"status":"x"}') == b"334 eyJzdGF0dXMiOiJ4In0=\r\n"
    assert told(conversation, b"AQ==") == b"535 5.7.8 Authentication failed\r\n"


@pytest.mark.parametrize("behind", [b"EHLO x\r\n", b"x", b"\r\n"])
def test_nothing_may_follow_starttls(behind):
    """Text in the clear behind STARTTLS, in the same segment or the next, ends the connection."""
    conversation = talk(STARTTLS)
    conversation.hears(b"STARTTLS\r\n" + behind)
    assert conversation.event() == HangUp(Farewell.INJECTION)
    conversation = talk(STARTTLS)
    conversation.hears(b"STARTTLS\r\n")
    assert conversation.event() == StartTLS()
    conversation.hears(behind)
    assert conversation.event() == HangUp(Farewell.INJECTION)


def test_starttls_within_an_exchange():
    """In the middle of AUTH it is no command, but what the client answers."""
    conversation = talk(DialogTerms(tls_offered=True))
    conversation.hears(b"AUTH LOGIN\r\nSTARTTLS\r\n")
    assert conversation.said().endswith(b"\r\n334 UGFzc3dvcmQ6\r\n")
    assert conversation.events == []


def test_a_chunk_before_the_login_ends_the_connection():
    """A chunk's bytes are never taken for commands: nobody logs in with what a message says."""
    conversation = talk()
    conversation.hears(b"BDAT 30 LAST\r\nAUTH PLAIN %s\r\n" % b64(PLAIN))
    assert conversation.said().startswith(b"530 5.7.0 Authentication required\r\n421 ")
    assert conversation.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)


@pytest.mark.parametrize(
    ("sent", "why", "last"),
    [
        (b"QUIT\r\n", Farewell.LOGGED_OUT, b"221 2.0.0 "),
        (b"x\r\n" * 5, Farewell.TOO_MANY_BAD_COMMANDS, b"421 4.7.0 "),
        (b"MAIL FROM:<>\r\n" * 5, Farewell.TOO_MANY_BAD_COMMANDS, b"421 4.7.0 "),
        (b"NOOP\r\n" * (MAX_COMMANDS + 1), Farewell.TOO_MANY_COMMANDS, b"421 4.7.0 "),
        (b"x" * (MAX_LINE + 2), Farewell.TOO_LONG, b"500 5.5.2 "),
        (b"AUTH LOGIN\r\n" + b"x" * (MAX_RESPONSE + 2), Farewell.TOO_LONG, b"500 5.5.6 "),
        (b"POST / HTTP/1.1\r\n", Farewell.NOT_THIS_PROTOCOL, b"500 5.5.2 "),
    ],
)
def test_ends(sent, why, last):
    """Whoever is sent away hears why, and nothing that follows is read."""
    conversation = talk()
    conversation.hears(sent)
    assert conversation.event() == HangUp(why)
    assert conversation.said().splitlines()[-1].startswith(last)
    conversation.hears(b"NOOP\r\n")
    assert conversation.said() == b""


@pytest.mark.parametrize("why", list(Farewell))
def test_every_farewell_has_words(why):
    """Whatever ends a connection, there is one line for it."""
    assert talk().half.farewell(why).count(b"\r\n") == 1
