"""A real Dovecot's auth service decides where accounts live."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from asking import BROKEN_NAMES, HOSTILE_NAMES
from asking import answered as ask
from attrs import evolve
from readme import TEXT, blocks
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from mailroute import authenticators, routers
from mailroute.events import Change, Credentials, LoginRefused, Lookup, Reason, Route
from mailroute.names import UserNames
from mailroute.proofs import Proof
from mailroute.routers import SourceContext
from mailroute.testing import CLIENT

pytestmark = pytest.mark.integration

EXTRAS = {
    "moved": "proxy=y host=10.0.0.5 port=1143 destuser=m.oved pass=s3cret",
    "named": "host=west",
    "odd": 'host=west forward_what=a"b',
    "closed": "nologin=y reason=moving",
    "nonsense": "host=west port=99999",
    "plain": "",
    "alias": "user=Plain",
    "alias-there": "user=plain host=west",
}
PASSWORD = "se cret'\"%:*ü"


@pytest.fixture(scope="module")
def decider() -> Iterator[Dovecot]:
    """A Dovecot that is asked, and holds no mail."""
    with Dovecot(Terms(ssl="no", auth_sockets=True), ALICE) as server:
        for user, extra in EXTRAS.items():
            server.add(Account(user, PASSWORD, "east"), extra)
        yield server


def made(server: Dovecot, **options: object):
    """Make a router that runs, and asks this server."""
    context = SourceContext(
        server.folder / "run",
        frozenset({"east", "west"}),
        str.lower,
        reactor,
        deferToThread,
        label="route[1]",
    )
    keys = {key: value for key, value in {"backend": "east", **options}.items() if value is not None}
    router = routers.source("dovecot-auth").router(keys, context)
    IService(router).startService()
    return router


@pytest.fixture
def checking(decider: Dovecot):
    router = made(decider, socket="auth-client")
    yield router
    router.stopService()


@pytest.fixture
def telling(decider: Dovecot):
    router = made(decider, master_socket="auth-master")
    yield router
    router.stopService()


def lookup(user: str, password: str = PASSWORD, protocol: str = "imap") -> Lookup:
    credentials = Credentials("PLAIN", user.encode(), password.encode())
    return Lookup(user, protocol, CLIENT, credentials)


MOVED = Route("east", "m.oved", password=b"s3cret", change=Change("10.0.0.5", 1143))
ROUTES = {
    "moved": MOVED,
    "named": Route("west", "named"),
    "odd": Route("west", "odd", forward=(("what", 'a"b'),)),
    "plain": Route("east"),
    "alias": Route("east", "Plain", user="Plain"),
    "alias-there": Route("west", "plain", user="plain"),
}


@pytest.mark.parametrize("user", ROUTES)
@pytest_twisted.ensureDeferred
async def test_extra_fields_decide(checking, telling, user: str) -> None:
    """Both sockets give the route that the passdb's fields say; the one that checks passwords proves it."""
    assert await ask(telling, lookup(user)) == ROUTES[user]
    assert await ask(checking, lookup(user)) == evolve(ROUTES[user], proven=True)


@pytest_twisted.ensureDeferred
async def test_where_no_backend_is_for_all_a_user_without_a_host_is_for_others(decider: Dovecot) -> None:
    """Another name alone says nothing of where the account lives."""
    router = made(decider, socket="auth-client", backend=None)
    for user in ("plain", "alias"):
        assert await ask(router, lookup(user)) is None
    router.stopService()


@pytest.mark.parametrize("user", ["moved", "plain", "alias", "alias-there"])
@pytest_twisted.ensureDeferred
async def test_who_is_checked_is_who_dovecot_says(decider: Dovecot, user: str) -> None:
    """A password that Dovecot takes for another user's (``user=``) opens that one's account, and no other."""
    context = SourceContext(decider.folder / "run", frozenset(), str.lower, reactor, deferToThread)
    authenticator = authenticators.source("dovecot-auth").authenticator({"socket": "auth-client"}, context)
    service = IService(authenticator)
    service.startService()
    expected = {"alias": "plain", "alias-there": "plain"}.get(user, user)
    assert await authenticator.authenticate(lookup(user)) == expected
    service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_domain_that_dovecot_cuts_off_is_not_another_ones() -> None:
    """Where Dovecot knows users by less than the client has sent, nobody becomes the same name elsewhere."""
    with Dovecot(Terms(ssl="no", auth_sockets=True, username_format="local"), ALICE) as server:
        server.add(Account("bob", PASSWORD, "east"))
        names = UserNames(default_domain="example.org")
        context = SourceContext(
            server.folder / "run",
            frozenset(),
            names.normalise,
            reactor,
            deferToThread,
            label="authenticate[1]",
        )
        authenticator = authenticators.source("dovecot-auth").authenticator(
            {"socket": "auth-client"}, context
        )
        service = IService(authenticator)
        service.startService()
        for name in ("bob@example.org", "bob@elsewhere.example", "BOB@example.org"):
            assert await authenticator.authenticate(lookup(name)) == "bob@example.org"
        service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_refused(checking) -> None:
    """Nobody gets a route without the right password, nor with the protocol's own words in it."""
    for password in ("wrong", "", f"{PASSWORD}\tnologin", "x\nAUTH\t9\tPLAIN", "\x01t"):
        assert await ask(checking, lookup("named", password)) is Reason.AUTHENTICATION_FAILED
    for user in ("nobody", "named\tnologin", "x\ny"):
        assert await ask(checking, lookup(user)) is Reason.AUTHENTICATION_FAILED
    assert await ask(checking, lookup("named", "x" * 9000)) is Reason.AUTHENTICATION_FAILED
    assert await ask(checking, lookup("named")) == evolve(ROUTES["named"], proven=True)


@pytest.mark.parametrize("user", [*HOSTILE_NAMES, *BROKEN_NAMES])
@pytest_twisted.ensureDeferred
async def test_no_name_is_more_than_a_name(checking, telling, user: str) -> None:
    """Whatever a name holds, it is looked for as it is; it is nobody's, and the next question is answered."""
    assert await ask(telling, lookup(user)) is None
    assert await ask(checking, lookup(user)) is Reason.AUTHENTICATION_FAILED
    assert await ask(telling, lookup("named")) == ROUTES["named"]
    assert telling.counts.failed == checking.counts.failed == 0


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
@pytest_twisted.ensureDeferred
async def test_a_wrong_token_is_refused(mechanism: str) -> None:
    """Dovecot says why, has that acknowledged, and refuses: it is no failure, which would cost the others."""
    terms = Terms(
        ssl="no", auth_sockets=True, tokens=b"k" * 32, mechanisms=("plain", "xoauth2", "oauthbearer")
    )
    with Dovecot(terms, ALICE) as server:
        router = made(server, socket="auth-client")
        try:
            for token, answer in ((server.token(ALICE), Route("east", proven=True)), ("x", None)):
                message = f"user={ALICE.user}\1auth=Bearer {token}\1\1"
                if mechanism == "OAUTHBEARER":
                    message = f"n,a={ALICE.user},\1auth=Bearer {token}\1\1"
                shown = Credentials(mechanism, ALICE.user.encode(), message.encode(), proof=Proof.TOKEN)
                said = await ask(router, Lookup(ALICE.user, "imap", CLIENT, shown))
                assert said == (answer or Reason.AUTHENTICATION_FAILED)
            assert router.counts.failed == 0
        finally:
            router.stopService()


@pytest.mark.parametrize("proof", [Proof.CERTIFICATE, Proof.SCRAM_SHA_256])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_checked_is_not_asked(checking, proof: Proof) -> None:
    """Whom a certificate or a SCRAM exchange has let in has nothing that Dovecot could check."""
    shown = Credentials("…", b"named", b"", proof=proof)
    assert await ask(checking, Lookup("named", "imap", CLIENT, shown)) is Reason.MISCONFIGURED
    assert checking.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_the_name_that_is_checked_is_the_one_that_is_opened(checking) -> None:
    """Dovecot is asked for the name in its one form, and not as the client wrote it."""
    assert await ask(checking, evolve(lookup("plain"), user="nobody")) is Reason.AUTHENTICATION_FAILED
    written = Credentials("PLAIN", b"short", PASSWORD.encode())
    assert await ask(checking, evolve(lookup("plain"), credentials=written)) == Route("east", proven=True)


@pytest_twisted.ensureDeferred
async def test_who_is_not_there_and_who_may_not(checking, telling) -> None:
    """An unknown user goes on to the next route; a closed account is refused."""
    assert await ask(telling, lookup("nobody")) is None
    assert await ask(telling, lookup("no\tbody")) is None
    assert await ask(telling, lookup("closed")) is Reason.CONTACT_ADMIN
    assert await ask(checking, lookup("closed")) is Reason.CONTACT_ADMIN


@pytest_twisted.ensureDeferred
async def test_nonsense_refuses_that_login_alone(telling) -> None:
    """A port that is none is told apart; the next question is answered."""
    with pytest.raises(routers.BadAnswer, match="port must be"):
        await telling.route(lookup("nonsense"))
    assert await ask(telling, lookup("named")) == ROUTES["named"]


@pytest_twisted.ensureDeferred
async def test_many_at_once_over_one_connection(checking, telling) -> None:
    """Hundreds of questions at a time are answered, each with its own answer."""
    questions = [lookup(user, protocol=str(number)) for number in range(50) for user in ROUTES]
    answers = await gatherResults([telling.route(question) for question in questions])
    assert answers == list(ROUTES.values()) * 50
    answers = await gatherResults([checking.route(question) for question in questions])
    assert answers == [evolve(route, proven=True) for route in ROUTES.values()] * 50


@pytest_twisted.ensureDeferred
async def test_deliveries_need_the_other_socket(checking) -> None:
    """Without a password there is nothing to check: the operator is told what to do."""
    with pytest.raises(LoginRefused, match="use master_socket"):
        await checking.route(Lookup("named", "lmtp", CLIENT))


@pytest_twisted.ensureDeferred
async def test_it_comes_back_by_itself() -> None:
    """While Dovecot is away old answers hold; when it is back, it is asked over a new connection."""
    with Dovecot(Terms(ssl="no", auth_sockets=True), ALICE) as server:
        server.add(Account("named", PASSWORD, "east"), EXTRAS["named"])
        router = made(server, master_socket="auth-master", cache_ttl=0.001, breaker_pause=0.01)
        try:
            assert await ask(router, lookup("named")) == ROUTES["named"]
            server.kill()
            time.sleep(0.01)
            assert await ask(router, lookup("named")) == ROUTES["named"]
            assert await ask(router, lookup("plain")) is Reason.UNAVAILABLE
            assert router.counts.stale == 1
            server.start()
            assert await ask(router, lookup("nobody")) is None
        finally:
            router.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs(decider: Dovecot) -> None:
    """A question has its time, and what is known is told meanwhile."""
    router = made(decider, master_socket="auth-master", timeout=0.2)
    assert await ask(router, lookup("named")) == ROUTES["named"]
    stopped = auth_processes(decider)
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert await ask(router, lookup("moved")) is Reason.UNAVAILABLE
        assert router.counts.slow == 1
        assert await ask(router, lookup("named")) == ROUTES["named"]
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        router.stopService()


def auth_processes(server: Dovecot) -> list[int]:
    """Return the processes that answer questions: the server's children of that name."""
    pid = server.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "auth\n"]


def test_a_login_from_end_to_end(decider: Dovecot, certificate: Certificate, authority: Authority) -> None:
    """The README's example: Dovecot checks the password and says where; mailroute logs in there with that."""
    every = blocks(TEXT, "toml")
    (text,) = [block.text for block in every if '[[route]]\nsource = "dovecot-auth"' in block.text]
    (route,) = tomllib.loads(text)["route"]
    there = Account("there", "otherpassword", "east")
    with Dovecot(Terms(certificate=certificate), there) as mail:
        mail.deliver(there, message("for who moved"))
        decider.add(BOB, f"host=localhost port={mail.imap} destuser=there pass=otherpassword")
        socket = str(decider.folder / "run" / "auth-client")
        route |= {"socket": socket}
        config = configuration(certificate, {"shards": backend(mail, authority)}) | {"route": [route]}
        with Mailroute(listeners(), config) as proxy, RawImap("127.0.0.1", proxy.ports["plain"]) as session:
            session.greeting()
            assert b"a NO [AUTHENTICATIONFAILED]" in session.command(f'a LOGIN "{BOB.user}" "wrong"')
            assert b"b OK" in session.command(f'b LOGIN "{BOB.user}" "{BOB.password}"')
            assert b"1 EXISTS" in session.command("c SELECT INBOX")
        assert mail.log.find("user=<there>")
        assert "otherpassword" not in proxy.log.text()
