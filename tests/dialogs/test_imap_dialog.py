"""The client's side of IMAP, as transcripts."""

from __future__ import annotations

import base64

import pytest
from authenticating import ScramClient
from transcripts import attempt, b64, refuse

from mailroute.dialogs.common.dialog import MAX_AHEAD, MAX_COMMANDS
from mailroute.dialogs.imap.dialog import ImapDialog
from mailroute.dialogs.imap.seam import Hello, Welcome
from mailroute.events import (
    Credentials,
    DialogTerms,
    Farewell,
    HangUp,
    KeysWanted,
    LoggedIn,
    Reason,
    Refusal,
    StartTLS,
)
from mailroute.proofs import Proof
from mailroute.testing import Conversation
from mailroute.wire.scram import make_keys, proves

CLEAR = DialogTerms(mechanisms=("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"))
STARTTLS = DialogTerms(tls_offered=True, login_allowed=False)
ALL = b"IMAP4rev1 LITERAL+ SASL-IR ID AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=OAUTHBEARER"


def talk(terms: DialogTerms = CLEAR) -> Conversation:
    return Conversation(ImapDialog(terms))


def test_greeting_lists_what_works():
    """The greeting carries the capabilities, and only those that work now."""
    clear, starttls = talk(), talk(STARTTLS)
    clear.take(clear.half.greet())
    starttls.take(starttls.half.greet())
    assert clear.said() == b"* OK [CAPABILITY " + ALL + b"] mailroute ready.\r\n"
    assert starttls.said() == (
        b"* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID STARTTLS LOGINDISABLED] mailroute ready.\r\n"
    )


def test_capabilities_of_the_listener_are_announced():
    """What the configuration adds to the capabilities is announced."""
    conversation = talk(DialogTerms(mechanisms=(), capabilities=("ENABLE", "IDLE")))
    conversation.hears(b"a CAPABILITY\r\n")
    assert conversation.said() == b"* CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE\r\na OK Done.\r\n"


def test_simple_commands():
    """CAPABILITY, NOOP and LOGOUT are answered with their tag; LOGOUT ends the connection."""
    conversation = talk()
    conversation.hears(b"a1 CAPABILITY\r\na2 noop\r\na3 LogOut\r\na4 NOOP\r\n")
    assert conversation.said() == (
        b"* CAPABILITY " + ALL + b"\r\na1 OK Done.\r\na2 OK Done.\r\n* BYE Logging out.\r\na3 OK Done.\r\n"
    )
    assert conversation.event() == HangUp(Farewell.LOGGED_OUT)


def test_bare_line_feeds_end_lines():
    """A line may end in a bare LF, as every server allows."""
    conversation = talk()
    conversation.hears(b"a NOOP\n")
    assert conversation.said() == b"a OK Done.\r\n"


@pytest.mark.parametrize(
    ("command", "pairs"),
    [
        (b"ID NIL", ()),
        (b"ID ()", ()),
        (b'ID ("name" "Mail" "version" NIL)', ((b"name", b"Mail"),)),
        (b'id ("name" {4+}\r\nMail "x" "")', ((b"name", b"Mail"), (b"x", b""))),
    ],
)
def test_id_is_answered_and_remembered(command, pairs):
    """ID before login is answered, and its pairs go to the backend's login."""
    conversation = talk()
    conversation.hears(b"a " + command + b"\r\nb LOGIN u p\r\n")
    assert conversation.said() == b'* ID ("name" "mailroute")\r\na OK Done.\r\n'
    assert conversation.event().seam == Hello(pairs)


@pytest.mark.parametrize(
    "command",
    [
        b"ID",
        b'ID "name"',
        b'ID ("name")',
        b'ID ("a" "b"',
        b"ID " + b"(" * 4000,
        b"ID (" + b" ".join(b'"k%d" "v"' % n for n in range(31)) + b")",
        b'ID ("%s" "v")' % (b"k" * 31),
        b'ID ("k" "%s")' % (b"v" * 1025),
    ],
)
def test_id_out_of_bounds_is_bad(command):
    """An ID that is malformed or over RFC 2971's bounds is answered BAD, parenthesis floods included."""
    conversation = talk()
    conversation.hears(b"a " + command + b"\r\n")
    assert conversation.said().startswith(b"a BAD ")


@pytest.mark.parametrize(
    ("arguments", "user", "password"),
    [
        (b"bob secret", b"bob", b"secret"),
        (b'"bob" "sec ret"', b"bob", b"sec ret"),
        (b'"b\\"o\\\\b" p', b'b"o\\b', b"p"),
        (b"{3+}\r\nbob {6+}\r\nsecret", b"bob", b"secret"),
        (b'"bob" {6+}\r\nsecret', b"bob", b"secret"),
        (b'{3+}\r\nbob "secret"', b"bob", b"secret"),
        (b"{3+}\r\nbob secret", b"bob", b"secret"),
        (b'bob ""', b"bob", b""),
        (b"bob {0+}\r\n", b"bob", b""),
        (b'bob {5+}\r\na\\\r\n"', b"bob", b'a\\\r\n"'),
        (b'bob "p\xc3\xa4ss"', b"bob", "päss".encode()),
        (b"bob p\xe4ss%*]", b"bob", b"p\xe4ss%*]"),
        (b"DOMAIN\\bob p", b"DOMAIN\\bob", b"p"),
        (b"bob  secret ", b"bob", b"secret"),
    ],
)
def test_login_arguments(arguments, user, password):
    """LOGIN takes atoms, quoted strings with escapes and literals in any mix, 8-bit bytes included."""
    conversation = talk()
    conversation.hears(b"a LOGIN " + arguments + b"\r\n")
    assert conversation.said() == b""
    assert attempt(conversation) == Credentials("LOGIN", user, password)


def test_synchronising_literals_are_asked_for():
    """A synchronising literal gets its go-ahead, one after the other."""
    conversation = talk()
    conversation.hears(b"a LOGIN {3}\r\n")
    assert conversation.said() == b"+ OK\r\n"
    conversation.hears(b"bob {6}\r\n")
    assert conversation.said() == b"+ OK\r\n"
    conversation.hears(b"sec")
    assert conversation.events == []
    conversation.hears(b"ret\r\n")
    assert attempt(conversation) == Credentials("LOGIN", b"bob", b"secret")


@pytest.mark.parametrize(
    "command",
    [
        b"a LOGIN",
        b"a LOGIN bob",
        b"a LOGIN bob secret more",
        b'a LOGIN "bob secret',
        b'a LOGIN "b\\ob" secret',
        b'a LOGIN "bob"secret',
        b"a LOGIN {3+}\r\nbobsecret",
        b"a LOGIN bob{3+}\r\nabc",
        b"a LOGIN bob {2+}\r\n\0x",
        b"a LOGIN bob se\0cret",
        b"a LOGIN (bob) secret",
        b"a AUTHENTICATE",
        b"a AUTHENTICATE PLAIN a b",
        b"a AUTHENTICATE PLAIN ###",
        b"a AUTHENTICATE PLAIN " + base64.b64encode(b"no nul"),
        b"a AUTHENTICATE PLAIN AA=A",
        b"a AUTHENTICATE XOAUTH2 " + base64.b64encode(b"user=bob"),
        b"a AUTHENTICATE OAUTHBEARER " + base64.b64encode(b"p=tls,,\1auth=Bearer x\1\1"),
        b"a SELECT INBOX",
        b"a",
        b"a NOOP now",
        b"a STARTTLS",
    ],
)
def test_what_makes_no_sense_is_bad(command):
    """A malformed, unknown or untimely command is answered BAD with its tag."""
    conversation = talk()
    conversation.hears(command + b"\r\n")
    assert conversation.said().startswith(b"a BAD ")
    assert conversation.events == []


@pytest.mark.parametrize("line", [b"", b"+a NOOP", b"\xff NOOP", b"{ NOOP", b"t" * 127 + b" NOOP"])
def test_a_line_without_a_valid_tag_is_not_echoed(line):
    """What is no tag is not repeated: the BAD is untagged."""
    conversation = talk()
    conversation.hears(line + b"\r\n")
    assert conversation.said() == b"* BAD Invalid tag.\r\n"


def test_plain_with_and_without_an_initial_response():
    """AUTHENTICATE PLAIN works with SASL-IR and without, authorization identity included."""
    message = b64(b"\0bob\0secret")
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE PLAIN " + message + b"\r\n")
    assert attempt(conversation) == Credentials("PLAIN", b"bob", b"secret")
    conversation = talk()
    conversation.hears(b"a authenticate plain\r\n")
    assert conversation.said() == b"+ \r\n"
    conversation.hears(b64(b"alice\0bob\0secret") + b"\r\n")
    assert attempt(conversation) == Credentials("PLAIN", b"bob", b"secret", b"alice")


def test_own_name_as_authorization_identity_is_none():
    """An authorization identity that repeats the user name asks for nothing."""
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE PLAIN " + b64(b"bob\0bob\0secret") + b"\r\n")
    assert attempt(conversation) == Credentials("PLAIN", b"bob", b"secret")


@pytest.mark.parametrize("initial", [True, False])
def test_login_mechanism(initial):
    """AUTHENTICATE LOGIN asks for name and password; the name may come at once."""
    conversation = talk()
    if initial:
        conversation.hears(b"a AUTHENTICATE LOGIN " + b64(b"bob") + b"\r\n")
    else:
        conversation.hears(b"a AUTHENTICATE LOGIN\r\n")
        assert conversation.said() == b"+ " + b64(b"Username:") + b"\r\n"
        conversation.hears(b64(b"bob") + b"\r\n")
    assert conversation.said() == b"+ " + b64(b"Password:") + b"\r\n"
    conversation.hears(b64(b"secret") + b"\r\n")
    assert attempt(conversation) == Credentials("LOGIN", b"bob", b"secret")


@pytest.mark.parametrize(
    ("mechanism", "message"),
    [
        ("XOAUTH2", b"user=bob@example.com\1auth=Bearer t0ken\1\1"),
        ("OAUTHBEARER", b"n,a=bob@example.com,\1host=h\1port=143\1auth=Bearer t0ken\1\1"),
    ],
)
@pytest.mark.parametrize("initial", [True, False])
def test_bearer_tokens(mechanism, message, initial):
    """XOAUTH2 and OAUTHBEARER give the user, and the message as it came."""
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE " + mechanism.encode())
    conversation.hears(b" " + b64(message) + b"\r\n" if initial else b"\r\n" + b64(message) + b"\r\n")
    assert attempt(conversation) == Credentials(mechanism, b"bob@example.com", message, proof=Proof.TOKEN)


def test_oauthbearer_name_with_commas():
    """An OAUTHBEARER name's escapes are undone (RFC 5801 section 4)."""
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE OAUTHBEARER " + b64(b"n,a=b=2Co=3Db,\1auth=Bearer t\1\1") + b"\r\n")
    assert attempt(conversation).user == b"b,o=b"


def test_equals_sign_is_an_empty_initial_response():
    """A lone ``=`` is an initial response without bytes, not the wish for a challenge (RFC 4959)."""
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE LOGIN =\r\n")
    assert conversation.said() == b"+ " + b64(b"Password:") + b"\r\n"


def test_authentication_can_be_aborted():
    """A client's ``*`` ends the exchange with BAD, and nothing of it stays."""
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE LOGIN\r\n" + b64(b"bob") + b"\r\n*\r\nb NOOP\r\n")
    assert conversation.said().endswith(b"a BAD Authentication aborted.\r\nb OK Done.\r\n")
    conversation.hears(b"c AUTHENTICATE LOGIN\r\n")
    assert conversation.said() == b"+ " + b64(b"Username:") + b"\r\n"


def test_a_mechanism_that_is_not_offered():
    """Only the listener's mechanisms are taken."""
    conversation = talk(DialogTerms(mechanisms=("PLAIN",)))
    conversation.hears(b"a AUTHENTICATE LOGIN\r\nb AUTHENTICATE XOAUTH2\r\n")
    assert conversation.said() == (
        b"a NO [CANNOT] Unsupported authentication mechanism.\r\n"
        b"b NO [CANNOT] Unsupported authentication mechanism.\r\n"
    )


def test_starttls_then_login():
    """STARTTLS starts TLS; then it is off the list and the login is allowed."""
    conversation = talk(STARTTLS)
    conversation.hears(b"a STARTTLS\r\n")
    assert conversation.said() == b"a OK Begin TLS now.\r\n"
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    conversation.hears(b"b CAPABILITY\r\nc STARTTLS\r\nd LOGIN bob secret\r\n")
    assert conversation.said() == (
        b"* CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID AUTH=PLAIN AUTH=LOGIN\r\nb OK Done.\r\n"
        b"c BAD TLS is already on.\r\n"
    )
    assert attempt(conversation) == Credentials("LOGIN", b"bob", b"secret")


@pytest.mark.parametrize(
    "command", [b"LOGIN bob secret", b"AUTHENTICATE PLAIN AGJvYgBz", b"AUTHENTICATE PLAIN"]
)
def test_no_login_before_tls(command):
    """Before TLS a login is refused with PRIVACYREQUIRED, whatever its form."""
    conversation = talk(STARTTLS)
    conversation.hears(b"a " + command + b"\r\n")
    assert conversation.said().startswith(b"a NO [PRIVACYREQUIRED] ")
    assert conversation.events == []


def test_no_password_is_asked_for_before_tls():
    """A client that would send its password as a literal in the clear is stopped before it does."""
    conversation = talk(STARTTLS)
    conversation.hears(b"a LOGIN {3}\r\n")
    assert conversation.said().startswith(b"a NO [PRIVACYREQUIRED] ")
    conversation.hears(b"b NOOP\r\n")
    assert conversation.said() == b"b OK Done.\r\n"


def test_cleartext_login_can_be_allowed():
    """A STARTTLS listener with cleartext_login offers both."""
    conversation = talk(DialogTerms(tls_offered=True, login_allowed=True))
    conversation.hears(b"a CAPABILITY\r\nb LOGIN bob secret\r\n")
    said = conversation.said()
    assert b" STARTTLS AUTH=PLAIN AUTH=LOGIN\r\n" in said
    assert b"LOGINDISABLED" not in said
    assert attempt(conversation).user == b"bob"


@pytest.mark.parametrize("behind", [b"b LOGIN bob secret\r\n", b"b", b"\x16\x03\x01", b"b LOGIN {3+}\r\nbo"])
def test_bytes_behind_starttls_end_the_connection(behind):
    """A command behind STARTTLS in the same segment is never taken for a protected one."""
    conversation = talk(STARTTLS)
    conversation.hears(b"a STARTTLS\r\n" + behind)
    assert conversation.said().startswith(b"a BAD Nothing may follow STARTTLS.\r\n* BYE ")
    assert conversation.event() == HangUp(Farewell.INJECTION)


def test_bytes_in_the_clear_after_starttls_end_the_connection():
    """Should bytes come in the clear while TLS is negotiated, they end the connection."""
    conversation = talk(STARTTLS)
    conversation.hears(b"a STARTTLS\r\n")
    conversation.events.clear()
    conversation.hears(b"b LOGIN bob secret\r\n")
    assert conversation.event() == HangUp(Farewell.INJECTION)


def test_a_literal_across_the_starttls_boundary_is_no_starttls():
    """STARTTLS with a literal is a malformed command, and what the literal holds is not executed."""
    conversation = talk(STARTTLS)
    conversation.hears(b"a STARTTLS {12+}\r\nb NOOP\r\n1234\r\nc NOOP\r\n")
    assert conversation.said() == b"a BAD Unexpected argument.\r\nc OK Done.\r\n"


def test_starttls_forgets_what_was_said_in_the_clear():
    """ID and CAPABILITY of the clear do not count once TLS is on."""
    conversation = talk(STARTTLS)
    conversation.hears(b'a ID ("name" "evil")\r\nb CAPABILITY\r\nc STARTTLS\r\n')
    conversation.events.clear()
    conversation.take(conversation.half.secured())
    conversation.hears(b"d LOGIN bob secret\r\n")
    assert conversation.event().seam == Hello(())
    assert b"* CAPABILITY" not in conversation.half.accept(LoggedIn(Welcome((), b"Hi", b"IMAP4rev1")))


def test_starttls_in_the_middle_of_authenticate_is_a_sasl_line():
    """STARTTLS while a SASL exchange runs is a bad response to it."""
    conversation = talk(DialogTerms(tls_offered=True, login_allowed=True))
    conversation.hears(b"a AUTHENTICATE PLAIN\r\nb STARTTLS\r\n")
    assert conversation.said() == b"+ \r\na BAD Invalid base64.\r\n"
    assert conversation.events == []


def test_a_browser_is_not_echoed():
    """An HTTP request ends the connection, and nothing of it comes back."""
    conversation = talk()
    conversation.hears(b"POST /<script> HTTP/1.1\r\nHost: x\r\n\r\na LOGIN u p\r\n")
    assert conversation.said() == b"* BYE This is an IMAP server.\r\n"
    assert conversation.event() == HangUp(Farewell.NOT_THIS_PROTOCOL)


def test_pipelined_bytes_become_the_rest():
    """Whatever follows an accepted login is kept byte for byte, and never parsed."""
    conversation = talk()
    behind = b"b SELECT INBOX\r\nc LOGIN x y\r\n\0\xff{9999999999+}"
    conversation.hears(b"a LOGIN bob secret\r\n" + behind)
    assert attempt(conversation).user == b"bob"
    conversation.hears(b"more")
    assert conversation.said() == b""
    conversation.half.accept(LoggedIn(Welcome((), b"Hi", b"IMAP4rev1")))
    assert conversation.half.rest() == behind + b"more"


def test_accept_restores_the_tag_and_gives_capabilities():
    """The backend's words go out under the client's tag, with its capabilities."""
    conversation = talk()
    conversation.hears(b"tag.7 LOGIN bob secret\r\n")
    welcome = Welcome((b"* OK [ALERT] Full",), b"Logged in", b"IMAP4rev1 IDLE")
    assert conversation.half.accept(LoggedIn(welcome)) == (
        b"* OK [ALERT] Full\r\ntag.7 OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
    )


def test_accept_tells_new_capabilities_to_who_asked_before():
    """A client that asked for the capabilities before login is told the new ones in the same way."""
    conversation = talk()
    conversation.hears(b"a CAPABILITY\r\nb LOGIN bob secret\r\n")
    assert conversation.half.accept(LoggedIn(Welcome((), b"Hi", b"IMAP4rev1 IDLE"))) == (
        b"* CAPABILITY IMAP4rev1 IDLE\r\nb OK Hi\r\n"
    )


def test_after_a_refusal_the_client_may_try_again():
    """A refused login is answered NO, the connection stays, and what was pipelined is run."""
    conversation = talk()
    conversation.hears(b"a LOGIN bob wrong\r\nb NOOP\r\nc LOGIN alice right\r\n")
    assert attempt(conversation) == Credentials("LOGIN", b"bob", b"wrong")
    assert refuse(conversation) == (b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\nb OK Done.\r\n")
    assert attempt(conversation) == Credentials("LOGIN", b"alice", b"right")


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_has_words(reason):
    """Each reason has an answer with a response code of RFC 5530 or 9051."""
    conversation = talk()
    conversation.hears(b"a LOGIN bob wrong\r\n")
    assert refuse(conversation, reason).startswith(b"a NO [")


@pytest.mark.parametrize("why", list(Farewell))
def test_every_farewell_has_words(why):
    """Each end has a BYE."""
    said = talk().half.farewell(why)
    assert said.startswith(b"* BYE ")
    assert said.endswith(b"\r\n")


def test_the_backends_own_reply_is_passed_on():
    """A refusal that carries the backend's words shows them."""
    conversation = talk()
    conversation.hears(b"a LOGIN bob wrong\r\n")
    conversation.take(conversation.half.reject(Refusal(Reason.LIMIT, "d", reply=b"[LIMIT] Too many")))
    assert conversation.said() == b"a NO [LIMIT] Too many\r\n"


def test_an_oauth_error_is_shown_before_the_no():
    """An OAuth server's error document reaches the client, which acknowledges it before the NO."""
    conversation = talk()
    conversation.hears(b"a AUTHENTICATE XOAUTH2 " + b64(b"user=b\1auth=Bearer t\1\1") + b"\r\n")
    refusal = Refusal(Reason.AUTHENTICATION_FAILED, "d", challenge=b'{"status":"401"}')
    conversation.take(conversation.half.reject(refusal))
    assert conversation.said() == b"+ " + b64(b'{"status":"401"}') + b"\r\n"
    conversation.hears(b"\r\nb NOOP\r\n")
    assert conversation.said() == b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\nb OK Done.\r\n"


def test_bad_commands_are_bounded():
    """The client is sent away with the last bad command that it may send."""
    conversation = talk(DialogTerms(bad_commands=3))
    conversation.hears(b"a X\r\nb NOOP\r\nc X\r\nd X\r\ne NOOP\r\n")
    said = conversation.said()
    assert said.count(b" BAD ") == 3
    assert said.endswith(b"* BYE Too many bad commands.\r\n")
    assert conversation.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)


def test_commands_are_bounded():
    """Good commands that lead nowhere are bounded too, so that replies cannot pile up."""
    conversation = talk(DialogTerms(bad_commands=0))
    conversation.hears(b"a NOOP\r\n" * (MAX_COMMANDS + 1))
    assert conversation.said().count(b"OK Done") == MAX_COMMANDS
    assert conversation.event() == HangUp(Farewell.TOO_MANY_COMMANDS)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 8193,
        b"a LOGIN {8193+}\r\n",
        b"a LOGIN {9999999999+}\r\n",
        b"a LOGIN" + b" {8000+}\r\n" + b"x" * 8000 + b" {8000+}\r\n" + b"x" * 8000 + b" {400+}\r\n",
        b"a AUTHENTICATE PLAIN\r\n" + b"A" * 16385,
    ],
)
def test_what_is_too_long_ends_the_connection(data):
    """A line, literal, command or SASL response over its bound gets a BYE and the end."""
    conversation = talk()
    conversation.hears(data)
    assert conversation.said().endswith(b"* BYE Line or literal too long.\r\n")
    assert conversation.event() == HangUp(Farewell.TOO_LONG)


def test_a_synchronising_literal_that_is_too_long_is_refused_before_it_comes():
    """A client that announces too much and waits is told so, and may go on."""
    conversation = talk()
    conversation.hears(b"a LOGIN {8193}\r\n")
    assert conversation.said() == b"a BAD [TOOBIG] Literal too long.\r\n"
    conversation.hears(b"b NOOP\r\n")
    assert conversation.said() == b"b OK Done.\r\n"


def test_too_much_behind_a_login_ends_the_connection():
    """What a client may send ahead while its login is under way is bounded."""
    conversation = talk()
    conversation.hears(b"a LOGIN bob secret\r\n")
    conversation.events.clear()
    conversation.hears(b"x" * MAX_AHEAD)
    assert conversation.events == []
    conversation.hears(b"x")
    assert conversation.event() == HangUp(Farewell.TOO_LONG)


def test_no_event_shows_a_secret():
    """What a dialog hands on does not show passwords in its repr."""
    conversation = talk()
    events = conversation.half.receive(b"a LOGIN bob hunter22\r\n")
    assert "hunter22" not in repr(events)


def test_where_no_password_can_be_right_none_is_asked_for() -> None:
    """LOGIN is announced as disabled, and refused, where nobody could check a password."""
    talk = Conversation(ImapDialog(DialogTerms(mechanisms=("XOAUTH2",), passwords=False)))
    talk.hears(b"a CAPABILITY\r\n")
    said = talk.said()
    assert b" AUTH=XOAUTH2 LOGINDISABLED\r\n" in said
    talk.hears(b"b LOGIN bob secret\r\n")
    assert talk.said().startswith(b"b NO ")
    assert not talk.events


CERTIFIED = DialogTerms(mechanisms=("PLAIN",), certified=("EXTERNAL",))


def test_external_is_offered_to_who_has_shown_a_certificate() -> None:
    """EXTERNAL is neither listed nor taken before; then it comes first, with or without a name to ask for."""
    conversation = talk(CERTIFIED)
    conversation.hears(b"a CAPABILITY\r\nb AUTHENTICATE EXTERNAL =\r\n")
    said = conversation.said()
    assert b"EXTERNAL" not in said
    assert b"b NO " in said
    for given, user in ((b"=", b""), (b64(b"bob"), b"bob")):
        conversation = talk(CERTIFIED)
        conversation.half.certified()
        conversation.hears(b"a CAPABILITY\r\n")
        assert b" AUTH=EXTERNAL AUTH=PLAIN\r\n" in conversation.said()
        conversation.hears(b"b AUTHENTICATE EXTERNAL " + given + b"\r\n")
        assert attempt(conversation) == Credentials("EXTERNAL", user, b"", proof=Proof.CERTIFICATE)


def test_external_may_come_line_by_line() -> None:
    """Without an initial response the client is asked for the name, and may send an empty line."""
    conversation = talk(CERTIFIED)
    conversation.half.certified()
    conversation.hears(b"b AUTHENTICATE EXTERNAL\r\n")
    assert conversation.said() == b"+ \r\n"
    conversation.hears(b"\r\n")
    assert attempt(conversation).user == b""


SCRAM = DialogTerms(mechanisms=("SCRAM-SHA-256", "PLAIN"), bound=("SCRAM-SHA-256-PLUS",))
KEYS = make_keys("sha256", b"pencil", b"saltsalt", 10)


def challenged(conversation: Conversation) -> bytes:
    said = conversation.said()
    assert said.startswith(b"+ ")
    return base64.b64decode(said[2:])


@pytest.mark.parametrize("segment", [0, 1, 7])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("bound", [True, False])
def test_scram_step_by_step(segment: int, initial: bool, bound: bool) -> None:
    """Keys are asked for, each side proves itself, and the login is attempted with what was shown."""
    name = "SCRAM-SHA-256-PLUS" if bound else "SCRAM-SHA-256"
    binding = b"b" * 32 if bound else b""
    client = ScramClient(name, header=b"p=tls-exporter,," if bound else b"n,,", binding=binding)
    conversation = talk(SCRAM)
    if bound:
        conversation.half.bound(binding)
        conversation.hears(b"x CAPABILITY\r\n")
        assert b" AUTH=SCRAM-SHA-256-PLUS AUTH=SCRAM-SHA-256 " in conversation.said()
    command = b"a AUTHENTICATE " + name.encode()
    if initial:
        conversation.hears(command + b" " + b64(client.first()) + b"\r\n", segment)
    else:
        conversation.hears(command + b"\r\n", segment)
        assert conversation.said() == b"+ \r\n"
        conversation.hears(b64(client.first()) + b"\r\n", segment)
    event = conversation.event()
    assert isinstance(event, KeysWanted)
    assert event.credentials == Credentials(name, b"bob", b"", proof=Proof.SCRAM_SHA_256)
    conversation.take(conversation.half.keys(KEYS))
    conversation.hears(b64(client.final(challenged(conversation))) + b"\r\n", segment)
    assert challenged(conversation).startswith(b"v=")
    assert not conversation.events
    conversation.hears(b"\r\nb NOOP\r\n", segment)
    shown = attempt(conversation)
    assert (shown.mechanism, shown.user, shown.proof) == (name, b"bob", Proof.SCRAM_SHA_256)
    assert proves(name, KEYS, shown.secret)
    answer = conversation.half.accept(LoggedIn(Welcome((), b"Hi", b"IMAP4rev1")))
    assert answer.splitlines()[-1].startswith(b"a OK ")
    assert conversation.half.rest() == b"b NOOP\r\n"


def test_a_wrong_proof_is_for_others_to_refuse() -> None:
    """The dialog does not say that a proof is wrong: the login is attempted, and takes as long as any."""
    client = ScramClient("SCRAM-SHA-256", b"pen")
    conversation = talk(SCRAM)
    conversation.hears(b"a AUTHENTICATE SCRAM-SHA-256 " + b64(client.first()) + b"\r\n")
    conversation.event()
    conversation.take(conversation.half.keys(KEYS))
    conversation.hears(b64(client.final(challenged(conversation))) + b"\r\n")
    assert conversation.said() == b""
    assert not proves("SCRAM-SHA-256", KEYS, attempt(conversation).secret)
    conversation.take(conversation.half.reject(Refusal(Reason.AUTHENTICATION_FAILED, "x")))
    assert conversation.said().startswith(b"a NO [AUTHENTICATIONFAILED]")


def test_without_its_binding_plus_is_not_taken() -> None:
    """What needs channel binding is neither listed nor taken where there is none."""
    conversation = talk(SCRAM)
    conversation.hears(b"a CAPABILITY\r\nb AUTHENTICATE SCRAM-SHA-256-PLUS\r\n")
    said = conversation.said()
    assert b"PLUS" not in said
    assert b"b NO " in said


def test_what_comes_while_the_keys_are_looked_up_waits() -> None:
    """A client that sends ahead is not heard before the keys are there; then its line is the next message."""
    client = ScramClient("SCRAM-SHA-256")
    conversation = talk(SCRAM)
    conversation.hears(b"a AUTHENTICATE SCRAM-SHA-256 " + b64(client.first()) + b"\r\n*\r\nb NOOP\r\n")
    assert isinstance(conversation.event(), KeysWanted)
    assert conversation.said() == b""
    conversation.take(conversation.half.keys(KEYS))
    assert conversation.said().endswith(b"a BAD Authentication aborted.\r\nb OK Done.\r\n")


def test_a_password_that_could_not_be_right_is_not_asked_for_in_a_literal() -> None:
    """LOGIN is refused before its literal is let come, where nobody could check a password."""
    conversation = talk(DialogTerms(mechanisms=("XOAUTH2",), passwords=False))
    conversation.hears(b"a LOGIN bob {6}\r\n")
    assert conversation.said() == b"a NO [CANNOT] Unsupported authentication mechanism.\r\n"
    conversation.hears(b"b NOOP\r\n")
    assert conversation.said() == b"b OK Done.\r\n"
