"""The backend's side of POP3, as transcripts."""

from __future__ import annotations

import base64

import pytest
from attrs import evolve
from logins import Case
from transcripts import b64, refusal, started
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.testing import StringTransport
from twisted.mail import pop3
from zope.interface import implementer

from mailroute.dialogs.common.xclient import MAX_COMMAND
from mailroute.dialogs.pop3 import POP3
from mailroute.dialogs.pop3.login import MAX_CAPABILITIES
from mailroute.events import Address, Credentials, LoggedIn, Method, Ready, Reason, Refused, StartTLS
from mailroute.proofs import Proof, proof_of
from mailroute.testing import CLIENT, Conversation

BOB = Credentials("USER", b"bob", b"secret")
ORDER = Case(BOB, "bob")
CAPA = b"+OK\r\nCAPA\r\nUSER\r\nSASL PLAIN LOGIN\r\n.\r\n"
PLAIN = b"AUTH PLAIN " + base64.b64encode(b"\0bob\0secret") + b"\r\n"
XCLIENT = (
    b"XCLIENT ADDR=192.0.2.7 PORT=40000 DESTADDR=192.0.2.1 DESTPORT=143"
    b" SESSION=session-1 TTL=6 CLIENT-TRANSPORT=insecure"
)


def talk(order: Case = ORDER) -> Conversation:
    return started(order.login(POP3))


def capable(answer: bytes = CAPA, order: Case = ORDER, greeting: bytes = b"+OK hi\r\n") -> Conversation:
    conversation = talk(order)
    conversation.hears(greeting)
    assert conversation.said() == b"CAPA\r\n"
    conversation.hears(answer)
    return conversation


def test_plain_with_an_initial_response():
    """CAPA, then one command; the OK's words and what comes behind it come out."""
    conversation = capable()
    assert conversation.said() == PLAIN
    conversation.hears(b"+OK Logged in.\r\n+OK 2 320\r\n")
    assert conversation.event() == LoggedIn(b"Logged in.", b"+OK 2 320\r\n")


def test_a_long_message_waits_to_be_asked_for():
    """A line of AUTH has at most RFC 2449's 255 octets; a longer message follows the ``+``."""
    fits, too_long = (evolve(ORDER, credentials=Credentials("USER", b"bob", b"x" * n)) for n in (174, 179))
    assert len(capable(order=fits).said()) <= 255
    conversation = capable(order=too_long)
    assert conversation.said() == b"AUTH PLAIN\r\n"
    conversation.hears(b"+\r\n")
    assert conversation.said() == b64(b"\0bob\0" + b"x" * 179) + b"\r\n"


def test_login_mechanism():
    """A backend that offers only AUTH LOGIN gets name and password one after the other."""
    conversation = capable(b"+OK\r\nSASL LOGIN\r\n.\r\n")
    assert conversation.said() == b"AUTH LOGIN\r\n"
    conversation.hears(b"+ VXNlcm5hbWU6\r\n")
    assert conversation.said() == b64(b"bob") + b"\r\n"
    conversation.hears(b"+ UGFzc3dvcmQ6\r\n")
    assert conversation.said() == b64(b"secret") + b"\r\n"


@pytest.mark.parametrize(
    "answer", [b"-ERR what?\r\n", b"+OK\r\nUSER\r\n.\r\n", b"+OK\r\nuser\r\nSASL GSSAPI\r\n.\r\n"]
)
@pytest.mark.parametrize("password", [b"secret", b" two words ", b"", b"p\xe4ss"])
def test_user_and_pass(answer, password):
    """Without a mechanism for it a password goes by PASS, once USER has been agreed to."""
    credentials = Credentials("USER", b"bob", password)
    conversation = capable(answer, evolve(ORDER, user="bob two", credentials=credentials))
    assert conversation.said() == b"USER bob two\r\n"
    conversation.hears(b"+OK\r\n")
    assert conversation.said() == b"PASS %s\r\n" % password
    conversation.hears(b"+OK\r\n")
    assert conversation.event() == LoggedIn(b"", b"")


@pytest.mark.parametrize("password", [b"a\r\nDELE 1", b"a\nb", b"a\rb"])
def test_a_line_end_in_a_password_becomes_no_command(password):
    """PASS cannot carry a line end, so the login fails; AUTH can, in base64."""
    order = evolve(ORDER, credentials=Credentials("PLAIN", b"bob", password), tell_client=True)
    conversation = capable(b"-ERR\r\n", order, b"+OK [XCLIENT] hi\r\n")
    assert conversation.said() == b""
    assert refusal(conversation).reason is Reason.AUTHENTICATION_FAILED
    assert capable(order=order).said() == b"AUTH PLAIN " + b64(b"\0bob\0" + password) + b"\r\n"


def test_no_way_in():
    """A backend that lists neither a mechanism nor USER gets no password."""
    conversation = capable(b"+OK\r\nSASL GSSAPI\r\n.\r\n")
    assert conversation.said() == b""
    assert refusal(conversation).reason is Reason.MISCONFIGURED


def test_stls():
    """With STARTTLS to be had, nothing is asked in the clear, and the capabilities inside TLS."""
    conversation = talk(evolve(ORDER, starttls=True))
    conversation.hears(b"+OK hi\r\n")
    assert conversation.said() == b"STLS\r\n"
    conversation.hears(b"+OK go\r\n")
    assert conversation.event() == StartTLS()
    conversation.take(conversation.half.secured())
    assert conversation.said() == b"CAPA\r\n"
    conversation.hears(CAPA)
    assert conversation.said() == PLAIN


@pytest.mark.parametrize("answer", [b"-ERR no\r\n", b"+OK go\r\n+OK\r\n", b"+OK go\r\nx"])
def test_stls_refused_or_followed_by_bytes_in_the_clear(answer):
    """No password goes to a backend without TLS, nor to one with injected responses."""
    conversation = talk(evolve(ORDER, starttls=True))
    conversation.hears(b"+OK hi\r\n")
    conversation.said()
    conversation.hears(answer)
    assert conversation.said() == b""
    assert refusal(conversation).reason is Reason.MISCONFIGURED


def test_xclient_goes_out_with_the_login():
    """A greeting that offers XCLIENT gets it, in one segment with the login; its answer comes first."""
    conversation = capable(
        order=evolve(ORDER, tell_client=True), greeting=b"+OK [XCLIENT] Dovecot ready.\r\n"
    )
    assert conversation.said() == XCLIENT + b"\r\n" + PLAIN
    conversation.hears(b"+OK Updated\r\n")
    assert conversation.events == []
    conversation.hears(b"+OK Logged in.\r\n")
    assert conversation.event() == LoggedIn(b"Logged in.")


def test_xclient_leaves_out_a_port_that_is_not_known():
    """A PROXY header may have 0 for a port, which Dovecot's XCLIENT does not take."""
    client = evolve(CLIENT, source=Address("192.0.2.7", 0), destination=Address("192.0.2.1", 0))
    order = evolve(ORDER, tell_client=True, client=client)
    conversation = capable(order=order, greeting=b"+OK [XCLIENT] hi\r\n")
    xclient = XCLIENT.replace(b" PORT=40000", b"").replace(b" DESTPORT=143", b"")
    assert conversation.said() == xclient + b"\r\n" + PLAIN


def test_xclient_offered_before_stls_is_given_inside_tls():
    """The greeting's offer holds, as there is no second greeting; the command goes inside TLS."""
    conversation = talk(evolve(ORDER, tell_client=True, starttls=True))
    conversation.hears(b"+OK [XCLIENT] hi\r\n")
    conversation.hears(b"+OK go\r\n")
    conversation.event()
    conversation.take(conversation.half.secured())
    conversation.hears(CAPA)
    assert conversation.said() == b"STLS\r\nCAPA\r\n" + XCLIENT + b"\r\n" + PLAIN


@pytest.mark.parametrize(
    ("greeting", "tell"),
    [(b"+OK hi\r\n", True), (b"+OK [XCLIENT] hi\r\n", False), (b"+OK x [XCLIENT]\r\n", True)],
)
def test_no_xclient_unless_offered_and_wanted(greeting, tell):
    """XCLIENT goes to a backend only where it offers that and the configuration wants it."""
    conversation = capable(order=evolve(ORDER, tell_client=tell), greeting=greeting)
    assert conversation.said() == PLAIN


def test_a_refused_xclient_is_a_configuration_error():
    """The client is not told that its password is wrong, and the log says what was refused."""
    conversation = capable(order=evolve(ORDER, tell_client=True), greeting=b"+OK [XCLIENT] hi\r\n")
    conversation.hears(b"-ERR You are not from trusted IP\r\n-ERR [AUTH] no\r\n")
    refused = refusal(conversation)
    assert refused.reason is Reason.MISCONFIGURED
    assert "XCLIENT" in refused.detail


def test_xclient_is_answered_before_the_login():
    """A backend that goes on with the login before it has answered XCLIENT gets no name and no password."""
    order = evolve(ORDER, tell_client=True)
    conversation = capable(b"+OK\r\nSASL LOGIN\r\n.\r\n", order, b"+OK [XCLIENT] hi\r\n")
    assert conversation.said() == XCLIENT + b"\r\nAUTH LOGIN\r\n"
    conversation.hears(b"+ VXNlcm5hbWU6\r\n")
    assert conversation.said() == b""
    refused = refusal(conversation)
    assert refused.reason is Reason.UNAVAILABLE
    assert "waiting for the answer to XCLIENT" in refused.detail


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("mail.example.org", b" DESTNAME=mail.example.org"),
        ("a\r\nDELE 1", b""),
        ("a ADDR=192.0.2.9", b""),
        ("x" * MAX_COMMAND, b""),
    ],
)
def test_xclient_says_how_the_client_came(name, word):
    """TLS, the name asked for and an IPv6 address go along; no name becomes syntax or too long a line."""
    client = evolve(CLIENT, source=evolve(CLIENT.source, host="2001:db8::1"), tls="TLSv1.3", server_name=name)
    order = evolve(ORDER, tell_client=True, client=client)
    conversation = capable(order=order, greeting=b"+OK [XCLIENT] hi\r\n")
    expected = XCLIENT.replace(b"192.0.2.7", b"2001:db8::1").replace(b"insecure", b"TLS")
    assert conversation.said() == expected + word + b"\r\n" + PLAIN


def test_what_a_route_forwards_goes_along():
    """The fields of a route follow the name, in one word that nothing in them can end."""
    forward = (("shard", "7"), ("what", "x y=z"))
    order = evolve(ORDER, method=Method.NONE, tell_client=True, forward=forward)
    conversation = talk(order)
    conversation.hears(b"+OK [XCLIENT] hi\r\n")
    word = b64(b"user=bob\tshard=7\twhat=x y=z")
    assert conversation.said() == XCLIENT + b" FORWARD=" + word + b"\r\n"
    conversation = talk(evolve(order, user="x" * 512, forward=(("k", "v" * 390),)))
    conversation.hears(b"+OK [XCLIENT] hi\r\n")
    assert conversation.event().refusal.reason is Reason.MISCONFIGURED


def test_no_login():
    """With login = "none" the greeting is enough; XCLIENT tells the name, and is waited for."""
    none = evolve(ORDER, method=Method.NONE)
    conversation = talk(none)
    conversation.hears(b"+OK hi\r\nmore")
    assert conversation.said() == b""
    assert conversation.event() == LoggedIn(b"Logged in.", b"more")
    conversation = talk(evolve(none, tell_client=True))
    conversation.hears(b"+OK [XCLIENT] hi\r\n")
    assert conversation.said() == XCLIENT + b" FORWARD=" + b64(b"user=bob") + b"\r\n"
    assert conversation.events == []
    conversation.hears(b"+OK Updated\r\n")
    assert conversation.event() == LoggedIn(b"Logged in.")


def test_master_login():
    """A master user logs in for the user; if it is refused, the client's password is not to blame."""
    order = evolve(ORDER, method=Method.MASTER, master=Credentials("PLAIN", b"root", b"m4ster"))
    conversation = capable(order=order)
    assert conversation.said() == b"AUTH PLAIN " + b64(b"bob\0root\0m4ster") + b"\r\n"
    conversation.hears(b"-ERR [AUTH] m4ster is wrong\r\n")
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (Reason.MISCONFIGURED, None)
    assert "m4ster" not in refused.detail


def test_master_login_under_one_name():
    """A backend that knows only USER and PASS hears both names in one, and the master's password."""
    master = Credentials("PLAIN", b"root", b"m4ster")
    order = evolve(ORDER, method=Method.MASTER, master=master, master_separator="*")
    conversation = capable(b"-ERR\r\n", order=order)
    assert conversation.said() == b"USER bob*root\r\n"
    conversation.hears(b"+OK\r\n")
    assert conversation.said() == b"PASS m4ster\r\n"


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        (b"No such user", Reason.AUTHENTICATION_FAILED, False),
        (b"[AUTH] No such user", Reason.AUTHENTICATION_FAILED, False),
        (b"[sys/temp] Later", Reason.UNAVAILABLE, True),
        (b"[SYS/PERM] Ask", Reason.CONTACT_ADMIN, True),
        (b"[IN-USE] Locked", Reason.LIMIT, True),
        (b"[LOGIN-DELAY] Wait", Reason.LIMIT, True),
        (b"[LOGIN-DELAY 900] Wait", Reason.LIMIT, True),
        (b"[X-NEW] Something", Reason.AUTHENTICATION_FAILED, True),
    ],
)
@pytest.mark.parametrize("way", ["PLAIN", "USER", "PASS"])
def test_refusals(text, reason, shown, way):
    """What a code means, and whether the client sees the text: never one that could tell of an account."""
    conversation = capable(CAPA if way == "PLAIN" else b"-ERR\r\n")
    conversation.hears(b"+OK\r\n" * (way == "PASS") + b"-ERR %s\r\n" % text)
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (reason, text if shown else None)
    assert text.decode() in refused.detail


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        (b"Maximum number of connections exceeded", Reason.UNAVAILABLE, True),
        (b"", Reason.UNAVAILABLE, False),
        (b"[AUTH] No", Reason.AUTHENTICATION_FAILED, False),
        (b"[IN-USE] Locked", Reason.LIMIT, True),
    ],
)
def test_a_server_that_marks_wrong_passwords(text, reason, shown):
    """With AUTH-RESP-CODE only [AUTH] tells of a wrong password: Dovecot 2.4 has no code for its limit."""
    conversation = capable(CAPA.replace(b"USER", b"AUTH-RESP-CODE"))
    conversation.hears(b"-ERR %s\r\n" % text)
    refused = refusal(conversation)
    assert (refused.reason, refused.reply) == (reason, text if shown else None)


def test_no_secret_is_repeated():
    """A backend that repeats the password, in any form, gets it neither into the log nor to the client."""
    conversation = capable(order=evolve(ORDER, credentials=Credentials("USER", b"bob", b"hunter22")))
    conversation.hears(b"-ERR [SYS/TEMP] hunter22 %s\r\n" % conversation.said().split()[2])
    refused = refusal(conversation)
    assert refused.reply == b"[SYS/TEMP] (secret) (secret)"
    assert refused.detail == "the backend said: [SYS/TEMP] (secret) (secret)"


def test_tokens_and_their_errors():
    """A token goes by its own mechanism; the error document is fetched and handed on."""
    token = b"n,a=bob,\1auth=Bearer t\1\1"
    order = evolve(ORDER, credentials=Credentials("OAUTHBEARER", b"bob", token, proof=Proof.TOKEN))
    conversation = capable(b"+OK\r\nSASL OAUTHBEARER\r\n.\r\n", order)
    assert conversation.said() == b"AUTH OAUTHBEARER " + b64(token) + b"\r\n"
    conversation.hears(b"+ " + b64(b"{}") + b"\r\n")
    assert conversation.said() == b"AQ==\r\n"
    conversation.hears(b"-ERR [AUTH] no\r\n")
    assert refusal(conversation).challenge == b"{}"
    assert refusal(capable(order=order)).reason is Reason.MISCONFIGURED


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (b"-ERR [SYS/TEMP] full\r\n", Reason.UNAVAILABLE),
        (b"* OK IMAP\r\n", Reason.UNAVAILABLE),
        (b"+ \r\n", Reason.UNAVAILABLE),
        (b"+OK hi\r\n+ \r\n", Reason.UNAVAILABLE),
        (b"+OK hi\r\n+OK\r\n" + b"X\r\n" * (MAX_CAPABILITIES + 1), Reason.UNAVAILABLE),
        (b"+OK hi\r\n+OK\r\n" + b"X" * 9000, Reason.UNAVAILABLE),
        (b"+OK hi\r\n-ERR\r\n+ \r\n", Reason.UNAVAILABLE),
        (b"+OK hi\r\n-ERR\r\n+OK\r\n+ \r\n", Reason.UNAVAILABLE),
        (b"+OK hi\r\n+OK\r\nSASL LOGIN\r\n.\r\n+OK\r\n", Reason.UNAVAILABLE),
        (b"+OK hi\r\n" + CAPA + b"\r\n", Reason.UNAVAILABLE),
    ],
)
def test_a_backend_that_breaks_the_protocol(answers, reason):
    """Whatever it is, it ends the login, with the backend to blame."""
    conversation = talk()
    conversation.hears(answers)
    assert refusal(conversation).reason is reason


def test_a_connection_made_ready():
    """Without an order it gets as far as the capabilities; the order then costs one round trip."""
    conversation = Conversation(ORDER.unopened(POP3))
    conversation.hears(b"+OK hi\r\n" + CAPA)
    assert conversation.said() == b"CAPA\r\n"
    assert conversation.event() == Ready()
    conversation.take(conversation.half.open(ORDER.order))
    assert conversation.said() == PLAIN


@pytest.mark.parametrize("line", [b"-ERR Idle for too long\r\n", b"+OK\r\n", b"+ \r\n", b"\r\n"])
def test_a_ready_backend_that_speaks_is_over(line):
    """Anything that comes while nobody has asked ends the connection."""
    conversation = Conversation(ORDER.unopened(POP3))
    conversation.hears(b"+OK hi\r\n" + CAPA)
    assert conversation.event() == Ready()
    conversation.hears(line)
    refused = refusal(conversation)
    assert refused.reason is Reason.UNAVAILABLE
    assert refused.detail == "the backend spoke before a login: " + line.decode().removesuffix("\r\n")


@implementer(IRealm)
class Post:
    """Has a mailbox without a message for everybody."""

    def requestAvatar(self, _name, _mind, *interfaces):
        """Return the mailbox."""
        return interfaces[0], pop3.Mailbox(), lambda: None


def test_twisteds_own_server():
    """A server that has CAPA and no SASL, twisted.mail's, takes and refuses a password by USER and PASS."""
    checker = InMemoryUsernamePasswordDatabaseDontUse(bob=b"two words")
    for password, ending in ((b"two words", LoggedIn), (b"another", Refused)):
        server, wire = pop3.POP3(), StringTransport()
        server.portal = Portal(Post(), [checker])
        server.makeConnection(wire)
        conversation = talk(evolve(ORDER, credentials=Credentials("USER", b"bob", password)))
        commands = b""
        while not conversation.events:
            conversation.hears(wire.value())
            wire.clear()
            commands += (said := conversation.said())
            server.dataReceived(said)
        server.setTimeout(None)
        assert isinstance(conversation.event(), ending)
        assert commands == b"CAPA\r\nUSER bob\r\nPASS %s\r\n" % password


@pytest.mark.parametrize("mechanism", ["EXTERNAL", "SCRAM-SHA-256"])
def test_what_cannot_be_replayed_is_not_tried(mechanism):
    """A certificate or a proof is of this connection alone: without a master user there is no way in."""
    shown = Credentials(mechanism, b"bob", b"transcript", proof=proof_of(mechanism))
    conversation = capable(order=evolve(ORDER, credentials=shown))
    refused = refusal(conversation)
    assert refused.reason is Reason.MISCONFIGURED
    assert "cannot be shown to a backend" in refused.detail
    assert b"transcript" not in conversation.said()
