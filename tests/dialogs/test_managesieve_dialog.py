"""The client's side of ManageSieve, as transcripts."""

from __future__ import annotations

import pytest
from transcripts import OAUTHBEARER, XOAUTH2, attempt, b64, refuse

from mailroute.dialogs.common.dialog import MAX_AHEAD, MAX_COMMANDS
from mailroute.dialogs.managesieve.dialog import ManageSieveDialog
from mailroute.dialogs.managesieve.replies import FAREWELLS, REPLIES
from mailroute.events import (
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
from mailroute.wire.literal_reader import MAX_LINE
from mailroute.wire.sasl import MAX_RESPONSE
from mailroute.wire.sieve_syntax import MAX_QUOTED

CLEAR = DialogTerms(
    mechanisms=("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"), capabilities=("SIEVE fileinto reject",)
)
STARTTLS = DialogTerms(tls_offered=True, login_allowed=False, capabilities=("SIEVE fileinto",))
PLAIN = b'AUTHENTICATE "PLAIN" "AGJvYgBzZWNyZXQ="\r\n'


def talk(terms: DialogTerms = CLEAR) -> Conversation:
    return Conversation(ManageSieveDialog(terms))


def listed(said: bytes) -> dict[bytes, bytes]:
    """Return the capabilities in an answer, whose last line is OK."""
    *lines, last = said.splitlines()
    assert last.startswith(b"OK ")
    pairs = [line.split(b" ", 1) for line in lines]
    found = {pair[0].strip(b'"'): b"".join(pair[1:]) for pair in pairs}
    assert len(found) == len(lines)
    return found


def test_greeting_lists_the_capabilities():
    """The greeting has what RFC 5804 section 1.7 requires, each once, and ends with OK."""
    conversation = talk()
    conversation.take(conversation.half.greet())
    assert conversation.said() == (
        b'"IMPLEMENTATION" "mailroute"\r\n"SIEVE" "fileinto reject"\r\n'
        b'"SASL" "PLAIN LOGIN XOAUTH2 OAUTHBEARER"\r\n"VERSION" "1.0"\r\n'
        b'OK "mailroute ready."\r\n'
    )


def test_capabilities_of_the_listener_replace_the_usual_ones():
    """A name's value is the listener's if it has one; what is not known here is listed too."""
    words = ('IMPLEMENTATION A "B"', "sieve fileinto", "NOTIFY mailto", "RENAME")
    conversation = talk(DialogTerms(mechanisms=(), capabilities=words))
    conversation.hears(b"CAPABILITY\r\n")
    assert listed(conversation.said()) == {
        b"IMPLEMENTATION": rb'"A \"B\""',
        b"SIEVE": b'"fileinto"',
        b"NOTIFY": b'"mailto"',
        b"RENAME": b"",
        b"SASL": b'""',
        b"VERSION": b'"1.0"',
    }


def test_without_any_a_list_of_extensions_is_there():
    """A listener that says nothing of its backends lists what the common servers have."""
    conversation = talk(DialogTerms())
    conversation.hears(b"CAPABILITY\r\n")
    assert {b"fileinto", b"vacation"} <= set(listed(conversation.said())[b"SIEVE"].strip(b'"').split())


def test_starttls_lists_the_capabilities_again():
    """Before TLS no mechanism is listed and STARTTLS is; behind it, unasked, it is the other way round."""
    conversation = talk(STARTTLS)
    conversation.hears(b"capability\r\n")
    before = listed(conversation.said())
    assert (before[b"SASL"], before[b"STARTTLS"]) == (b'""', b"")
    conversation.hears(b"StartTLS\r\n")
    assert conversation.said() == b'OK "Begin TLS now."\r\n'
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    after = listed(conversation.said())
    assert after == {name: value for name, value in before.items() if name != b"STARTTLS"} | {
        b"SASL": b'"PLAIN LOGIN"'
    }
    conversation.hears(b"STARTTLS\r\n")
    assert conversation.said() == b'NO "TLS is already on."\r\n'


@pytest.mark.parametrize(
    ("mechanism", "message", "credentials"),
    [
        (b"PLAIN", b"\0bob\0s p", Credentials("PLAIN", b"bob", b"s p")),
        (b"plain", b"ann\0bob\0x", Credentials("PLAIN", b"bob", b"x", b"ann")),
        (b"PLAIN", b"\0bob\0" + b"x" * 3000, Credentials("PLAIN", b"bob", b"x" * 3000)),
        (b"XOAUTH2", XOAUTH2, Credentials("XOAUTH2", b"bob", XOAUTH2, proof=Proof.TOKEN)),
        (b"OAUTHBEARER", OAUTHBEARER, Credentials("OAUTHBEARER", b"bob", OAUTHBEARER, proof=Proof.TOKEN)),
    ],
)
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("literal", [b"+", b"", None])
@pytest.mark.parametrize("segment", [0, 1])
def test_authenticate(mechanism, message, credentials, initial, literal, segment):
    """Name and message may be quoted or literals, and the message in the command or behind a challenge."""

    def string(text):
        return b'"%s"' % text if literal is None else b"{%d%s}\r\n%s" % (len(text), literal, text)

    conversation = talk()
    command = b"Authenticate " + string(mechanism)
    if initial:
        conversation.hears(command + b" " + string(b64(message)) + b"\r\n", segment)
    else:
        conversation.hears(command + b"\r\n", segment)
        assert conversation.said() == b'""\r\n'
        conversation.hears(string(b64(message)) + b"\r\n", segment)
    assert conversation.said() == b""
    assert attempt(conversation) == credentials


def test_authenticate_login():
    """LOGIN prompts for the name and for the password, each as a string of base64."""
    conversation = talk()
    conversation.hears(b'AUTHENTICATE "LOGIN"\r\n')
    assert conversation.said() == b'"VXNlcm5hbWU6"\r\n'
    conversation.hears(b'"%s"\r\n' % b64(b"bob"))
    assert conversation.said() == b'"UGFzc3dvcmQ6"\r\n'
    conversation.hears(b"{0+}\r\n\r\n")
    assert attempt(conversation) == Credentials("LOGIN", b"bob", b"")


@pytest.mark.parametrize("segment", [0, 1, 7])
def test_what_is_pipelined_is_left_for_the_splice(segment):
    """What follows AUTHENTICATE is not read: it becomes the splice's first bytes, literal and all."""
    conversation = talk()
    behind = b'PUTSCRIPT "x" {9+}\r\nLOGOUT\r\n\0\r\nLISTSCRIPTS\r\n'
    conversation.hears(PLAIN + behind, segment)
    assert attempt(conversation) == Credentials("PLAIN", b"bob", b"secret")
    assert conversation.half.accept(LoggedIn(b"Logged in.")) == b'OK "Logged in."\r\n'
    assert conversation.half.rest() == behind
    assert conversation.said() == b""


def test_what_is_pipelined_behind_a_failed_login_is_answered():
    """If the login fails, the commands behind it are answered, in order."""
    conversation = talk()
    conversation.hears(PLAIN + b'LISTSCRIPTS\r\nNOOP "x"\r\n' + PLAIN)
    assert attempt(conversation).secret == b"secret"
    assert refuse(conversation) == (
        b'NO "Authentication failed."\r\n'
        b'NO "Unknown command, or not before login."\r\nOK (TAG "x") "Done."\r\n'
    )
    assert attempt(conversation).secret == b"secret"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (b"Logged in.", b'OK "Logged in."\r\n'),
        (b"", b'OK "Logged in."\r\n'),
        (b'(WARNINGS) a "b" \\c\r\nNO', b'OK "(WARNINGS) a \\"b\\" \\\\c??NO"\r\n'),
        (b"gr\xc3\xbc\xc3\x9fe \xff\xc3", b'OK "gr\xc3\xbc\xc3\x9fe "\r\n'),
    ],
)
def test_the_backends_words_are_one_quoted_string(text, answer):
    """Whatever the backend has said with its OK, the client gets one line, without a code it might obey."""
    conversation = talk()
    conversation.hears(PLAIN)
    assert conversation.half.accept(LoggedIn(text)) == answer


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"NOOP\r\n", b'OK "Done."\r\n'),
        (b'NOOP "sync 1"\r\n', b'OK (TAG "sync 1") "Done."\r\n'),
        (b'noop {6+}\r\na"b\\c)\r\n', b'OK (TAG "a\\"b\\\\c)") "Done."\r\n'),
        (b'NOOP ""\r\n', b'OK (TAG "") "Done."\r\n'),
        (b"NOOP {6+}\r\na\r\nOK \r\n", b'OK (TAG {6}\r\na\r\nOK ) "Done."\r\n'),
        (b"LOGOUT\r\n", b""),
    ],
)
def test_commands_before_the_login(command, answer):
    """NOOP gives its tag back, which a client may synchronise by (RFC 5804 section 2.13)."""
    conversation = talk()
    conversation.hears(command + b"LOGOUT\r\nNOOP\r\n")
    assert conversation.said() == answer + b'OK "Logging out."\r\n'
    assert conversation.event() == HangUp(Farewell.LOGGED_OUT)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b'AUTHENTICATE "PLAIN"\r\n"*"\r\n', b'""\r\nNO "Authentication aborted."\r\n'),
        (b'AUTHENTICATE "PLAIN"\r\n{1+}\r\n*\r\n', b'""\r\nNO "Authentication aborted."\r\n'),
        (b'AUTHENTICATE "PLAIN"\r\nAGJvYgBzZWNyZXQ=\r\n', b'""\r\nNO "Invalid base64."\r\n'),
        (b'AUTHENTICATE "PLAIN"\r\n"AGJvYgBz" "x"\r\n', b'""\r\nNO "Invalid base64."\r\n'),
        (b'AUTHENTICATE "PLAIN"\r\n\r\n', b'""\r\nNO "Invalid base64."\r\n'),
        (b'AUTHENTICATE "PLAIN" "!"\r\n', b'NO "Invalid base64."\r\n'),
        (b'AUTHENTICATE "PLAIN" "="\r\n', b'NO "Invalid PLAIN message."\r\n'),
        (b'AUTHENTICATE "PLAIN" ""\r\n', b'NO "Invalid PLAIN message."\r\n'),
        (b'AUTHENTICATE "PLAIN" "AGJv" "x"\r\n', b'NO "Unexpected argument."\r\n'),
        (b'AUTHENTICATE "PLAIN"{4+}\r\nAGJv\r\n', b'NO "Missing space behind an argument."\r\n'),
        (b'AUTHENTICATE "PLAIN\r\n', b'NO "Invalid quoted string."\r\n'),
        (b"AUTHENTICATE PLAIN\r\n", b'NO "Missing or invalid argument."\r\n'),
        (b"AUTHENTICATE\r\n", b'NO "Missing argument."\r\n'),
        (b'AUTHENTICATE "CRAM-MD5"\r\n', b'NO "Unsupported authentication mechanism."\r\n'),
        (b'AUTHENTICATE "\xff"\r\n', b'NO "Unsupported authentication mechanism."\r\n'),
        (b"LISTSCRIPTS\r\n", b'NO "Unknown command, or not before login."\r\n'),
        (b'PUTSCRIPT "a" {7+}\r\nLOGOUT\n\r\n', b'NO "Unknown command, or not before login."\r\n'),
        (b"XCLIENT ADDR=192.0.2.1\r\n", b'NO "Unknown command, or not before login."\r\n'),
        (b"NOOP x\r\n", b'NO "Missing or invalid argument."\r\n'),
        (b'NOOP "x" "y"\r\n', b'NO "Unexpected argument."\r\n'),
        (b"NOOP {3+}\r\na\0b\r\n", b'NO "NUL in a literal."\r\n'),
        (b"CAPABILITY x\r\n", b'NO "Unexpected argument."\r\n'),
        (b"STARTTLS\r\n", b'NO "STARTTLS is not offered here."\r\n'),
        (b'"NOOP"\r\n', b'NO "Invalid command."\r\n'),
        (b"\r\n", b'NO "Invalid command."\r\n'),
    ],
)
def test_what_makes_no_sense_is_refused(data, answer):
    """Each is answered by NO, in order, and the dialog goes on."""
    conversation = talk()
    conversation.hears(data + b"LOGOUT\r\n")
    assert conversation.said() == answer + b'OK "Logging out."\r\n'
    assert conversation.event() == HangUp(Farewell.LOGGED_OUT)


@pytest.mark.parametrize("tag", [b"\xff", b"a\n\xff", b"x" * (MAX_QUOTED + 1), b"\n" * (MAX_QUOTED + 1)])
def test_no_tag_without_sense_or_end_comes_back(tag):
    """A tag that is no text, or longer than a quoted string may be, is not given back."""
    conversation = talk()
    conversation.hears(b"NOOP {%d+}\r\n%s\r\n" % (len(tag), tag))
    assert conversation.said() == b'NO "The tag must be UTF-8, at most 1024 bytes long."\r\n'


@pytest.mark.parametrize("arguments", [b'"PLAIN" "AGJvYgBzZWNyZXQ="', b'"PLAIN"', b'"CRAM-MD5"', b""])
def test_no_login_in_the_clear(arguments):
    """Before TLS a login is refused with the code that says why."""
    conversation = talk(STARTTLS)
    conversation.hears(b"AUTHENTICATE %s\r\n" % arguments)
    assert conversation.said() == b'NO (ENCRYPT-NEEDED) "Logins need TLS. Use STARTTLS first."\r\n'
    assert conversation.events == []


@pytest.mark.parametrize("behind", [PLAIN, b"x", b"\r\n", b"{5+}\r\n"])
def test_nothing_may_follow_starttls(behind):
    """A command in the clear behind STARTTLS ends the connection (NO STARTTLS)."""
    conversation = talk(STARTTLS)
    conversation.hears(b"STARTTLS\r\n" + behind)
    assert conversation.said() == (
        b'NO "Nothing may follow STARTTLS."\r\nBYE "Nothing may follow STARTTLS before TLS is on."\r\n'
    )
    assert conversation.event() == HangUp(Farewell.INJECTION)
    conversation.hears(PLAIN)
    assert (conversation.said(), conversation.events) == (b"", [])


def test_nothing_in_the_clear_is_taken_during_the_handshake():
    """Bytes that come while TLS begins end the connection too."""
    conversation = talk(STARTTLS)
    conversation.hears(b"STARTTLS\r\n")
    assert conversation.event() == StartTLS()
    conversation.said()
    conversation.hears(PLAIN)
    assert conversation.said() == b'BYE "Nothing may follow STARTTLS before TLS is on."\r\n'
    assert conversation.event() == HangUp(Farewell.INJECTION)


def test_starttls_in_the_middle_of_authenticate_is_no_command():
    """In an exchange a line is a response, whatever it looks like."""
    conversation = talk(DialogTerms(tls_offered=True))
    conversation.hears(b'AUTHENTICATE "PLAIN"\r\nSTARTTLS\r\n')
    assert conversation.said() == b'""\r\nNO "Invalid base64."\r\n'
    assert conversation.events == []


def test_an_oauth_error_goes_out_as_a_challenge():
    """The backend's error document is shown, as a literal if long; the NO follows the client's answer."""
    for document in (b'{"status":"401"}', b"x" * 900):
        conversation = talk()
        conversation.hears(b'AUTHENTICATE "OAUTHBEARER" "%s"\r\n' % b64(OAUTHBEARER))
        attempt(conversation)
        encoded = b64(document)
        string = b'"%s"' % encoded if len(encoded) < 1024 else b"{%d}\r\n%s" % (len(encoded), encoded)
        assert refuse(conversation, challenge=document) == string + b"\r\n"
        conversation.hears(b'"AQ=="\r\n')
        assert conversation.said() == b'NO "Authentication failed."\r\n'


def test_a_browser_is_sent_away():
    """An HTTP request gets no echo and no second line."""
    conversation = talk()
    conversation.hears(b"POST / HTTP/1.1\r\n" + PLAIN)
    assert conversation.said() == b'BYE "This is a ManageSieve server."\r\n'
    assert conversation.event() == HangUp(Farewell.NOT_THIS_PROTOCOL)


@pytest.mark.parametrize(
    "data",
    [
        b"NOOP " + b"x" * MAX_LINE,
        b"NOOP {%d+}\r\n" % (MAX_RESPONSE + 1),
        b"NOOP {4294967296+}\r\n",
        b"NOOP" + b" {9000+}\r\n" + b"x" * 9000 + b" {9000+}\r\n",
        b"NOOP" + b" {0+}\r\n" * 65,
        b'AUTHENTICATE "PLAIN"\r\n{%d+}\r\n' % (MAX_RESPONSE + 1),
    ],
)
def test_what_is_over_a_bound_ends_the_connection(data):
    """Neither a line nor a literal nor both together may have more than their bounds."""
    conversation = talk()
    conversation.hears(data)
    assert conversation.said().endswith(b'BYE "Line or literal too long."\r\n')
    assert conversation.event() == HangUp(Farewell.TOO_LONG)


@pytest.mark.parametrize("initial", [True, False])
def test_the_longest_token_is_taken(initial):
    """A SASL response may have MAX_RESPONSE bytes of base64, in the command or behind it."""
    message = b"user=bob\1auth=Bearer ".ljust(MAX_RESPONSE // 4 * 3 - 2, b"t") + b"\1\1"
    literal = b"{%d+}\r\n%s\r\n" % (MAX_RESPONSE, b64(message))
    conversation = talk()
    conversation.hears(b'AUTHENTICATE "XOAUTH2"' + (b" " if initial else b"\r\n") + literal)
    assert attempt(conversation).secret == message


def test_too_many_commands_end_the_connection():
    """As many as configured may be bad, and MAX_COMMANDS there may be at all."""
    conversation = talk(DialogTerms(bad_commands=2))
    conversation.hears(b"LISTSCRIPTS\r\nx\r\nNOOP\r\n")
    assert conversation.said().endswith(b'BYE "Too many bad commands."\r\n')
    assert conversation.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)
    conversation = talk()
    conversation.hears(b"NOOP\r\n" * (MAX_COMMANDS + 1))
    assert conversation.said().endswith(b'BYE "Too many commands before login."\r\n')
    assert conversation.event() == HangUp(Farewell.TOO_MANY_COMMANDS)


def test_more_ahead_than_a_reads_worth_ends_the_connection():
    """What may wait behind a login is bounded."""
    conversation = talk()
    conversation.hears(PLAIN)
    attempt(conversation)
    conversation.hears(b"x" * (MAX_AHEAD + 1))
    assert conversation.event() == HangUp(Farewell.TOO_LONG)
    assert conversation.said() == b'BYE "Line or literal too long."\r\n'


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (None, None),
        (b"(TRYLATER) Later", b'NO (TRYLATER) "Later"\r\n'),
        (b"(QUOTA/MAXSIZE) Full", b'NO (QUOTA/MAXSIZE) "Full"\r\n'),
        (b'(x "y") a\r\nOK', b'NO "(x \\"y\\") a??OK"\r\n'),
        (b"no code", b'NO "no code"\r\n'),
    ],
)
@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason, reply, said):
    """Each refusal is one NO, with a code where there is one; the backend's own words replace ours."""
    conversation = talk()
    conversation.hears(PLAIN)
    attempt(conversation)
    answer = refuse(conversation, reason=reason, reply=reply)
    if said is not None:
        assert answer == said
        return
    code, _, text = REPLIES[reason].rpartition(b") ")
    assert answer == b"NO " + (code + b") " if code else b"") + b'"%s"\r\n' % text


@pytest.mark.parametrize("why", Farewell)
def test_every_farewell_has_words(why):
    """Whatever the reason to send a client away, it is told in one line: BYE, and only LOGOUT's is OK."""
    code, _, text = FAREWELLS[why].rpartition(b") ")
    word = b"OK " if why is Farewell.LOGGED_OUT else b"BYE "
    assert talk().half.farewell(why) == word + (code + b") " if code else b"") + b'"%s"\r\n' % text
