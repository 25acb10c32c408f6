"""The client's side of POP3, as transcripts."""

from __future__ import annotations

import base64

import pytest
from authenticating import ScramClient
from transcripts import OAUTHBEARER, XOAUTH2, attempt, b64, refuse

from mailroute.dialogs.pop3.dialog import MAX_LINE, Pop3Dialog
from mailroute.dialogs.pop3.replies import FAREWELLS, REPLIES
from mailroute.events import (
    Credentials,
    DialogTerms,
    Farewell,
    HangUp,
    KeysWanted,
    LoggedIn,
    Reason,
    StartTLS,
)
from mailroute.proofs import Proof
from mailroute.testing import Conversation
from mailroute.wire.scram import make_keys

CLEAR = DialogTerms(mechanisms=("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"))
STLS = DialogTerms(tls_offered=True, login_allowed=False)
BEFORE = b"+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\n"


def talk(terms: DialogTerms = CLEAR) -> Conversation:
    return Conversation(Pop3Dialog(terms))


def test_greeting_offers_no_apop():
    """The greeting has no timestamp, so that no client tries APOP."""
    conversation = talk()
    conversation.take(conversation.half.greet())
    assert conversation.said() == b"+OK mailroute ready.\r\n"
    conversation.hears(b"APOP bob c4c9334bac560ecc979e58001b3e22fb\r\n")
    assert conversation.said().startswith(b"-ERR ")


def test_capa_lists_what_works():
    """CAPA tells STLS before it and the ways to log in behind it, and only those that work now."""
    conversation = talk(STLS)
    conversation.hears(b"CAPA\r\n")
    assert conversation.said() == BEFORE + b"STLS\r\n.\r\n"
    conversation.hears(b"stls\r\n")
    assert conversation.said() == b"+OK Begin TLS now.\r\n"
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    conversation.hears(b"capa \r\n")
    assert conversation.said() == BEFORE + b"USER\r\nSASL PLAIN LOGIN\r\n.\r\n"
    conversation.hears(b"STLS\r\n")
    assert conversation.said() == b"-ERR TLS is already on.\r\n"


def test_capabilities_of_the_listener_are_announced():
    """What the configuration adds is listed; without mechanisms there is no SASL."""
    conversation = talk(DialogTerms(mechanisms=(), capabilities=("UTF8",)))
    conversation.hears(b"CAPA\r\n")
    assert conversation.said() == BEFORE + b"UTF8\r\nUSER\r\n.\r\n"


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"bob", b"secret"),
        (b"bob the builder", b" two words "),
        (b"bob", b""),
        (b"b\xc3\xb6b", b"p\xe4ss"),
    ],
)
def test_user_and_pass(user, password):
    """USER and PASS take the whole rest of their lines, whatever is in it."""
    conversation = talk()
    conversation.hears(b"USER %s\r\n" % user)
    assert conversation.said() == b"+OK Send the password.\r\n"
    conversation.hears(b"pass %s\r\n" % password)
    assert conversation.said() == b""
    assert attempt(conversation) == Credentials("USER", user, password)


@pytest.mark.parametrize("segment", [0, 1, 7])
def test_what_is_pipelined_is_left_for_the_splice(segment):
    """A client that sends USER, PASS and STAT together gets STAT answered by the backend."""
    conversation = talk()
    conversation.hears(b"USER bob\r\nPASS secret\r\nSTAT\r\nQUIT\r\n", segment)
    assert attempt(conversation) == Credentials("USER", b"bob", b"secret")
    assert conversation.half.accept(LoggedIn(b"Logged in as bob.")) == b"+OK Logged in as bob.\r\n"
    assert conversation.half.rest() == b"STAT\r\nQUIT\r\n"


def test_what_is_pipelined_behind_a_failed_login_is_answered():
    """If the login fails, the commands behind it are answered, in order."""
    conversation = talk()
    conversation.hears(b"USER bob\r\nPASS wrong\r\nSTAT\r\nUSER bob\r\nPASS right\r\n")
    assert attempt(conversation).secret == b"wrong"
    conversation.said()
    assert refuse(conversation) == (
        b"-ERR [AUTH] Authentication failed.\r\n"
        b"-ERR Unknown command, or not before login.\r\n+OK Send the password.\r\n"
    )
    assert attempt(conversation).secret == b"right"


@pytest.mark.parametrize("between", [b"", b"PASS a\r\n", b"AUTH\r\n", b"USER\r\n", b"USER a\rb\r\n"])
def test_a_name_is_for_one_try(between):
    """PASS without a USER of its own is refused: no name outlives its try."""
    conversation = talk()
    conversation.hears(b"USER bob\r\n" * bool(between) + between)
    if conversation.events:
        attempt(conversation)
        refuse(conversation)
    conversation.said()
    conversation.hears(b"PASS secret\r\n")
    assert conversation.said() == b"-ERR USER comes before PASS.\r\n"
    assert conversation.events == []


def test_a_name_does_not_outlive_stls():
    """A USER from before TLS counts for nothing after it."""
    conversation = talk(DialogTerms(tls_offered=True))
    conversation.hears(b"USER mallory\r\nSTLS\r\n")
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    conversation.said()
    conversation.hears(b"PASS secret\r\n")
    assert conversation.said() == b"-ERR USER comes before PASS.\r\n"


@pytest.mark.parametrize(
    ("command", "credentials"),
    [
        (b"AUTH PLAIN", Credentials("PLAIN", b"bob", b"s p")),
        (b"auth plain", Credentials("PLAIN", b"bob", b"s p")),
        (b"AUTH XOAUTH2", Credentials("XOAUTH2", b"bob", XOAUTH2, proof=Proof.TOKEN)),
        (b"AUTH OAUTHBEARER", Credentials("OAUTHBEARER", b"bob", OAUTHBEARER, proof=Proof.TOKEN)),
    ],
)
@pytest.mark.parametrize("initial", [True, False])
def test_auth_with_and_without_an_initial_response(command, credentials, initial):
    """Each mechanism of one message takes it on AUTH's line or behind the ``+``."""
    message = b64(credentials.secret if credentials.proof is Proof.TOKEN else b"\0bob\0s p")
    conversation = talk()
    if initial:
        conversation.hears(command + b" " + message + b"\r\n")
    else:
        conversation.hears(command + b"\r\n")
        assert conversation.said() == b"+ \r\n"
        conversation.hears(message + b"\r\n")
    assert conversation.said() == b""
    assert attempt(conversation) == credentials


def test_auth_login():
    """AUTH LOGIN prompts for the name, unless that came along, and for the password."""
    conversation = talk()
    conversation.hears(b"AUTH LOGIN\r\n")
    assert conversation.said() == b"+ VXNlcm5hbWU6\r\n"
    conversation.hears(b64(b"bob") + b"\r\n")
    assert conversation.said() == b"+ UGFzc3dvcmQ6\r\n"
    conversation.hears(b64(b"secret") + b"\r\n")
    assert attempt(conversation) == Credentials("LOGIN", b"bob", b"secret")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"AUTH PLAIN\r\n*\r\n", b"+ \r\n-ERR Authentication aborted.\r\n"),
        (b"AUTH PLAIN !\r\n", b"-ERR Invalid base64.\r\n"),
        (b"AUTH PLAIN =\r\n", b"-ERR Invalid PLAIN message.\r\n"),
        (b"AUTH PLAIN a b\r\n", b"-ERR Too many arguments.\r\n"),
        (b"AUTH CRAM-MD5\r\n", b"-ERR Unsupported authentication mechanism.\r\n"),
        (b"AUTH \xff\r\n", b"-ERR Unsupported authentication mechanism.\r\n"),
        (b"AUTH\r\n", b"+OK\r\nPLAIN\r\nLOGIN\r\nXOAUTH2\r\nOAUTHBEARER\r\n.\r\n"),
        (b"NOOP\r\n", b"-ERR Unknown command, or not before login.\r\n"),
        (b"CAPA x\r\n", b"-ERR Too many arguments.\r\n"),
        (b"STLS\r\n", b"-ERR STLS is not offered here.\r\n"),
        (b"USER\r\n", b"-ERR USER needs a name.\r\n"),
        (b"USER b\0b\r\n", b"-ERR Neither CR nor NUL may stand in a line.\r\n"),
        (b"\r\n", b"-ERR Unknown command, or not before login.\r\n"),
    ],
)
def test_what_makes_no_sense_is_an_error(data, answer):
    """Each is answered, in order, and the dialog goes on."""
    conversation = talk()
    conversation.hears(data + b"QUIT\r\n")
    assert conversation.said() == answer + b"+OK Logging out.\r\n"
    assert conversation.event() == HangUp(Farewell.LOGGED_OUT)


def test_a_carriage_return_in_a_password_is_refused():
    """A bare CR could become a second command at a backend: it goes no further."""
    conversation = talk()
    conversation.hears(b"USER bob\r\nPASS a\rDELE 1\r\n")
    assert conversation.said().endswith(b"-ERR Neither CR nor NUL may stand in a line.\r\n")
    assert conversation.events == []


@pytest.mark.parametrize("command", [b"USER bob", b"PASS secret", b"AUTH PLAIN AGJvYgBz", b"AUTH PLAIN"])
def test_no_login_in_the_clear(command):
    """Before TLS a login is refused, at USER already, without the code that means a wrong password."""
    conversation = talk(STLS)
    conversation.hears(command + b"\r\nAUTH\r\n")
    assert conversation.said() == b"-ERR Logins need TLS. Use STLS first.\r\n+OK\r\n.\r\n"
    assert conversation.events == []


@pytest.mark.parametrize("behind", [b"USER bob\r\n", b"x", b"\r\n"])
def test_nothing_may_follow_stls(behind):
    """A command in the clear behind STLS ends the connection (NO STARTTLS)."""
    conversation = talk(STLS)
    conversation.hears(b"STLS\r\n" + behind)
    assert conversation.said() == (
        b"-ERR Nothing may follow STLS.\r\n-ERR Nothing may follow STLS before TLS is on.\r\n"
    )
    assert conversation.event() == HangUp(Farewell.INJECTION)


def test_an_oauth_error_goes_out_as_a_challenge():
    """The backend's error document is shown, and the failure told once the client has answered it."""
    conversation = talk()
    conversation.hears(b"AUTH OAUTHBEARER " + b64(OAUTHBEARER) + b"\r\n")
    attempt(conversation)
    assert refuse(conversation, challenge=b'{"status":"401"}') == b"+ " + b64(b'{"status":"401"}') + b"\r\n"
    conversation.hears(b"AQ==\r\n")
    assert conversation.said() == b"-ERR [AUTH] Authentication failed.\r\n"


def test_a_browser_is_sent_away():
    """An HTTP request gets no echo and no second line."""
    conversation = talk()
    conversation.hears(b"POST / HTTP/1.1\r\nUSER bob\r\n")
    assert conversation.said() == b"-ERR This is a POP3 server.\r\n"
    assert conversation.event() == HangUp(Farewell.NOT_THIS_PROTOCOL)


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_line_over_the_bound_ends_the_connection(end):
    """A line may have MAX_LINE bytes, and not many more."""
    conversation = talk()
    conversation.hears(b"USER " + b"x" * (MAX_LINE - 6) + b"\r\n")
    assert conversation.said() == b"+OK Send the password.\r\n"
    conversation.hears(b"USER " + b"x" * MAX_LINE + end)
    assert conversation.said() == b"-ERR Line too long.\r\n"
    assert conversation.event() == HangUp(Farewell.TOO_LONG)


def test_too_many_bad_commands_end_the_connection():
    """As many as configured are answered, then the client is sent away."""
    conversation = talk(DialogTerms(bad_commands=2))
    conversation.hears(b"NOOP\r\nSTAT\r\nCAPA\r\n")
    assert conversation.said().endswith(b"-ERR Too many bad commands.\r\n")
    assert conversation.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason):
    """Each refusal is one -ERR line; the backend's own words replace ours."""
    conversation = talk()
    for words, expected in [({}, REPLIES[reason]), ({"reply": b"[SYS/TEMP] Later"}, b"[SYS/TEMP] Later")]:
        conversation.hears(b"USER bob\r\nPASS secret\r\n")
        attempt(conversation)
        conversation.said()
        assert refuse(conversation, reason=reason, **words) == b"-ERR " + expected + b"\r\n"


@pytest.mark.parametrize("why", Farewell)
def test_every_farewell_has_words(why):
    """Whatever the reason to send a client away, it is told in one line."""
    assert talk().half.farewell(why) == FAREWELLS[why] + b"\r\n"


def test_where_no_password_can_be_right_none_is_asked_for() -> None:
    """USER is neither listed nor taken where nobody could check a password."""
    talk = Conversation(Pop3Dialog(DialogTerms(mechanisms=("XOAUTH2",), passwords=False)))
    talk.hears(b"CAPA\r\n")
    assert b"\r\nUSER" not in talk.said()
    talk.hears(b"USER bob\r\nPASS secret\r\n")
    assert talk.said().count(b"-ERR Unsupported authentication mechanism.\r\n") == 2
    assert not talk.events


def test_scram_and_certificates_by_pop3() -> None:
    """What a connection is good for is listed by CAPA, and its exchanges run line by line."""
    terms = DialogTerms(
        mechanisms=("SCRAM-SHA-256",), certified=("EXTERNAL",), bound=("SCRAM-SHA-256-PLUS",), passwords=False
    )
    talk = Conversation(Pop3Dialog(terms))
    talk.half.certified()
    talk.half.bound(b"b" * 32)
    talk.hears(b"CAPA\r\n")
    assert b"\r\nSASL SCRAM-SHA-256-PLUS EXTERNAL SCRAM-SHA-256\r\n" in talk.said()
    client = ScramClient("SCRAM-SHA-256-PLUS", header=b"p=tls-exporter,,", binding=b"b" * 32)
    talk.hears(b"AUTH SCRAM-SHA-256-PLUS\r\n" + base64.b64encode(client.first()) + b"\r\n")
    assert talk.said() == b"+ \r\n"
    assert isinstance(talk.event(), KeysWanted)
    talk.take(talk.half.keys(make_keys("sha256", b"pencil", b"saltsalt", 10)))
    talk.hears(base64.b64encode(client.final(base64.b64decode(talk.said()[2:]))) + b"\r\n")
    assert base64.b64decode(talk.said()[2:]).startswith(b"v=")
    talk.hears(b"\r\n")
    assert talk.event().credentials.user == b"bob"
