"""Looking at backends: transcripts of the probes of all protocols, and what holds for any bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute import dialogs
from mailroute.events import (
    NOBODY,
    LoggedIn,
    LoginOrder,
    LoginTerms,
    Method,
    Ready,
    Reason,
    Refused,
    Send,
    StartTLS,
)
from mailroute.interfaces import IProbe, IProbedProtocol
from mailroute.sights import Greeted, Introduced, Offered, Sight
from mailroute.testing import CLIENT, Conversation

PORTS = {"imap": 143, "lmtp": 24, "managesieve": 4190, "pop3": 110, "smtp": 25, "submission": 587}
NAMES = tuple(PORTS)
TERMS = LoginTerms(starttls=True, tell_client=True)
QUIET = LoginTerms()


class Look(Conversation):
    """A probe under way."""

    def __init__(self, name: str, terms: LoginTerms = TERMS) -> None:
        super().__init__(IProbedProtocol(dialogs.protocol(name)).probe(terms))
        assert self.half.open(LoginOrder(NOBODY, "", CLIENT)) == []
        assert self.half.start() == []

    def seen(self) -> list[Sight]:
        return self.half.seen()

    def begin_tls(self) -> None:
        """Do what it has asked for."""
        assert self.event() == StartTLS()
        self.take(self.half.secured())


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_can_be_asked(name: str) -> None:
    """Those that speak before a login have a probe, and say where they are usually served."""
    protocol = dialogs.protocol(name)
    assert IProbedProtocol.providedBy(protocol)
    assert IProbe.providedBy(protocol.probe(TERMS))
    assert protocol.port == PORTS[name]


def test_one_that_nobody_speaks_cannot() -> None:
    """Plain TCP has nothing to ask."""
    assert not IProbedProtocol.providedBy(dialogs.protocol("tcp"))


# --- IMAP ---------------------------------------------------------------------


def test_imap_with_starttls_and_an_id() -> None:
    """What is offered is seen in the clear and inside TLS; then it tells who the client is, and leaves."""
    look = Look("imap")
    look.hears(b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hello\r\n")
    assert look.seen() == [
        Greeted("* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hello"),
        Offered(("IMAP4rev1", "STARTTLS", "LOGINDISABLED"), starttls=True),
    ]
    assert look.said() == b"M1 STARTTLS\r\n"
    look.hears(b"M1 OK go\r\n")
    look.begin_tls()
    assert look.said() == b"M2 CAPABILITY\r\n"
    look.hears(b"* CAPABILITY IMAP4rev1 ID AUTH=PLAIN AUTH=XOAUTH2\r\nM2 OK done\r\n")
    offered = Offered(("IMAP4rev1", "ID", "AUTH=PLAIN", "AUTH=XOAUTH2"), ("PLAIN", "XOAUTH2"), passwords=True)
    assert look.seen() == [offered]
    assert look.said().startswith(b'M3 ID ("x-session-id" "session-1" "x-originating-ip" "192.0.2.7" ')
    look.hears(b'* ID ("name" "Dovecot")\r\nM3 OK done\r\n')
    (introduced,) = look.seen()
    assert introduced.taken is None
    assert 'calls itself ("name" "Dovecot")' in introduced.detail
    assert "session session-1: rip=192.0.2.7" in introduced.remedy
    assert look.said() == b"M4 LOGOUT\r\n"
    assert look.event() == LoggedIn()


def test_imap_without_tls_and_id() -> None:
    """Where TLS is not asked for it is not begun; a server without ID is not told anything."""
    look = Look("imap", LoginTerms(tell_client=True))
    look.hears(b"* OK hello\r\n")
    assert look.said() == b"M1 CAPABILITY\r\n"
    look.hears(b"* CAPABILITY IMAP4rev1 STARTTLS\r\nM1 OK done\r\n")
    assert look.seen()[1:] == [
        Offered(("IMAP4rev1", "STARTTLS"), starttls=True, passwords=True),
        Introduced(False, "ID is not among its capabilities"),
    ]
    assert look.said() == b"M2 LOGOUT\r\n"
    assert look.event() == LoggedIn()


def test_imap_whose_id_is_refused() -> None:
    """A refused ID is told with the server's words."""
    look = Look("imap")
    look.hears(b"* OK [CAPABILITY IMAP4rev1 ID] hello\r\nM1 NO not \x1b[31myou\r\n")
    assert look.seen()[2:] == [Introduced(False, "it refuses ID: NO not ?[31myou")]
    assert look.event() == LoggedIn()


@pytest.mark.parametrize(
    ("heard", "reason"),
    [
        (b"* BYE go away\r\n", Reason.UNAVAILABLE),
        (b"* PREAUTH welcome\r\n", Reason.MISCONFIGURED),
        (b"220 mx.example.net ESMTP\r\n", Reason.UNAVAILABLE),
        (b"* OK [CAPABILITY IMAP4rev1 STARTTLS] x\r\nM1 NO not now\r\n", Reason.MISCONFIGURED),
        (b"* OK [CAPABILITY IMAP4rev1 STARTTLS] x\r\nM1 OK go\r\n* OK more\r\n", Reason.MISCONFIGURED),
        (b"* OK x\r\nPROXY BAD unknown\r\n", Reason.UNAVAILABLE),
    ],
)
def test_imap_that_goes_wrong(heard: bytes, reason: Reason) -> None:
    """Whatever ends a login ends a probe; the greeting is seen all the same, and nothing more is said."""
    look = Look("imap")
    look.hears(heard)
    assert look.seen()[0].text
    assert look.event().refusal.reason is reason
    look.said()
    look.hears(b"* OK [CAPABILITY IMAP4rev1 ID] x\r\n")
    assert (look.said(), look.events, look.seen()) == (b"", [], [])


def test_imap_that_needs_no_login() -> None:
    """PREAUTH is what a backend without logins may say."""
    look = Look("imap", LoginTerms(Method.NONE))
    look.hears(b"* PREAUTH [CAPABILITY IMAP4rev1] x\r\n")
    assert look.event() == LoggedIn()


# --- POP3 ---------------------------------------------------------------------


def test_pop3_with_stls_and_xclient() -> None:
    """CAPA is asked in the clear and inside TLS, XCLIENT is tried, and then comes QUIT."""
    look = Look("pop3")
    look.hears(b"+OK [XCLIENT] hello\r\n")
    assert look.said() == b"CAPA\r\n"
    look.hears(b"+OK\r\nSTLS\r\nTOP\r\n.\r\n")
    assert look.seen() == [Greeted("+OK [XCLIENT] hello"), Offered(("STLS", "TOP"), starttls=True)]
    assert look.said() == b"STLS\r\n"
    look.hears(b"+OK go\r\n")
    look.begin_tls()
    assert look.said() == b"CAPA\r\n"
    look.hears(b"+OK\r\nUSER\r\nSASL plain LOGIN\r\n.\r\n")
    assert look.seen() == [Offered(("USER", "SASL plain LOGIN"), ("LOGIN", "PLAIN"), passwords=True)]
    assert look.said().startswith(b"XCLIENT ADDR=192.0.2.7 PORT=40000 ")
    look.hears(b"+OK Updated\r\n")
    assert look.seen() == [Introduced(True, "it takes XCLIENT: Updated")]
    assert look.said() == b"QUIT\r\n"
    assert look.event() == LoggedIn()


def test_pop3_that_refuses_xclient() -> None:
    """An XCLIENT that is offered and refused is told, with what the server says and with the remedy."""
    look = Look("pop3", LoginTerms(tell_client=True))
    look.hears(b"+OK [XCLIENT] hello\r\n+OK\r\nUSER\r\n.\r\n-ERR no\r\n")
    introduced = look.seen()[-1]
    assert introduced.taken is False
    assert introduced.detail == "it refuses the XCLIENT that it offers: no"
    assert "login_trusted_networks" in introduced.remedy


def test_pop3_of_the_old_kind() -> None:
    """A server without CAPA lists nothing, and takes USER and PASS; XCLIENT is tried only if offered."""
    look = Look("pop3")
    look.hears(b"+OK hello\r\n-ERR what?\r\n")
    seen = look.seen()
    assert seen[1] == Offered((), passwords=True)
    assert seen[2].taken is False
    assert "[XCLIENT]" in seen[2].detail
    assert look.said() == b"CAPA\r\nQUIT\r\n"


def test_pop3_lists_are_bounded_each_by_itself() -> None:
    """The list inside TLS may be as long as the one in the clear; one too long ends it."""
    listed = b"+OK\r\nSTLS\r\n" + b"X\r\n" * 63 + b".\r\n"
    look = Look("pop3")
    look.hears(b"+OK hello\r\n" + listed + b"+OK go\r\n")
    look.begin_tls()
    look.hears(listed)
    assert [len(sight.capabilities) for sight in look.seen() if isinstance(sight, Offered)] == [64, 64]
    look.hears(b"+OK\r\n")
    look = Look("pop3")
    look.hears(b"+OK hello\r\n+OK\r\n" + b"X\r\n" * 65)
    assert isinstance(look.event(), Refused)


# --- ManageSieve --------------------------------------------------------------

SIEVE = b'"IMPLEMENTATION" "Server"\r\n"SASL" ""\r\n"STARTTLS"\r\n"XCLIENT"\r\nOK "hello"\r\n'


def test_managesieve_with_starttls_and_xclient() -> None:
    """The lists of the greeting and inside TLS are seen, XCLIENT is tried, and then comes LOGOUT."""
    look = Look("managesieve")
    look.hears(SIEVE)
    assert look.seen() == [
        Greeted('"IMPLEMENTATION" "Server"'),
        Offered(("IMPLEMENTATION Server", "SASL", "STARTTLS", "XCLIENT"), starttls=True),
    ]
    assert look.said() == b"STARTTLS\r\n"
    look.hears(b'OK "go"\r\n')
    look.begin_tls()
    assert look.said() == b""
    look.hears(b'"SASL" "plain LOGIN"\r\n"SIEVE" {8+}\r\nfileinto\r\n"XCLIENT"\r\nOK\r\n')
    assert look.seen() == [Offered(("SASL plain LOGIN", "SIEVE fileinto", "XCLIENT"), ("LOGIN", "PLAIN"))]
    assert look.said().startswith(b"XCLIENT ADDR=192.0.2.7 PORT=40000 ")
    look.hears(b'OK "Updated"\r\n')
    assert look.seen() == [Introduced(True, 'it takes XCLIENT: OK "Updated"')]
    assert look.said() == b"LOGOUT\r\n"
    assert look.event() == LoggedIn()


def test_managesieve_and_who_is_told() -> None:
    """An XCLIENT that is refused, or not offered, is told with the remedy; without TLS it still leaves."""
    look = Look("managesieve", LoginTerms(tell_client=True))
    look.hears(SIEVE + b'NO "not you"\r\n')
    introduced = look.seen()[-1]
    assert introduced.taken is False
    assert introduced.detail == 'it refuses the XCLIENT that it offers: NO "not you"'
    assert "login_trusted_networks" in introduced.remedy
    assert look.event() == LoggedIn()
    look = Look("managesieve")
    look.hears(b'"SASL" "PLAIN"\r\nOK\r\n')
    assert look.seen()[1] == Offered(("SASL PLAIN",), ("PLAIN",))
    assert look.said() == b"LOGOUT\r\n"
    look = Look("managesieve")
    look.hears(b'"SASL" "PLAIN"\r\nOK\r\n')
    assert look.seen()[2].detail == "XCLIENT is not among its capabilities"


def test_managesieve_lists_are_bounded_each_by_itself() -> None:
    """The list inside TLS may be as long as the one in the clear; one too long ends it."""
    listed = b'"STARTTLS"\r\n' + b'"X"\r\n' * 63 + b"OK\r\n"
    look = Look("managesieve")
    look.hears(listed + b"OK\r\n")
    look.begin_tls()
    look.hears(listed)
    assert [len(sight.capabilities) for sight in look.seen() if isinstance(sight, Offered)] == [64, 64]
    look = Look("managesieve")
    look.hears(b'"X"\r\n' * 65)
    assert isinstance(look.event(), Refused)


def test_managesieve_that_turns_us_away() -> None:
    """A greeting that is a refusal is seen, and ends it."""
    look = Look("managesieve")
    look.hears(b'BYE "not you"\r\n')
    assert look.seen() == [Greeted('BYE "not you"')]
    assert isinstance(look.event(), Refused)


# --- SMTP and LMTP ------------------------------------------------------------


@pytest.mark.parametrize(("name", "hello"), [("smtp", b"EHLO"), ("lmtp", b"LHLO")])
def test_mail_with_starttls_and_xclient(name: str, hello: bytes) -> None:
    """Extensions are asked for in the clear and inside TLS; XCLIENT has the attributes that are listed."""
    look = Look(name)
    look.hears(b"220 mx hello\r\n")
    assert look.said() == hello + b" localhost\r\n"
    look.hears(b"250-mx\r\n250-SIZE 100\r\n250 STARTTLS\r\n")
    assert look.seen() == [Greeted("220 mx hello"), Offered(("SIZE 100", "STARTTLS"), starttls=True)]
    assert look.said() == b"STARTTLS\r\n"
    look.hears(b"220 go\r\n")
    look.begin_tls()
    assert look.said() == hello + b" localhost\r\n"
    look.hears(b"250-mx\r\n250-AUTH PLAIN LOGIN\r\n250 XCLIENT ADDR PORT\r\n")
    assert look.seen() == [Offered(("AUTH PLAIN LOGIN", "XCLIENT ADDR PORT"), ("PLAIN", "LOGIN"))]
    assert look.said() == b"XCLIENT ADDR=192.0.2.7 PORT=40000\r\n"
    look.hears(b"220 mx hello\r\n")
    assert look.seen() == [Introduced(True, "it takes XCLIENT: 220 mx hello", attributes=("ADDR", "PORT"))]
    assert look.said() == b"QUIT\r\n"
    assert look.event() == LoggedIn()


@pytest.mark.parametrize("name", ["smtp", "lmtp"])
def test_mail_without_xclient(name: str) -> None:
    """Without XCLIENT nothing is told, and the remedy names the settings of both servers that have it."""
    look = Look(name)
    look.hears(b"220 mx hello\r\n250 mx\r\n")
    assert look.seen()[1] == Offered(())
    look = Look(name)
    look.hears(b"220 mx hello\r\n250-mx\r\n250 XCLIENT ADDR\r\n550 not you\r\n")
    introduced = look.seen()[-1]
    assert (introduced.taken, introduced.attributes) == (False, ("ADDR",))
    assert introduced.detail == "it refuses the XCLIENT that it offers: 550 not you"
    assert "smtpd_authorized_xclient_hosts" in introduced.remedy
    assert "login_trusted_networks" in introduced.remedy


def test_mail_whose_hello_is_refused() -> None:
    """A server that does not know EHLO offers nothing, and is taken leave of."""
    look = Look("smtp")
    look.hears(b"220 mx hello\r\n502 what?\r\n")
    assert look.seen()[1:] == [Offered(())]
    assert look.said() == b"EHLO localhost\r\nQUIT\r\n"
    assert look.event() == LoggedIn()


def test_mail_that_turns_us_away() -> None:
    """A greeting that is a refusal is seen, and ends it."""
    look = Look("smtp")
    look.hears(b"554 not you\r\n")
    assert look.seen() == [Greeted("554 not you")]
    assert isinstance(look.event(), Refused)


# --- any bytes ----------------------------------------------------------------

LINES = st.sampled_from(
    [
        b"* OK hi\r\n",
        b"* OK [CAPABILITY IMAP4rev1 STARTTLS ID] hi\r\n",
        b"* CAPABILITY IMAP4rev1 AUTH=PLAIN ID\r\n",
        b'* ID ("name" "x")\r\n',
        b"* PREAUTH x\r\n",
        b"M1 OK x\r\n",
        b"M2 OK x\r\n",
        b"M3 NO x\r\n",
        b"+OK [XCLIENT] hi\r\n",
        b"+OK\r\nSTLS\r\nUSER\r\n.\r\n",
        b"SASL PLAIN\r\n",
        b".\r\n",
        b"-ERR x\r\n",
        b"220 hi\r\n",
        b"250-x\r\n250-STARTTLS\r\n250 XCLIENT ADDR HELO\r\n",
        b"250 x\r\n",
        b"550 x\r\n",
        b'"SASL" "PLAIN"\r\n"STARTTLS"\r\n"XCLIENT"\r\n',
        b'OK "x"\r\n',
        b'"X" {3+}\r\na\x1bb\r\n',
        b"\x1b[2J\x9b\xc2\x9b\r\n",
    ]
)
STREAMS = st.lists(st.one_of(LINES, LINES, LINES, st.binary(max_size=200)), max_size=14)
BY_NAME = st.sampled_from(NAMES)
ANY_TERMS = st.sampled_from([TERMS, QUIET, LoginTerms(Method.NONE, starttls=True)])


def run(name: str, terms: LoginTerms, segments: list[bytes]) -> tuple[bytes, list[Any], list[Sight]]:
    """Play a backend's stream, up to a handshake or the end."""
    look = Look(name, terms)
    for segment in segments:
        look.hears(segment)
        if look.events:
            break
    return look.said(), look.events, look.seen()


@given(BY_NAME, ANY_TERMS, STREAMS.map(b"".join), st.integers(1, 30))
def test_any_split_of_a_stream_gives_the_same(name: str, terms: LoginTerms, data: bytes, size: int) -> None:
    """However a backend's bytes are cut, the same is said and seen, and the same comes of it."""
    segments = [data[start : start + size] for start in range(0, len(data), size)]
    cut, whole = run(name, terms, segments), run(name, terms, [data])
    if StartTLS() in cut[1] or StartTLS() in whole[1]:
        # What comes with the answer to STARTTLS and is refused can come behind it, and is TLS then.
        return
    assert cut == whole


@given(BY_NAME, ANY_TERMS, STREAMS)
def test_any_bytes_of_a_backend(name: str, terms: LoginTerms, data: list[bytes]) -> None:
    """No bytes raise; what is seen is bounded and shows no control character; it ends once at most."""
    look = Look(name, terms)
    sights: list[Sight] = []
    for segment in data:
        look.hears(segment)
        sights += look.seen()
        if look.events and look.events[-1] == StartTLS():
            look.take(look.half.secured())
    assert sum(isinstance(event, LoggedIn | Refused) for event in look.events) <= 1
    assert Ready() not in look.events
    assert len(sights) <= 4
    for sight in sights:
        text = repr(sight)
        assert "\\x1b" not in text.replace("\\\\", "")
        assert len(text) < 3 * 8192


@given(BY_NAME, st.sampled_from([b"x", b"* OK ", b"220-", b"+OK x", b"220-x\r\n", b"* OK\r\n", b"\0", b"\r"]))
def test_a_greeting_without_an_end_is_given_up(name: str, unit: bytes) -> None:
    """A flood is cut off at the readers' bounds, or ignored without being kept."""
    look = Look(name)
    reader = look.half._reader
    for _ in range(100):
        look.hears(unit * 100)
        assert len(reader) <= 16 * 1024
        if look.events:
            break


@given(BY_NAME, STREAMS.map(b"".join))
def test_nothing_like_a_login_is_said(name: str, data: bytes) -> None:
    """Whatever a backend offers, no command that could log in is sent."""
    look = Look(name)
    look.hears(data)
    if look.events and look.events[0] == StartTLS():
        look.take(look.half.secured())
        look.hears(data)
    words = look.said().upper().replace(b"LOGOUT", b"").split()
    assert not {b"LOGIN", b"AUTHENTICATE", b"AUTH", b"USER", b"PASS", b"MAIL", b"RCPT", b"DATA"} & set(words)
    assert Send(b"") not in look.events
