"""Thousands of sessions, one after the other and all at once, leave nothing behind in mailroute."""

from __future__ import annotations

import base64
import contextlib
import resource
import ssl
from collections.abc import Callable, Iterator

import pytest
from servers.accounts import ALICE, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.processes import wait_until
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners, users

pytestmark = pytest.mark.integration

IN_A_ROW = 2000
AT_ONCE = 300
WARM_UP = 2000

GROWTH = 2 * 1024
"""How much more memory may be in use afterwards, for each of the sessions in a row.

A session that was not let go would cost 5 kB, and 50 kB with TLS; the
allocator takes its own share in the warm-up.
"""

THREADS = 11
"""The reactor's own, and its pool of up to 10, which grows by need."""


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    with Dovecot(Terms(certificate=certificate, pop3=True, sieve=True), ALICE) as server:
        server.deliver(ALICE, message("for alice"))
        yield server


@pytest.fixture(params=["none", "starttls"])
def proxy(
    request: pytest.FixtureRequest, east: Dovecot, authority: Authority, certificate: Certificate
) -> Iterator[Mailroute]:
    """A mailroute of its own for each test; the parameter is the security on the way to the backend."""
    config = configuration(certificate, {"east": backend(east, authority, security=request.param)})
    with Mailroute(listeners(), config, users(ALICE)) as mailroute:
        yield mailroute


def visit(proxy: Mailroute, name: str, context: ssl.SSLContext) -> RawImap:
    """Connect, log in, and stay."""
    session = RawImap("127.0.0.1", proxy.ports[name])
    if name == "imaps":
        session.handshake(context)
    session.greeting()
    if name == "imap":
        session.starttls(context)
    answer = session.command(f'a LOGIN "{ALICE.user}" "{ALICE.password}"')
    assert b"a OK" in answer, answer
    return session


def in_a_row(proxy: Mailroute, context: ssl.SSLContext, count: int) -> None:
    """Have a number of sessions, each tenth of them with STARTTLS and each tenth with TLS."""
    for number in range(count):
        with visit(proxy, {0: "imap", 1: "imaps"}.get(number % 10, "plain"), context) as session:
            # Some leave as they should, and some just go.
            if number % 3:
                session.send(b"z LOGOUT\r\n")
                assert b"z OK" in session.rest()


def test_two_thousand_sessions_in_a_row_leave_nothing(proxy: Mailroute, authority: Authority) -> None:
    """After 2 000 sessions mailroute has the descriptors, threads and memory that it had before."""
    context = authority.context()
    leaves_nothing(
        proxy,
        lambda: in_a_row(proxy, context, WARM_UP),
        lambda: in_a_row(proxy, context, IN_A_ROW),
        IN_A_ROW * GROWTH,
    )


_PLAIN = base64.b64encode(f"\0{ALICE.user}\0{ALICE.password}".encode()).decode()

OTHERS = {
    "pop3": ("STLS", rb"(\+OK|-ERR) ", f"USER {ALICE.user}\r\nPASS {ALICE.password}\r\nSTAT", "QUIT"),
    "managesieve": (
        "STARTTLS",
        rb"(OK|NO|BYE) ",
        f'AUTHENTICATE "PLAIN" "{_PLAIN}"\r\nLISTSCRIPTS',
        "LOGOUT",
    ),
}
"""The other protocols by name: how TLS is asked for, what an answer's last line begins with, what a
client says that logs in and looks, and how it leaves.
"""


def others_in_a_row(proxy: Mailroute, protocol: str, context: ssl.SSLContext, count: int) -> None:
    """Have a number of sessions, each tenth of them with STARTTLS and each tenth with TLS."""
    starttls, answer, login, bye = OTHERS[protocol]
    for number in range(count):
        security = {0: "starttls", 1: "tls"}.get(number % 10, "none")
        with RawImap("127.0.0.1", proxy.ports[security]) as session:
            if security == "tls":
                session.handshake(context)
            session.read(answer)
            if security == "starttls":
                session.send(starttls.encode() + b"\r\n")
                session.read(answer)
                session.handshake(context)
                if protocol == "managesieve":
                    session.read(answer)
            session.send(login.encode() + b"\r\n")
            said = b"".join(session.read(answer) for _ in login.splitlines())
            assert b"Logged in" in said
            # Some leave as they should, and some just go.
            if number % 3:
                session.send(bye.encode() + b"\r\n")
                assert b"OK" in session.rest()


@pytest.mark.parametrize("protocol", OTHERS)
def test_a_thousand_sessions_of_another_protocol_leave_nothing(
    east: Dovecot, authority: Authority, certificate: Certificate, protocol: str
) -> None:
    """After 1 000 sessions of it mailroute has the descriptors, threads and memory that it had before."""
    context = authority.context()
    port = {"pop3": east.pop3, "managesieve": east.sieve}[protocol]
    block = backend(east, authority, **{protocol: f"tcp:127.0.0.1:{port}"})
    listen = {name: {"protocol": protocol, "security": name} for name in ("none", "starttls", "tls")}
    with Mailroute(listen, configuration(certificate, {"east": block}), users(ALICE)) as proxy:
        leaves_nothing(
            proxy,
            lambda: others_in_a_row(proxy, protocol, context, 300),
            lambda: others_in_a_row(proxy, protocol, context, 1000),
            1000 * GROWTH,
        )


def test_three_hundred_sessions_at_once_leave_nothing(proxy: Mailroute, authority: Authority) -> None:
    """With 300 sessions open all of them work; when they end, mailroute is as it was before."""
    context = authority.context()
    allow_descriptors(4 * AT_ONCE)
    leaves_nothing(
        proxy,
        lambda: all_at_once(proxy, context),
        lambda: all_at_once(proxy, context),
        IN_A_ROW * GROWTH,
    )


def leaves_nothing(
    proxy: Mailroute, warm_up: Callable[[], None], work: Callable[[], None], growth: int
) -> None:
    """Measure before and after some work; what is only allocated once, the warm-up has allocated."""
    warm_up()
    wait_until("the warm-up's sockets to be closed", proxy.idle)
    descriptors, memory = proxy.descriptors(), proxy.memory()
    work()
    wait_until("all sockets to be closed", proxy.idle)
    assert proxy.descriptors() == descriptors
    assert proxy.threads() <= THREADS
    assert proxy.memory() - memory < growth


def all_at_once(proxy: Mailroute, context: ssl.SSLContext) -> None:
    """Have many sessions side by side, use every one while all are open, and let them go in several ways."""
    with contextlib.ExitStack() as crowd:
        sessions = [
            crowd.enter_context(visit(proxy, ("plain", "imap", "imaps")[number % 3], context))
            for number in range(AT_ONCE)
        ]
        assert proxy.sockets() >= 2 * AT_ONCE
        for session in sessions:
            session.send(b"b SELECT INBOX\r\n")
        for session in sessions:
            assert b"1 EXISTS" in session.read(b"b OK")
        for session in sessions[::2]:
            session.send(b"z LOGOUT\r\n")
        for session in sessions[::2]:
            assert b"z OK" in session.read(b"z ")


def allow_descriptors(count: int) -> None:
    """Make sure that this process may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
