"""Every way to log in, and every way to fail at it, as real servers judge them."""

from __future__ import annotations

import base64
import imaplib
import time
from collections.abc import Callable, Iterator

import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import PROXIED, Site, backend, configuration, listeners, users

pytestmark = pytest.mark.integration

PASSWORDS = [
    "with space",
    " leading and trailing ",
    'quote"inside',
    '"',
    "back\\slash",
    '\\"\\',
    "{brace",
    "{5}",
    "{3+}",
    "(list) %* ]",
    "café",
    "пароль密码🔑",
    "NIL",
    "*",
    "=",
    "x" * 500,
]

MECHANISMS = ("plain", "login", "xoauth2", "oauthbearer")

AWKWARD = [Account(f"awkward{n}@east.example.org", password, "east") for n, password in enumerate(PASSWORDS)]


def quoted(text: str) -> bytes:
    """Return an IMAP quoted string."""
    return b'"' + text.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def encoded(*parts: str) -> bytes:
    """Return SASL PLAIN's message, or any other that NULs divide."""
    return base64.b64encode("\0".join(parts).encode())


# Each of these logs in by one way of the protocol, and returns the server's answer up to the tagged line.


def login_quoted(session: RawImap, account: Account) -> bytes:
    return session.command(b"a LOGIN " + quoted(account.user) + b" " + quoted(account.password))


def login_literals(session: RawImap, account: Account) -> bytes:
    user, password = account.user.encode(), account.password.encode()
    session.send(b"a LOGIN {%d}\r\n" % len(user))
    session.read(rb"\+")
    session.send(user + b" {%d}\r\n" % len(password))
    session.read(rb"\+")
    session.send(password + b"\r\n")
    return session.read(b"a ")


def login_hasty_literals(session: RawImap, account: Account) -> bytes:
    user, password = account.user.encode(), account.password.encode()
    session.send(b"a LOGIN {%d+}\r\n%s {%d+}\r\n%s\r\n" % (len(user), user, len(password), password))
    return session.read(b"a ")


def plain_at_once(session: RawImap, account: Account) -> bytes:
    return session.command(b"a AUTHENTICATE PLAIN " + encoded("", account.user, account.password))


def plain_when_asked(session: RawImap, account: Account) -> bytes:
    session.send(b"a AUTHENTICATE PLAIN\r\n")
    session.read(rb"\+")
    session.send(encoded("", account.user, account.password) + b"\r\n")
    return session.read(b"a ")


def authenticate_login(session: RawImap, account: Account) -> bytes:
    session.send(b"a AUTHENTICATE LOGIN\r\n")
    for answer in (account.user, account.password):
        session.read(rb"\+")
        session.send(encoded(answer) + b"\r\n")
    return session.read(b"a ")


WAYS_IN = [
    login_quoted,
    login_literals,
    login_hasty_literals,
    plain_at_once,
    plain_when_asked,
    authenticate_login,
]

Login = Callable[[RawImap, Account], bytes]


@pytest.fixture(scope="module")
def logins(authority: Authority, certificate: Certificate) -> Iterator[Site]:
    """A server of its own, for passwords that a shared one would have to know beforehand."""
    master = Account("master", "the master's own", "east")
    terms = Terms(certificate=certificate, master=master, tokens=b"k" * 32, mechanisms=MECHANISMS)
    with Dovecot(terms, ALICE, *AWKWARD) as east:
        east.deliver(ALICE, message("for alice"))
        east.settle(ALICE)
        config = configuration(certificate, {"east": backend(east, authority)}, bad_commands=0)
        listen = listeners()
        for block in listen.values():
            block["mechanisms"] = [name.upper() for name in MECHANISMS]
        with Mailroute(listen, config, users(ALICE)) as proxy:
            yield Site(authority, {"east": east}, proxy)


@pytest.mark.parametrize("log_in", WAYS_IN, ids=lambda function: function.__name__)
def test_any_password_gets_through(logins: Site, way: str, log_in: Login) -> None:
    """Spaces, quotes, backslashes, braces, 8-bit text: each reaches the server as it was typed."""
    for account in AWKWARD:
        door = logins.door(way, account)
        with RawImap("127.0.0.1", door.imap) as session:
            session.greeting()
            session.starttls(door.authority.context())
            answer = log_in(session, account)
            assert b"\r\na OK" in b"\r\n" + answer, (account.password, answer)
            assert b"LOGOUT" in session.command("b LOGOUT").upper()


@pytest.mark.parametrize("log_in", WAYS_IN, ids=lambda function: function.__name__)
def test_after_a_wrong_password_the_right_one_is_taken(logins: Site, way: str, log_in: Login) -> None:
    """A wrong password gets AUTHENTICATIONFAILED; the client stays, and its next try succeeds."""
    door = logins.door(way, ALICE)
    wrong = Account(ALICE.user, "not that", "east")
    with RawImap("127.0.0.1", door.imap) as session:
        session.greeting()
        session.starttls(door.authority.context())
        answer = log_in(session, wrong)
        assert answer.splitlines()[-1].startswith(b"a NO [AUTHENTICATIONFAILED] "), answer
        assert b"b OK" in session.command("b NOOP")
        answer = log_in(session, ALICE)
        assert answer.splitlines()[-1].startswith(b"a OK "), answer
        assert b"1 EXISTS" in session.command("c SELECT INBOX")


def test_tries_do_not_mix(logins: Site, way: str) -> None:
    """After a failed try for one account, the password of the second try is not used with the first name."""
    door = logins.door(way, ALICE)
    with RawImap("127.0.0.1", door.imap) as session:
        session.greeting()
        session.starttls(door.authority.context())
        other = AWKWARD[0]
        assert b"a NO" in login_quoted(session, Account(other.user, ALICE.password, "east"))
        assert b"a NO" in login_quoted(session, Account(ALICE.user, other.password, "east"))
        assert b"a OK" in login_quoted(session, ALICE)


def test_an_unknown_user_and_a_wrong_password_are_told_alike(logins: Site) -> None:
    """Nothing in mailroute's words tells whether an account exists, here, there or nowhere."""
    known_here = Account(ALICE.user, "not that", "east")
    unknown_there = Account("nobody@east.example.org", "not that", "east")
    unknown_here = Account("nobody@nowhere.example.org", "not that", "east")
    for log_in in WAYS_IN:
        said = set()
        for account in (known_here, unknown_there, unknown_here):
            door = logins.door(PROXIED, account)
            with RawImap("127.0.0.1", door.imap) as session:
                session.greeting()
                session.starttls(door.authority.context())
                said.add(log_in(session, account))
        assert len(said) == 1, said
        assert b"a NO [AUTHENTICATIONFAILED] " in said.pop()


def test_an_unknown_user_takes_as_long_as_a_wrong_password(
    logins: Site, authority: Authority, certificate: Certificate
) -> None:
    """A failed login takes as long whether or not a server was asked, within what a client can measure."""
    east = logins.servers["east"]
    config = configuration(certificate, {"east": backend(east, authority)}, failure_delay=1.5)
    seconds = {}
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        for user in (ALICE.user, "nobody@nowhere.example.org"):
            with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
                session.greeting()
                start = time.monotonic()
                login_quoted(session, Account(user, "not that", "east"))
                seconds[user] = time.monotonic() - start
    shorter, longer = sorted(seconds.values())
    assert shorter >= 1.4, seconds
    assert longer - shorter < 0.5, seconds


def test_a_master_user_of_the_backend_opens_an_account(logins: Site, way: str) -> None:
    """A client that authenticates as a master user, for alice by authorization identity, gets her mail."""
    door = logins.door(way, ALICE)
    with imaplib.IMAP4_SSL(door.host, door.imaps, ssl_context=door.authority.context()) as session:
        session.authenticate("PLAIN", lambda _: f"{ALICE.user}\0master\0the master's own".encode())
        session.select()
        assert b"for alice" in session.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1][0][1]


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_token_opens_an_account(logins: Site, way: str, mechanism: str) -> None:
    """An OAuth token reaches the server by the mechanism that the client chose, and opens the account."""
    token = logins.servers["east"].token(ALICE)
    said = {
        "XOAUTH2": f"user={ALICE.user}\1auth=Bearer {token}\1\1",
        "OAUTHBEARER": f"n,a={ALICE.user},\1host=localhost\1port=993\1auth=Bearer {token}\1\1",
    }[mechanism]
    door = logins.door(way, ALICE)
    with imaplib.IMAP4_SSL(door.host, door.imaps, ssl_context=door.authority.context()) as session:
        session.authenticate(mechanism, lambda _: said.encode())
        assert session.select() == ("OK", [b"1"])


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_bad_token_is_refused_and_a_password_still_taken(logins: Site, way: str, mechanism: str) -> None:
    """A token that the server refuses leaves the client connected, free to come with a password."""
    said = {
        "XOAUTH2": f"user={ALICE.user}\1auth=Bearer x.y.z\1\1",
        "OAUTHBEARER": f"n,a={ALICE.user},\1auth=Bearer x.y.z\1\1",
    }[mechanism]
    door = logins.door(way, ALICE)
    with RawImap("127.0.0.1", door.imap) as session:
        session.greeting()
        session.starttls(door.authority.context())
        session.send(b"a AUTHENTICATE %s %s\r\n" % (mechanism.encode(), base64.b64encode(said.encode())))
        # The server's error comes as a challenge, which the client has to answer (RFC 7628 section 3.2.3).
        if session.read(rb"(\+|a )").splitlines()[-1].startswith(b"+"):
            session.send(b"AQ==\r\n")
            assert b"a NO" in session.read(b"a ")
        assert b"a OK" in login_quoted(session, ALICE)


def test_a_master_password_here_opens_any_account_there(
    logins: Site, authority: Authority, certificate: Certificate
) -> None:
    """With ``authenticate`` and ``login = "master"`` a password of mailroute's own opens the account."""
    east = logins.servers["east"]
    keys = {"login": "master", "master_user": "master", "master_password_file": "master-password"}
    config = configuration(certificate, {"east": backend(east, authority, **keys)})
    listen = listeners()
    for block in listen.values():
        block["authenticate"] = "file:passwd"
    files = {"master-password": "the master's own\n", "passwd": f"{ALICE.user}:another one\n"}
    with Mailroute(listen, config, {**users(ALICE), **files}) as proxy:
        for log_in in WAYS_IN:
            with RawImap("127.0.0.1", proxy.ports["imap"]) as session:
                session.greeting()
                session.starttls(authority.context())
                mark = east.log.mark()
                refused = log_in(session, ALICE)  # the password that the server itself would take
                assert b"a NO [AUTHENTICATIONFAILED] " in refused
                assert b"a OK" in log_in(session, Account(ALICE.user, "another one", "east"))
                assert b"1 EXISTS" in session.command("c SELECT INBOX")
            assert not east.log.find("Password mismatch", mark)
            assert "the master's own" not in proxy.log.text()
            assert "another one" not in proxy.log.text()


def test_a_password_wrong_at_the_backend_is_not_logged(logins: Site) -> None:
    """Whatever is tried, no password stands in mailroute's log, and the attempt does."""
    secret = "Tr0ub4dor&3 nobody writes down"
    mark = logins.proxy.log.mark()
    for log_in in WAYS_IN:
        with RawImap("127.0.0.1", logins.proxy.ports["plain"]) as session:
            session.greeting()
            log_in(session, Account(ALICE.user, secret, "east"))
    logins.proxy.log.wait_for("alice@example.com", mark)
    for form in (secret, encoded(secret).decode(), encoded("", ALICE.user, secret).decode()):
        assert form not in logins.proxy.log.text()


def test_bob_is_not_let_in_with_alices_password(site: Site) -> None:
    """Each password is judged by the account's own server."""
    for account, password in ((ALICE, BOB.password), (BOB, ALICE.password)):
        with RawImap("127.0.0.1", site.proxy.ports["plain"]) as session:
            session.greeting()
            answer = login_quoted(session, Account(account.user, password, account.backend))
            assert b"a NO [AUTHENTICATIONFAILED] " in answer
