"""Thousands of sessions, one after the other and all at once, leave nothing behind in mailroute."""

from __future__ import annotations

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

GROWTH = 4 * 1024 * 1024
"""How much more memory may be in use afterwards: 2 kB for each of the sessions in a row.

A session that was not let go would cost 5 kB, and 50 kB with TLS; the
allocator takes its own share in the warm-up.
"""

THREADS = 11
"""The reactor's own, and its pool of up to 10, which grows by need."""


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    with Dovecot(Terms(certificate=certificate), ALICE) as server:
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
        proxy, lambda: in_a_row(proxy, context, WARM_UP), lambda: in_a_row(proxy, context, IN_A_ROW)
    )


def test_three_hundred_sessions_at_once_leave_nothing(proxy: Mailroute, authority: Authority) -> None:
    """With 300 sessions open all of them work; when they end, mailroute is as it was before."""
    context = authority.context()
    allow_descriptors(4 * AT_ONCE)
    leaves_nothing(proxy, lambda: all_at_once(proxy, context), lambda: all_at_once(proxy, context))


def leaves_nothing(proxy: Mailroute, warm_up: Callable[[], None], work: Callable[[], None]) -> None:
    """Measure before and after some work; what is only allocated once, the warm-up has allocated."""
    warm_up()
    wait_until("the warm-up's sockets to be closed", proxy.idle)
    descriptors, memory = proxy.descriptors(), proxy.memory()
    work()
    wait_until("all sockets to be closed", proxy.idle)
    assert proxy.descriptors() == descriptors
    assert proxy.threads() <= THREADS
    assert proxy.memory() - memory < GROWTH


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
