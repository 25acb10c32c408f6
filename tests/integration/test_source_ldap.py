"""A real slapd decides where accounts live."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from asking import BROKEN_NAMES, HOSTILE_NAMES, explained
from live import patient
from readme import TEXT, blocks
from servers.accounts import Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration
from servers.slapd import BASE, SEARCHER, SECRET, Slapd
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from mailroute import routers
from mailroute.events import Change, Credentials, Lookup, Reason, Route
from mailroute.proofs import Proof
from mailroute.routers import SourceContext
from mailroute.testing import CLIENT

pytestmark = pytest.mark.integration

PASSWORD = "se cret'\"%:*ü"
CLAIRE = Account("claire@east.example.org", PASSWORD, "east")
ODD = {"quote": "a\"b'", "star": "a*", "parenthesis": "a)(uid=*", "backslash": "a\\2a", "unicode": "ü€😀"}


@pytest.fixture(scope="module")
def directory(certificate: Certificate) -> Iterator[Slapd]:
    server = Slapd(certificate)
    server.add("named", PASSWORD, mailHost="west", description="n.amed")
    server.add("moved", PASSWORD, mailHost="east", carLicense="10.0.0.5", roomNumber="1143")
    server.add("full", PASSWORD, mailHost="east", description="n", employeeType="s3cret", givenName="f w")
    server.add("closed", PASSWORD, mailHost="east", employeeNumber="disabled")
    server.add("later", PASSWORD, mailHost="east", departmentNumber="true")
    server.add("nonsense", PASSWORD, mailHost="east", roomNumber="99999")
    server.add("nowhere", PASSWORD, mailHost="north")
    server.add("plain", PASSWORD)
    server.add("several", PASSWORD, description="one\ntwo")
    server.add("empty", "x", mailHost="east")
    for number in range(4):
        server.add("twins", PASSWORD, entry=f"twin{number}")
    for number in range(100):
        server.add(f"u{number}", PASSWORD, mailHost="east", description=f"u{number} there")
    for name, user in ODD.items():
        server.add(user, PASSWORD, entry=name, mailHost="east", description=name, departmentNumber="no")
    server.add(CLAIRE.user, PASSWORD, mailHost="east")
    with server:
        yield server


ATTRIBUTES = {
    "mailHost": "backend",
    "description": "name",
    "carLicense": "host",
    "roomNumber": "port",
    "employeeType": "password",
    "givenName": "forward_what",
    "employeeNumber": "refuse",
    "departmentNumber": "later",
}


@pytest.fixture
def make(tmp_path: Path, directory: Slapd, authority: Authority):
    made = []
    (tmp_path / "secret").write_text(f"{SECRET}\n")

    def make(**options):
        context = SourceContext(
            tmp_path, frozenset({"east", "west"}), str.lower, reactor, deferToThread, label="route[1] (ldap)"
        )
        usual = {
            "urls": [f"ldap://localhost:{directory.port}"],
            "base": f"ou=people,{BASE}",
            "filter": "(&(objectClass=inetOrgPerson)(cn={user}))",
            "attributes": ATTRIBUTES,
            "bind_dn": SEARCHER,
            "bind_password_file": "secret",
            "ca": str(authority.file),
        }
        router = routers.source("ldap").router(usual | options, context)
        router.startService()
        made.append(router)
        return router

    yield make
    for router in made:
        router.stopService()


def lookup(user: str, password: bytes | str = PASSWORD, **more) -> Lookup:
    secret = password.encode() if isinstance(password, str) else password
    return Lookup(user, "imap", CLIENT, Credentials("PLAIN", user.encode(), secret, **more))


async def ask(router, question):
    """Return the answer, or why there is none."""
    return await explained(router, lookup(question) if isinstance(question, str) else question)


ANSWERS = {
    "named": Route("west", "n.amed"),
    "moved": Route("east", change=Change("10.0.0.5", 1143)),
    "full": Route("east", "n", password=b"s3cret", forward=(("what", "f w"),)),
    "plain": None,
    "nobody": None,
    "closed": Reason.CONTACT_ADMIN,
    "later": Reason.UNAVAILABLE,
    "nonsense": "port must be from 1 to 65535, not 99999",
    "nowhere": "there is no backend 'north'",
    "several": "the attribute for name has 2 values, and must have one",
    "twins": "there is more than one such entry in the directory",
}


@pytest_twisted.ensureDeferred
async def test_attributes_decide(make) -> None:
    """An entry's attributes are a route's fields; what makes no sense refuses that login alone."""
    router = make()
    assert not router.proves
    for user, answer in ANSWERS.items():
        assert await ask(router, user) == answer
    assert router.counts.failed == 0


@pytest.mark.parametrize("name", ODD)
@pytest_twisted.ensureDeferred
async def test_no_name_is_more_than_a_name(make, name: str) -> None:
    """What means something in a filter means nothing in a name."""
    assert await ask(make(), ODD[name]) == Route("east", name)
    assert await ask(make(bind=True), ODD[name]) == Route("east", name, proven=True)


@pytest_twisted.ensureDeferred
async def test_nobody_gets_in_by_a_filter(make) -> None:
    """Names that would be everybody's, if they were taken for parts of a filter, are nobody's."""
    router = make()
    ours = ("named)(uid=*", "*)(|(mail=*", "named\0", "named\r\n", "named)(objectClass=*))(&(mail=named")
    for name in (*ours, *HOSTILE_NAMES, *BROKEN_NAMES):
        if name in ODD.values():
            continue  # who is known here, and found by test_no_name_is_more_than_a_name
        assert await ask(router, name) is None
    assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_parts_of_the_name(make) -> None:
    """The filter may be about what is before the @ and what is behind it."""
    router = make(filter="(&(uid={local}@east.example.org)(mail=*@{domain}))")
    assert await ask(router, CLAIRE.user) == Route("east")
    assert await ask(router, "claire@west.example.org") is None
    assert await ask(router, "*@east.example.org") is None
    assert await ask(router, "claire") is None


@pytest_twisted.ensureDeferred
async def test_passwords_are_checked(make) -> None:
    """The directory's own bind decides; without the right password there is no route."""
    router = make(bind=True)
    assert router.proves
    assert await ask(router, "named") == Route("west", "n.amed", proven=True)
    for password in ("wrong", b"\xff", f"{PASSWORD}\0", "x" * 9000, SECRET):
        assert await ask(router, lookup("named", password)) is Reason.AUTHENTICATION_FAILED
    assert await ask(router, lookup("closed", "wrong")) is Reason.AUTHENTICATION_FAILED
    assert await ask(router, "closed") is Reason.CONTACT_ADMIN
    assert await ask(router, "nobody") is None
    assert await ask(router, "named") == Route("west", "n.amed", proven=True)
    assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_an_empty_password_never_binds(make, certificate: Certificate) -> None:
    """Some servers let anybody in with an empty password (RFC 4513 section 5.1.2); they are not asked."""
    server = Slapd(certificate, "allow bind_anon_dn bind_anon_cred")
    server.add("named", PASSWORD, mailHost="east")
    with server:
        router = make(bind=True, urls=[f"ldap://localhost:{server.port}"])
        assert await ask(router, lookup("named", "")) is Reason.AUTHENTICATION_FAILED
        assert await router._directory.check(f"uid=named,ou=people,{BASE}", "") is False
        assert await router._directory.check("", PASSWORD) is False
        assert await ask(router, "named") == Route("east", proven=True)
        assert ' BIND dn="uid=named' in server.log.text()


@pytest_twisted.ensureDeferred
async def test_what_a_bind_cannot_check_is_refused(make) -> None:
    """Tokens, passwords of one who acts for another, and deliveries."""
    router = make(bind=True)
    assert await ask(router, lookup("named", "t", proof=Proof.TOKEN)) is Reason.AUTHENTICATION_FAILED
    acting = lookup("plain", authorize_as=b"named")
    assert await ask(router, acting) is Reason.AUTHORIZATION_FAILED
    assert await ask(router, Lookup("named", "lmtp", CLIENT)) is Reason.MISCONFIGURED
    assert router.counts.failed == 0


@pytest.mark.parametrize("way", ["starttls", "tls"])
@pytest.mark.parametrize("trusted", ["trusted", "another name", "another authority"])
@pytest_twisted.ensureDeferred
async def test_tls(make, directory: Slapd, way: str, trusted: str, tmp_path: Path) -> None:
    """With TLS from the first byte or with STARTTLS, the server has to prove its name."""
    host = "127.0.0.2" if trusted == "another name" else "localhost"
    urls = [f"ldap://{host}:{directory.port}" if way == "starttls" else f"ldaps://{host}:{directory.tls}"]
    options = {"urls": urls, "starttls": way == "starttls", "bind": True}
    if trusted == "another authority":
        options["ca"] = str(Authority(tmp_path / "other").file)
    router = make(**options)
    if trusted == "trusted":
        assert await ask(router, "named") == Route("west", "n.amed", proven=True)
        assert await ask(router, "moved")
    else:
        assert await ask(router, "named") is Reason.UNAVAILABLE


@pytest_twisted.ensureDeferred
async def test_the_searchers_password(make, tmp_path: Path) -> None:
    """It is nowhere to be seen; a wrong one is a failure, and the log has the code and what to look at."""
    with capturedLogs() as logs:
        router = make()
        assert await ask(router, "named") == ANSWERS["named"]
        shown = [repr(router), str(router), repr(vars(router._directory)), repr(logs)]
    assert not [text for text in shown if SECRET in text]
    (tmp_path / "secret").write_text("wr0ng")
    with capturedLogs() as logs:
        router = make()
        assert await ask(router, "named") is Reason.UNAVAILABLE
    said = [event["why"] for event in logs if "why" in event]
    assert said == [
        "the directory refuses, code 49 (invalid credentials); look at bind_dn and bind_password_file"
    ]
    assert "wr0ng" not in repr(logs)


@pytest.mark.parametrize("bind", [False, True])
@pytest_twisted.ensureDeferred
async def test_few_connections_for_many_questions(make, directory: Slapd, bind: bool) -> None:
    """Hundreds of questions at a time are answered over as many connections as there may be."""
    before = directory.log.text().count(" ACCEPT from")
    router = make(bind=bind, connections=4)
    questions = [lookup(f"u{number % 100}", str(number) if bind else PASSWORD) for number in range(300)]
    if not bind:
        questions = questions[:100]
    answers = await gatherResults([Deferred.fromCoroutine(ask(router, question)) for question in questions])
    expected = Reason.AUTHENTICATION_FAILED
    assert answers == [expected if bind else Route("east", f"u{n} there") for n in range(len(questions))]
    if not bind:
        assert directory.log.text().count(" ACCEPT from") - before <= 4
    idle = router._directory
    assert len(idle._searching) + len(idle._checking) <= 4


@pytest_twisted.ensureDeferred
async def test_few_questions_for_many_lookups(make) -> None:
    """10 000 lookups of 100 users ask 100 times."""
    router = make()
    for _ in range(100):
        await gatherResults([Deferred.fromCoroutine(ask(router, f"u{number}")) for number in range(100)])
    assert router.counts.asked == 100


@pytest_twisted.ensureDeferred
async def test_it_comes_back_by_itself(make, certificate: Certificate) -> None:
    """While the server is away old answers hold; when it is back it is asked, and nobody notices."""
    server = Slapd(certificate)
    server.add("named", PASSWORD, mailHost="east")
    with server:
        router = make(urls=[f"ldap://localhost:{server.port}"], cache_ttl=0.001, breaker_pause=0.01)
        assert await ask(router, "named") == Route("east")
        server.kill()
        server.start()
        assert await ask(router, "nobody") is None
        server.kill()
        await patient(lambda: router._positive.fresh(router._key(lookup("named")), reactor.seconds()) is None)
        assert await ask(router, "named") == Route("east")
        assert await ask(router, "other") is Reason.UNAVAILABLE
        assert router.counts.stale == 1
        server.start()
        assert await ask(router, "third") is None


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs(make, directory: Slapd) -> None:
    """A question has its time, what is known is told meanwhile, and the next server is asked."""
    router = make(timeout=0.3)
    both = make(
        timeout=0.6, urls=[f"ldap://localhost:{directory.port}", f"ldaps://localhost:{directory.tls}"]
    )
    assert await ask(router, "named") == ANSWERS["named"]
    directory.hang()
    try:
        assert await ask(router, "moved") is Reason.UNAVAILABLE
        assert router.counts.slow == 1
        assert await ask(router, "named") == ANSWERS["named"]
        assert await ask(both, "moved") is Reason.UNAVAILABLE
    finally:
        directory.hang(False)
    assert await ask(router, "full") == ANSWERS["full"]


@pytest_twisted.ensureDeferred
async def test_the_next_server_is_asked(make, directory: Slapd, certificate: Certificate) -> None:
    """One that hangs costs one question some time, and comes last after that."""
    other = Slapd(certificate)
    with other:
        urls = [f"ldap://localhost:{server.port}" for server in (other, directory)]
        router = make(urls=urls, timeout=2)
        other.hang()
        try:
            assert await ask(router, "named") == ANSWERS["named"]
            assert [server.port for server in router._directory._servers] == [directory.port, other.port]
            assert await ask(router, "moved") == ANSWERS["moved"]
        finally:
            other.hang(False)


@pytest_twisted.ensureDeferred
async def test_a_base_that_there_is_not(make) -> None:
    """What is wrong with the question is not taken for an answer."""
    for options in ({"base": "dc=nowhere"}, {"base": "no name"}):
        assert await ask(make(**options), "named") is Reason.UNAVAILABLE


def test_a_login_from_end_to_end(
    directory: Slapd, certificate: Certificate, authority: Authority, tmp_path: Path
) -> None:
    """The README's example: the directory checks the password and says where; mailroute logs in there."""
    every = blocks(TEXT, "toml")
    (text,) = [block.text for block in every if 'source = "ldap"' in block.text]
    (route,) = tomllib.loads(text)["route"]
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    route |= {"urls": [f"ldap://localhost:{directory.port}"], "ca": str(authority.file)}
    route |= {"bind_password_file": str(tmp_path / "secret")}
    with Dovecot(Terms(certificate=certificate), CLAIRE) as mail:
        mail.deliver(CLAIRE, message("for claire"))
        config = configuration(certificate, {"east": backend(mail, authority)}) | {"route": [route]}
        with (
            Mailroute({"plain": {"security": "none"}}, config) as proxy,
            RawImap("127.0.0.1", proxy.ports["plain"]) as session,
        ):
            session.greeting()
            for secret, answer in (("", b"a NO"), ("wrong", b"a NO"), (PASSWORD, b"a OK")):
                session.send(f'a LOGIN "{CLAIRE.user}" {{{len(secret.encode())}}}\r\n'.encode())
                session.read(b"\\+")
                session.send(secret.encode() + b"\r\n")
                session.read(answer)
            assert b"1 EXISTS" in session.command("c SELECT INBOX")
        assert SECRET not in proxy.log.text()
        assert PASSWORD not in proxy.log.text()
