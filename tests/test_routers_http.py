"""The http source: web servers as they are written for nginx, or for JSON, well-meaning and hostile."""

import gzip
import json
from urllib.parse import unquote

import pytest
import pytest_twisted
from asking import BROKEN_NAMES, HOSTILE_NAMES, explained
from attrs import evolve
from live import Backends, Talk, listening, patient
from servers.auth_http import AuthServer
from servers.certificates import Authority
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from mailroute import routers
from mailroute.events import (
    Address,
    Change,
    Client,
    Credentials,
    LoginRefused,
    Lookup,
    Mailing,
    Reason,
    Route,
)
from mailroute.proofs import ClientCertificate, Proof
from mailroute.routers import BadOption, SourceContext
from mailroute.sources.web import MAX_ANSWER, MAX_BODY
from mailroute.testing import CLIENT
from mailroute.wire.nginx_auth import MAX_PASSWORD

PASSWORD = "se cret'\"%:*ü"
OK = {"Auth-Status": "OK", "Auth-Server": "10.0.0.5", "Auth-Port": "1143"}
THERE = Route("east", change=Change("10.0.0.5", 1143), proven=True)


def undone(value):
    """Undo the escapes in a header, which Python's server has read as Latin-1."""
    return unquote(value.encode("latin-1").decode())


def as_for_nginx(headers, _body):
    """Answer as an auth server does that was written for nginx."""
    user, password = undone(headers["Auth-User"]), undone(headers["Auth-Pass"])
    if headers["Auth-Method"] == "none":
        return 200, OK, b""
    if password != PASSWORD:
        return 200, {"Auth-Status": "Invalid login or password", "Auth-Wait": "3"}, b""
    special = {
        "other": OK | {"Auth-User": "an other", "Auth-Pass": "s3cret"},
        "six": OK | {"Auth-Server": "2001:db8::1"},
        "down": {"Auth-Status": "Try again later", "Auth-Error-Code": "451 4.3.0", "Auth-Wait": "3"},
        "nowhere": {"Auth-Status": "OK"},
        "name": OK | {"Auth-Server": "mail.example.org"},
        "port": OK | {"Auth-Port": "70000"},
        "error": {"X-Nothing": "x"},
        "forbidden": OK,
    }
    return (403 if user == "forbidden" else 200), special.get(user, OK), b"a body"


def as_json(headers, body):
    asked = json.loads(body)
    said = {
        "nobody": {},
        "null": None,
        "list": [1],
        "refused": {"refuse": "disabled"},
        "north": {"backend": "north"},
    }
    user = asked["user"]
    if user == "missing":
        return 404, {}, b"no such user"
    if user == "html":
        return 200, {"Content-Type": "text/html"}, b"{}"
    if user == "broken":
        return 500, {"Content-Type": "application/json"}, b"{}"
    if user == "moved":
        return 302, {"Location": "/elsewhere", "Content-Type": "application/json"}, b"{}"
    content = json.dumps(said.get(user, {"backend": "east", "name": f"{user} there"}))
    if "password" in asked:
        content = json.dumps({"backend": "east", "proven": asked["password"] == PASSWORD})
    if user == "rubbish":
        content = "{"
    if user == "deep":
        content = "[" * 30000
    if user == "packed":
        return (
            200,
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            gzip.compress(b" " * 10**7),
        )
    if user == "echo":
        told = {name: value for name, value in headers.items() if name in ("Authorization", "X-Key")}
        content = json.dumps({"backend": "east", "name": json.dumps([asked, told]).replace('"', "'")})
    return 200, {"Content-Type": "application/json; charset=utf-8"}, content.encode()


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**options):
        context = SourceContext(
            tmp_path, frozenset({"east", "west"}), str.lower, reactor, deferToThread, label="route[1] (http)"
        )
        router = routers.source("http").router({"backend": "east", **options}, context)
        router.startService()
        made.append(router)
        return router

    yield make
    for router in made:
        pytest_twisted.blockon(router.stopService())


@pytest.fixture
def server():
    with AuthServer(as_for_nginx) as server:
        yield server


@pytest.fixture
def json_server():
    with AuthServer(as_json) as server:
        yield server


@pytest.fixture
def hostile():
    """Play a web server."""
    factory = Backends()
    with listening(factory) as port:
        factory.url = f"http://127.0.0.1:{port}/"
        yield factory


def lookup(user, password=PASSWORD, **more):
    credentials = Credentials("PLAIN", user.encode(), password.encode())
    return Lookup(user, more.pop("protocol", "imap"), more.pop("client", CLIENT), credentials, **more)


async def ask(router, question):
    """Return the answer, or why there is none."""
    return await explained(router, lookup(question) if isinstance(question, str) else question)


def told(server, begins):
    """Return what the server was told last, of all that begins so."""
    return {key: value for key, value in server.asked[-1].items() if key.startswith(begins)}


# --- as for nginx -----------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_server_written_for_nginx(make, server):
    """It checks the password and says where; what nginx makes of its answers is made of them here."""
    router = make(url=server.url)
    assert router.proves
    assert await ask(router, "alice") == THERE
    assert await ask(router, lookup("alice", "wrong")) is Reason.AUTHENTICATION_FAILED
    with pytest.raises(LoginRefused) as caught:
        await router.route(lookup("alice", "wrong"))
    assert (caught.value.refusal.wait, caught.value.refusal.final) == (3, False)
    assert await ask(router, "other") == Route(
        "east", "an other", password=b"s3cret", change=Change("10.0.0.5", 1143), proven=True
    )
    assert await ask(router, "six") == Route("east", change=Change("2001:db8::1", 1143), proven=True)
    assert await ask(router, "down") is Reason.UNAVAILABLE
    assert await ask(router, "forbidden") == THERE
    assert await ask(router, "nowhere") == "Auth-Status is OK, and Auth-Server or Auth-Port is missing"
    assert await ask(router, "name") == "Auth-Server must be an IP address, not 'mail.example.org'"
    assert await ask(router, "port") == "port must be from 1 to 65535, not 70000"
    assert await ask(router, "error") is Reason.UNAVAILABLE
    assert router.counts.failed == 1


@pytest.mark.parametrize(
    ("told", "wait"), [(None, 0), ("0", 0), ("x", 0), ("-1", 0), ("5", 5), ("999999999999", 60)]
)
@pytest_twisted.ensureDeferred
async def test_who_may_try_again(make, told, wait):
    """Auth-Wait says after how long a client may, without it it may not; nobody waits for ever."""
    headers = {"Auth-Status": "no"} | ({} if told is None else {"Auth-Wait": told})
    with AuthServer(lambda *_: (200, headers, b"")) as server, pytest.raises(LoginRefused) as caught:
        await make(url=server.url).route(lookup("alice"))
    refusal = caught.value.refusal
    assert (refusal.reason, refusal.wait, refusal.final) == (Reason.AUTHENTICATION_FAILED, wait, not wait)


@pytest_twisted.ensureDeferred
async def test_what_a_server_for_nginx_is_told(make, server):
    """It is told all that nginx tells, under the names and in the capitals of nginx's."""
    router = make(url=server.url, headers={"X-Auth-Key": "a key"})
    client = Client("s", Address("2001:db8::7", 40000), None, tls="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256")
    await ask(router, lookup("al ice%", protocol="submission", client=client, attempt=3))
    assert server.asked == [
        {
            "Auth-Method": "plain",
            "Auth-User": "al%20ice%25",
            "Auth-Pass": "se%20cret'\"%25:*ü".encode().decode("latin-1"),
            "Auth-Protocol": "smtp",
            "Auth-Login-Attempt": "3",
            "Client-IP": "2001:db8::7",
            "Client-Host": "[UNAVAILABLE]",
            "Auth-SSL": "on",
            "Auth-SSL-Protocol": "TLSv1.3",
            "Auth-SSL-Cipher": "TLS_AES_128_GCM_SHA256",
            "X-Auth-Key": "a key",
            "Host": f"localhost:{server.port}",
        }
    ]


@pytest_twisted.ensureDeferred
async def test_mail_has_no_password(make, server):
    """Where mail is delivered the server gets the recipient, as nginx's SMTP has it, and proves nothing."""
    assert not (await ask(make(url=server.url), Lookup("a b@example.org", "lmtp", CLIENT))).proven
    assert told(server, "Auth") == {
        "Auth-Method": "none",
        "Auth-User": "",
        "Auth-Pass": "",
        "Auth-Protocol": "smtp",
        "Auth-Login-Attempt": "1",
        "Auth-SMTP-Helo": "",
        "Auth-SMTP-From": "MAIL FROM:<>",
        "Auth-SMTP-To": "RCPT TO:<a b@example.org>",
    }


MAILING = Mailing(
    b"client.example", b"s@example.net", ((b"SIZE", b"5"), (b"SMTPUTF8", None)), '"a b"@bü'.encode()
)


@pytest_twisted.ensureDeferred
async def test_what_is_told_of_mail(make, server):
    """The server gets what the client calls itself, the sender and the recipient, as nginx tells them."""
    await ask(make(url=server.url), Lookup("a b@bü", "smtp", CLIENT, mailing=MAILING))
    assert told(server, "Auth-SMTP-") == {
        "Auth-SMTP-Helo": "client.example",
        "Auth-SMTP-From": "MAIL FROM:<s@example.net> SIZE=5 SMTPUTF8",
        "Auth-SMTP-To": 'RCPT TO:<"a b"@bü>'.encode().decode("latin-1"),
    }
    control = evolve(MAILING, hello=b"a\x01b\r\nAuth-User: x")
    await ask(make(url=server.url), Lookup("a b@bü", "smtp", CLIENT, mailing=control))
    assert told(server, "Auth-SMTP-Helo") == {"Auth-SMTP-Helo": "a%01b%0D%0AAuth-User: x"}


@pytest_twisted.ensureDeferred
async def test_answers_about_mail_are_kept_for_what_was_asked(make, server):
    """Another sender is another question; where senders do not matter one answer does for all of them."""
    others = [evolve(MAILING, sender=b"%d@example.net" % number) for number in range(3)]
    router = make(url=server.url)
    for mailing in (*others, *others):
        assert await ask(router, Lookup("a", "smtp", CLIENT, mailing=mailing)) == evolve(THERE, proven=False)
    assert len(server.asked) == 3
    router = make(url=server.url, envelope=False)
    for mailing in others:
        await ask(router, Lookup("a", "smtp", CLIENT, mailing=mailing))
    assert len(server.asked) == 4
    assert told(server, "Auth-SMTP-") == {
        "Auth-SMTP-Helo": "",
        "Auth-SMTP-From": "MAIL FROM:<>",
        "Auth-SMTP-To": "RCPT TO:<a>",
    }


@pytest_twisted.ensureDeferred
async def test_what_is_told_of_a_proxy_in_front(make, server):
    """What its PROXY header says is told as nginx tells it, and nothing of the kind of another connection."""
    relayed = evolve(CLIENT, destination=Address("2001:db8::1", 993), relayed=True)
    await ask(make(url=server.url), lookup("alice", client=relayed))
    assert told(server, "Proxy-") == {
        "Proxy-Protocol-Addr": CLIENT.source.host,
        "Proxy-Protocol-Port": str(CLIENT.source.port),
        "Proxy-Protocol-Server-Addr": "2001:db8::1",
        "Proxy-Protocol-Server-Port": "993",
    }
    for client in (CLIENT, evolve(relayed, source=None), evolve(relayed, relayed=False)):
        await ask(make(url=server.url), lookup("alice", client=client))
        assert not told(server, "Proxy-")


@pytest_twisted.ensureDeferred
async def test_an_answer_is_kept_for_what_the_server_was_told(make, server):
    """The next connection of the same client needs no question; one that is told apart does."""
    router = make(url=server.url)
    relayed = evolve(CLIENT, destination=Address("192.0.2.1", 993), relayed=True)
    again = evolve(relayed, session_id="other", source=evolve(CLIENT.source, port=9))
    for client, attempt in ((relayed, 1), (again, 1), (again, 2)):
        assert await ask(router, lookup("alice", client=client, attempt=attempt)) == THERE
    assert len(server.asked) == 1
    certificate = ClientCertificate(subject="CN=a", fingerprint="00")
    for client in (
        evolve(relayed, source=Address("192.0.2.99", 9)),
        evolve(relayed, tls="TLSv1.3"),
        evolve(relayed, tls="TLSv1.3", certificate=certificate),
    ):
        assert await ask(router, lookup("alice", client=client)) == THERE
    assert len(server.asked) == 4


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_show_a_certificate(make, server):
    """That it was to show one is told, as nginx does where certificates are optional."""
    client = evolve(CLIENT, tls="TLSv1.3", asked=True)
    await ask(make(url=server.url), lookup("alice", client=client))
    assert told(server, "Auth-SSL-V") == {"Auth-SSL-Verify": "NONE"}


@pytest_twisted.ensureDeferred
async def test_what_nginx_has_no_words_for_is_refused(make, server):
    """Tokens, and passwords of one who acts for another, do not get to the server."""
    router = make(url=server.url)
    for user, proof in ((b"alice", Proof.TOKEN), (b"", Proof.TOKEN), (b"alice", Proof.SCRAM_SHA_256)):
        token = Credentials("…", user, b"token", proof=proof)
        assert await ask(router, Lookup("alice", "imap", CLIENT, token)) is Reason.AUTHENTICATION_FAILED
    acting = Credentials("PLAIN", b"alice", PASSWORD.encode(), b"bob")
    assert await ask(router, Lookup("bob", "imap", CLIENT, acting)) is Reason.AUTHORIZATION_FAILED
    assert not server.asked


@pytest_twisted.ensureDeferred
async def test_a_password_that_no_header_can_hold_is_wrong(make):
    """A server that refuses long headers has not failed: whoever sends them costs nobody else the source."""

    def short(headers, body):
        if sum(map(len, headers.values())) > 8190:
            return 431, {}, b"Request Header Fields Too Large"
        return as_for_nginx(headers, body)

    with AuthServer(short) as server:
        router = make(url=server.url, breaker_failures=1)
        for password in ("x" * 16000, " " * 3000, "x" * MAX_PASSWORD):
            assert await ask(router, lookup("alice", password)) is Reason.AUTHENTICATION_FAILED
        assert router.counts.failed == 0
        assert len(server.asked) == 1
        assert await ask(router, "alice") == THERE


NAMES = (*HOSTILE_NAMES, *BROKEN_NAMES, "Auth-Status: OK")


@pytest.mark.parametrize("user", NAMES)
@pytest_twisted.ensureDeferred
async def test_no_name_is_more_than_a_name(make, server, json_server, user):
    """Whatever a name or a password holds, the server gets it as it is, and nothing else."""
    router = make(url=server.url)
    for password in (user, f"{user}\r\nAuth-Status: OK\0"):
        await ask(router, lookup(user, password))
        last = server.asked[-1]
        assert len(last) == 7
        assert undone(last["Auth-User"]) == user
        assert undone(last["Auth-Pass"]) == password
    router = make(url=json_server.url, dialect="json")
    if len(user) < 500 and user not in BROKEN_NAMES:
        assert (await ask(router, user)).name == f"{user} there"


@pytest_twisted.ensureDeferred
async def test_a_server_that_wants_to_be_asked_again(make, monkeypatch):
    """WAIT means another question, in time."""
    monkeypatch.setattr("mailroute.routers.web.nginx.MIN_WAIT", 0.01)
    answers = [{"Auth-Status": "WAIT"}, {"Auth-Status": "WAIT", "Auth-Wait": "0"}, OK]
    with AuthServer(lambda *_: (200, answers.pop(0), b"")) as server:
        assert await ask(make(url=server.url), "alice") == THERE


@pytest_twisted.ensureDeferred
async def test_a_server_that_wants_to_be_asked_too_late(make):
    """Who would have to wait for longer than an answer may take comes again; the server has not failed."""
    with AuthServer(lambda *_: (200, {"Auth-Status": "WAIT", "Auth-Wait": "9"}, b"")) as server:
        router = make(url=server.url, timeout=5, breaker_failures=1)
        for user in ("alice", "bob"):
            assert await ask(router, user) is Reason.UNAVAILABLE
        assert len(server.asked) == 2
        assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_a_client_with_a_certificate(make, server):
    """Whom its certificate has let in is asked about by nginx's word for that, which proves nothing here."""
    certificate = ClientCertificate(("a@b",), (), "CN=a", "CN=ca", "0F", "00ff")
    client = Client("s", None, None, "TLSv1.3", certificate=certificate)
    shown = Credentials("EXTERNAL", b"", b"", proof=Proof.CERTIFICATE)
    assert await ask(make(url=server.url), Lookup("al ice", "imap", client, shown)) is (
        Reason.AUTHENTICATION_FAILED
    )
    with AuthServer(lambda *_: (200, OK, b"")) as trusting:
        route = await ask(make(url=trusting.url), Lookup("al ice", "imap", client, shown))
    assert route == evolve(THERE, proven=False)
    assert told(trusting, "Auth") == {
        "Auth-Method": "external",
        "Auth-User": "al%20ice",
        "Auth-Pass": "",
        "Auth-Protocol": "imap",
        "Auth-Login-Attempt": "1",
        "Auth-SSL": "on",
        "Auth-SSL-Protocol": "TLSv1.3",
        "Auth-SSL-Verify": "SUCCESS",
        "Auth-SSL-Subject": "CN=a",
        "Auth-SSL-Issuer": "CN=ca",
        "Auth-SSL-Serial": "0F",
        "Auth-SSL-Fingerprint": "00ff",
    }


# --- JSON -------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_answers_in_json(make, json_server):
    """An object's members are a route's fields; null and 404 are none; the rest is nonsense or a failure."""
    router = make(url=json_server.url, dialect="json", breaker_failures=0)
    assert not router.proves
    assert await ask(router, "alice") == Route("east", "alice there")
    assert await ask(router, "null") is None
    assert await ask(router, "missing") is None
    assert await ask(router, "refused") is Reason.CONTACT_ADMIN
    assert await ask(router, "north") == "there is no backend 'north'"
    assert await ask(router, "list") == "its answer must be an object or null, not [1]"
    for user in ("rubbish", "deep", "packed"):
        assert await ask(router, user) == "its answer is no JSON"
    with capturedLogs() as logs:
        for user in ("html", "broken", "moved"):
            assert await ask(router, user) is Reason.UNAVAILABLE
    said = [event["why"] for event in logs if "failed: " in event["log_format"]]
    assert said == [
        "status 200, Content-Type b'text/html'",
        "status 500, Content-Type b'application/json'",
        "status 302, Content-Type b'application/json'",
    ]
    assert router.counts.failed == 3


@pytest.mark.parametrize("dialect", ["json", "nginx"])
@pytest.mark.parametrize("status", [400, 413, 414, 422, 431])
@pytest_twisted.ensureDeferred
async def test_a_question_that_is_not_taken_is_one_users(make, status, dialect):
    """A name that a server finds wrong does not make it one that fails, which would cost everybody else."""
    with AuthServer(lambda *_: (status, {}, b"no")) as server:
        router = make(url=server.url, dialect=dialect, breaker_failures=1)
        for user in ("alice", "bob"):
            assert (await ask(router, user)).endswith("it does not take the question")
        assert router.counts.failed == 0
        assert len(server.asked) == 2


@pytest_twisted.ensureDeferred
async def test_an_empty_answer_is_none(make, json_server):
    """An object without members says that there is no such user, unless the block names a backend."""
    assert await ask(make(url=json_server.url, dialect="json", backend=None), "nobody") is None
    assert await ask(make(url=json_server.url, dialect="json"), "nobody") == Route("east")


@pytest.mark.parametrize("secret", ["bearer", "basic"])
@pytest_twisted.ensureDeferred
async def test_what_is_asked_in_json(make, json_server, tmp_path, secret):
    """The question is an object; the server is shown who asks; the password stays here."""
    (tmp_path / "secret").write_text("t0ken\n")
    options = {"bearer_file": "secret"}
    if secret == "basic":
        options = {"username": "us", "password_file": "secret"}
    with capturedLogs() as logs:
        router = make(url=json_server.url, dialect="json", headers={"X-Key": "k3y"}, **options)
        route = await ask(router, "echo")
    asked, headers = json.loads(route.name.replace("'", '"'))
    assert asked == {
        "user": "echo",
        "protocol": "imap",
        "client": "192.0.2.7",
        "session": "session-1",
        "tls": None,
    }
    shown = "Bearer t0ken" if secret == "bearer" else "Basic dXM6dDBrZW4="
    assert headers == {"X-Key": "k3y", "Authorization": shown}
    for text in (repr(router), str(router), repr(logs), repr(router._servers)):
        assert "t0ken" not in text
        assert "dXM6" not in text


@pytest_twisted.ensureDeferred
async def test_the_password_in_json(make, json_server):
    """With leave the server gets the password; only what it calls proven is."""
    router = make(url=json_server.url, dialect="json", send_password=True)
    assert router.proves
    assert await ask(router, "alice") == Route("east", proven=True)
    assert not (await ask(router, lookup("alice", "wrong"))).proven
    bad = Lookup("alice", "imap", CLIENT, Credentials("PLAIN", b"alice", b"\xff"))
    assert await ask(router, bad) is Reason.AUTHENTICATION_FAILED


# --- servers ----------------------------------------------------------------


@pytest.mark.parametrize("keeps", [True, False])
@pytest_twisted.ensureDeferred
async def test_connections_are_kept(make, keeps):
    """A hundred questions, one after the other, go over one connection, if the server keeps it."""
    with AuthServer(as_json, keeps=keeps) as server:
        router = make(url=server.url, dialect="json")
        for number in range(100):
            assert (await ask(router, f"u{number}")).name == f"u{number} there"
        assert server.connections == (1 if keeps else 100)


@pytest_twisted.ensureDeferred
async def test_connections_are_bounded(make, json_server):
    """Hundreds of questions at a time share as many connections as there may be."""
    router = make(url=json_server.url, dialect="json", connections=7)
    questions = [Lookup(f"u{number}", "imap", CLIENT) for number in range(300)]
    answers = await gatherResults([router.route(question) for question in questions])
    assert [answer.name for answer in answers] == [f"u{number} there" for number in range(300)]
    assert json_server.connections <= 7


@pytest_twisted.ensureDeferred
async def test_few_questions_for_many_lookups(make, json_server):
    """10 000 lookups of 100 users ask 100 times."""
    router = make(url=json_server.url, dialect="json")
    for _ in range(100):
        await gatherResults([Deferred.fromCoroutine(ask(router, f"u{number}")) for number in range(100)])
    assert len(json_server.asked) == 100


@pytest_twisted.ensureDeferred
async def test_a_server_that_was_restarted(make, json_server):
    """The connection that was kept is gone, and nobody notices."""
    router = make(url=json_server.url, dialect="json")
    assert (await ask(router, "a")).name == "a there"
    json_server.stop()
    json_server.start()
    assert (await ask(router, "b")).name == "b there"


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_down(make, json_server):
    """Old answers hold, new ones are to come later, and a server that fails is left alone."""
    router = make(url=json_server.url, dialect="json", cache_ttl=0.001, breaker_failures=2)
    assert (await ask(router, "a")).name == "a there"
    json_server.stop()
    await patient(lambda: router._positive.fresh(router._key(lookup("a")), reactor.seconds()) is None)
    assert (await ask(router, "a")).name == "a there"
    for user in ("b", "c", "d"):
        assert await ask(router, user) is Reason.UNAVAILABLE
    assert (router.counts.stale, router.counts.asked) == (1, 3)
    json_server.start()


@pytest_twisted.ensureDeferred
async def test_the_next_server_is_asked(make, json_server, hostile):
    """One that does not answer, or says 5xx, costs one question some time, and comes last after that."""
    with AuthServer(lambda *_: (503, {}, b"")) as broken:
        router = make(urls=[hostile.url, broken.url, json_server.url], dialect="json", timeout=0.6)
        assert (await ask(router, "a")).name == "a there"
        assert (await ask(router, "b")).name == "b there"
        assert (len(hostile.talks), len(broken.asked), len(json_server.asked)) == (1, 1, 2)
        json_server.stop()
        assert await ask(router, "c") is Reason.UNAVAILABLE
        assert len(broken.asked) == 2
        json_server.start()


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs(make, hostile):
    """Who asks is told to come later, in time, and the connection is not kept."""
    router = make(url=hostile.url, timeout=0.2)
    assert await ask(router, "alice") is Reason.UNAVAILABLE
    assert router.counts.slow == 1
    (talk,) = hostile.talks
    await talk.end()
    assert len(hostile.talks) == 1


class Flood(Talk):
    """Answers with a beginning, and then as much as there is room for."""

    beginning = chunk = b""
    sent = 0

    def dataReceived(self, data):
        super().dataReceived(data)
        if not self.sent:
            self.transport.write(self.beginning)
            self.transport.registerProducer(self, False)

    def resumeProducing(self):
        self.sent += len(self.chunk)
        self.transport.write(self.chunk)

    def stopProducing(self):
        self.transport.unregisterProducer()


FLOODS = {
    "body": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b" " * 30000),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n" * 5000,
    ),
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 30000),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Header: x\r\n" * 3000),
    "folded": (b"HTTP/1.1 200 OK\r\nX: x\r\n", b" x\r\n" * 5000),
    "line": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 30000),
    "rubbish": (b"", b"x" * 30000),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("dialect", ["json", "nginx"])
@pytest.mark.parametrize("kind", FLOODS)
@pytest_twisted.ensureDeferred
async def test_an_answer_is_bounded(make, hostile, kind, dialect):
    """A server that does not stop is cut off, whatever of its answer it is that does not end."""
    flooding = type("Flooding", (Flood,), dict(zip(("beginning", "chunk"), FLOODS[kind], strict=True)))
    hostile.protocol = flooding
    router = make(url=hostile.url, dialect=dialect, timeout=10, breaker_failures=0)
    assert await ask(router, "alice") is Reason.UNAVAILABLE
    assert router.counts.slow == 0
    for talk in hostile.talks:
        await talk.end()


@pytest_twisted.ensureDeferred
async def test_the_log_says_who_was_cut_off(make, hostile):
    """The operator is told the bound, and not that a connection was lost."""
    hostile.protocol = type(
        "Flooding", (Flood,), dict(zip(("beginning", "chunk"), FLOODS["headers"], strict=True))
    )
    router = make(url=hostile.url, dialect="json", timeout=10)
    with capturedLogs() as logs:
        assert await ask(router, "alice") is Reason.UNAVAILABLE
    assert [event["why"] for event in logs if "failed: " in event["log_format"]] == [
        f"more than {MAX_ANSWER} bytes with its headers"
    ]
    (talk,) = hostile.talks
    await talk.end()


@pytest_twisted.ensureDeferred
async def test_a_body_that_nobody_needs(make, hostile, monkeypatch):
    """Nginx reads the headers alone: a body that does not come costs no login."""
    monkeypatch.setattr("mailroute.sources.web_client.LAST_BYTES", 0.05)
    router = make(url=hostile.url)
    answer = Deferred.fromCoroutine(ask(router, "alice"))
    talk = await hostile.next()
    await talk.until(b"\r\n\r\n")
    head = "".join(f"{name}: {value}\r\n" for name, value in OK.items())
    talk.say(f"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{head}\r\n".encode())
    assert await answer == THERE


@pytest_twisted.ensureDeferred
async def test_no_compression_is_asked_for(make, hostile):
    """What comes is as long as it is on the wire."""
    router = make(url=hostile.url, dialect="json", timeout=0.2)
    answer = Deferred.fromCoroutine(ask(router, "alice"))
    asked = await (await hostile.next()).until(b"\r\n\r\n")
    assert b"encoding" not in asked.lower()
    await answer


@pytest.mark.parametrize("trusted", [True, False])
@pytest_twisted.ensureDeferred
async def test_https(make, tmp_path, trusted):
    """The server's certificate is verified, against the authorities that are named."""
    authority = Authority(tmp_path / "authority")
    with AuthServer(as_json, certificate=authority.issue("localhost")) as server:
        options = {"ca": str(authority.file)} if trusted else {}
        router = make(url=server.url, dialect="json", **options)
        if trusted:
            assert (await ask(router, "alice")).name == "alice there"
            router = make(url=server.url.replace("localhost", "127.0.0.1"), dialect="json", **options)
        assert await ask(router, "alice") is Reason.UNAVAILABLE
        assert len(server.asked) == trusted


@pytest_twisted.ensureDeferred
async def test_it_stops_while_it_asks(make, hostile):
    """Whoever waits is told to come later; nothing stays open."""
    router = make(url=hostile.url)
    answer = Deferred.fromCoroutine(ask(router, "alice"))
    talk = await hostile.next()
    await router.stopService()
    assert await answer is Reason.UNAVAILABLE
    await talk.end()
    assert len(hostile.talks) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "give one of url"),
        ({"url": "http://a/", "urls": ["http://b/"]}, "give one of url"),
        ({"urls": []}, "is empty"),
        ({"url": "ftp://a/"}, "no URL of a web server"),
        ({"url": "http://u:s3cret@a/"}, "must not hold a name or a password"),
        ({"url": "http://a:x/"}, "is no URL"),
        ({"url": "http://ä/"}, "cannot be asked for"),
        ({"url": "http://a/ b"}, "cannot be asked for"),
        ({"url": "http://a/\r\nX: y"}, "cannot be asked for"),
        ({"url": "http://a/", "dialect": "xml"}, "dialect"),
        ({"url": "http://a/", "ca": "missing.pem"}, "cannot read"),
        ({"url": "http://a/", "ca": "no.pem"}, "holds no certificate"),
        ({"url": "http://a/", "headers": {"X y": "z"}}, "no header"),
        ({"url": "http://a/", "headers": {"Host": "z"}}, "no header"),
        ({"url": "http://a/", "headers": {"X": "a\r\nb"}}, "printable ASCII"),
        ({"url": "http://a/", "bearer_file": "missing"}, "cannot read"),
        ({"url": "http://a/", "username": "u"}, "goes with password_file"),
        ({"url": "http://a/", "username": "u:v", "password_file": "no.pem"}, "colon"),
        (
            {"url": "http://a/", "username": "u", "password_file": "no.pem", "bearer_file": "no.pem"},
            "without username",
        ),
        ({"url": "http://a/", "send_password": True}, 'goes with dialect = "json"'),
        ({"url": "http://a/", "protocols": {}, "dialect": "json"}, 'goes with dialect = "nginx"'),
        ({"url": "http://a/", "backend": None}, "its settings hold"),
    ],
)
def test_wrong_keys_are_named(make, tmp_path, options, why):
    """The operator is told what is wrong before anything runs."""
    (tmp_path / "no.pem").write_text("nothing\n")
    with pytest.raises(BadOption, match=why) as caught:
        make(**options)
    assert "s3cret" not in str(caught.value)


def test_an_answer_has_room():
    """The bound is above what any answer with all its fields takes."""
    assert MAX_BODY == 32 * 1024  # as the README says
