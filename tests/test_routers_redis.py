"""The redis source: what it asks, and what it makes of replies; a real server is in tests/integration."""

import re

import pytest
import pytest_twisted
from asking import explained
from live import patient
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from mailroute import routers
from mailroute.events import Change, Credentials, LoginRefused, Lookup, Reason, Route
from mailroute.routers import BadOption, SourceContext
from mailroute.routers.redis import Address, KeyTemplate, read_url
from mailroute.testing import CLIENT
from mailroute.wire.lines import Stop
from mailroute.wire.resp import ReplyReader


def lookup(user, protocol="imap"):
    return Lookup(user, protocol, CLIENT)


# --- keys -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "user", "key"),
    [
        ("mailroute:{user}", "bob@example.org", b"mailroute:bob@example.org"),
        ("{protocol}/{domain}/{local}", "a@b@example.org", b"imap/example.org/a@b"),
        ("u:{local}", "bob", b"u:bob"),
        ("{{{domain}}}:{local}", "bob@example.org", b"{example.org}:bob"),
        ("m:{user}:route", "a:b:route", b"m:a:b:route:route"),
        ("{user}", "ü*?[x]\\\"' %{user}", "ü*?[x]\\\"' %{user}".encode()),
        ("{user}", "x" * 512, b"x" * 512),
        ("{domain}", "bob@example.org", b"example.org"),
        ("{local}", "bob@", None),
        ("{user}", "bob@", b"bob@"),
        ("{local}:{domain}", "bob:x@example.org", None),
        ("{local}::{domain}", "bob:@example.org", None),
        ("{domain}:{local}", "bob:x@example.org", b"example.org:bob:x"),
        ("{domain}:{local}", "bob@example.org:x", None),
    ],
)
def test_keys(template, user, key):
    """A part of the name is put in as it is; a name whose key could be another's has none."""
    assert KeyTemplate(template).key(lookup(user)) == key


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("m:{name}", r"there is no {name}; there are {user}, {protocol}, {local}, {domain}"),
        ("m:{user.__class__}", r"there is no {user.__class__}"),
        ("m:{user[0]}", r"there is no {user\[0\]}"),
        ("m:{user!r}", r"there is no {user!r}"),
        ("m:{user:>99999999}", r"there is no {user:>99999999}"),
        ("m:{}", r"there is no {}"),
        ("m:{0}", r"there is no {0}"),
        ("m:{user", "is no template"),
        ("m:user}", "is no template"),
        ("m:user", "the same for all users"),
        ("{protocol}", "the same for all users"),
        ("{local}{domain}", "something between them"),
        ("", "the same for all users"),
    ],
)
def test_a_key_has_nothing_else_in_it(tmp_path, template, why):
    """Anything else between braces, or nothing of the user's, is named before anybody asks."""
    with pytest.raises(BadOption, match=why) as caught:
        make(tmp_path, 1, key=template)
    assert caught.value.key == "key"


# --- options ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("redis://cache.example.org", Address("cache.example.org"), "cache.example.org:6379"),
        ("redis://10.0.0.1:7000/3", Address("10.0.0.1", 7000, database=3), "10.0.0.1:7000"),
        ("rediss://[::1]:7000/", Address("::1", 7000, tls=True), "[::1]:7000"),
        ("unix:/run/redis.sock", Address(path="/run/redis.sock"), "unix:/run/redis.sock"),
        ("unix:run/r.sock?db=2", Address(path="run/r.sock", database=2), "unix:run/r.sock"),
        ("unix:///run/a%20b", Address(path="/run/a b"), "unix:/run/a b"),
    ],
)
def test_addresses(url, address, shown):
    """A server is a host and a port, with or without TLS, or a socket's path; each with a database."""
    assert read_url(url) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "redis:x",
        "redis://",
        "redis://x:99999",
        "redis://[::1",
        "redis://x/one",
        "redis://x/-1",
        "redis://x/99999999999",
        "redis://x/1/2",
        "redis://x?db=1",
        "redis://x/1#y",
        "unix://run/redis.sock",
        "unix:",
        "unix:/x?db=",
        "unix:/x?db=1&db=2",
        "unix:/x?timeout=1",
        "redis://u:s3cret@x",
        "rediss://:s3cret@x/1",
    ],
)
def test_bad_addresses(tmp_path, url):
    """Whatever is no address is refused, and not repeated: there may be a password in it."""
    with pytest.raises(BadOption) as caught:
        make(tmp_path, 1, url=url)
    assert caught.value.key == "url"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "key", "why"),
    [
        ({"uri": "redis://x"}, "uri", "unknown key"),
        ({"connections": 0}, "connections", "must be 1 or more"),
        ({"username": "reader"}, "username", "goes with a password"),
        ({"password_file": "missing"}, "password_file", "cannot read"),
        ({"password_file": "empty"}, "password_file", "is empty"),
        ({"ca": "ca.pem"}, "ca", "rediss://"),
        ({"url": "rediss://x", "ca": "missing.pem"}, "ca", "cannot read"),
        ({"url": "rediss://x", "ca": "empty"}, "ca", "no certificate"),
        ({"backend": "north"}, "backend", "there is no"),
    ],
)
def test_wrong_keys_are_named(tmp_path, options, key, why):
    """The operator is told which key, and what is wrong with it."""
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(BadOption, match=why) as caught:
        make(tmp_path, 1, **options)
    assert caught.value.key == key


# --- replies ----------------------------------------------------------------


class Server(Protocol):
    """Answers from a script: the reply for each command, or what to do instead."""

    def connectionMade(self):
        self.reader = ReplyReader()
        self.factory.connections.append(self)

    def dataReceived(self, data):
        self.reader.feed(data)
        while not isinstance(words := self.reader.reply(), Stop):
            self.factory.heard.append(words)
            reply = self.factory.script(words)
            if reply is None:
                self.transport.loseConnection()
            else:
                self.transport.write(reply)

    def connectionLost(self, _reason):
        self.factory.connections.remove(self)
        self.factory.lost += 1


class Setting:
    """A router, and the server in this process that it asks."""

    def __init__(self, folder, script, **options):
        self.factory = Factory.forProtocol(Server)
        self.factory.noisy = False
        self.factory.connections, self.factory.heard, self.factory.lost = [], [], 0
        self.factory.script = script
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.router = make(folder, self.port.getHost().port, **options)
        self.router.startService()

    async def ask(self, user="bob", protocol="imap"):
        """Return the answer, or why there is none."""
        return await explained(self.router, lookup(user, protocol))


def make(folder, port, **options):
    context = SourceContext(
        folder,
        frozenset({"east", "west"}),
        str.lower,
        reactor,
        deferToThread,
        label="route[1] (redis)",
    )
    return routers.source("redis").router({"url": f"redis://127.0.0.1:{port}/0", **options}, context)


@pytest.fixture
def serve(tmp_path):
    made = []

    def begin(script, **options):
        answer = script if callable(script) else lambda _: script
        made.append(Setting(tmp_path, answer, **options))
        return made[-1]

    yield begin
    for setting in made:
        setting.router.stopService()
        pytest_twisted.blockon(setting.port.stopListening())
        for connection in list(setting.factory.connections):
            connection.transport.abortConnection()


def bulk(*texts):
    return b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)


def hashed(*texts):
    return b"*%d\r\n" % len(texts) + bulk(*texts)


def text(value):
    """A server whose key holds a string."""
    return lambda words: b"-WRONGTYPE no\r\n" if words[0] == b"HGETALL" else bulk(value)


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        (hashed(b"backend", b"west", b"port", b"1143"), Route("west", change=Change(port=1143))),
        (b"*0\r\n", None),
        (text(b"west"), Route("west")),
        (text(b"east,west\n"), Route("east", others=("west",))),
        (text(b'{"backend": ["east"], "name": "b"}'), Route("east", "b")),
        (text(b'{"backend": null}'), None),
        (text(b""), None),
        (lambda words: b"$-1\r\n" if words[0] == b"GET" else b"-WRONGTYPE\r\n", None),
        (text(b'{"refuse": "moved"}'), Reason.CONTACT_ADMIN),
        (hashed(b"later", b"1"), Reason.UNAVAILABLE),
    ],
)
@pytest_twisted.ensureDeferred
async def test_answers(serve, script, answer):
    """A hash's fields are a route's; a string is a backend's name or an object of fields."""
    setting = serve(script)
    assert await setting.ask() == answer
    assert setting.factory.heard[0] == (b"HGETALL", b"mailroute:bob")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (hashed(b"backend", b"north"), "there is no backend 'north'"),
        (hashed(b"backend", b"east", b"port", b"70000"), "port must be from 1 to 65535"),
        (hashed(b"backend", b"east", b"n\xff", b"x"), "there is no field"),
        (hashed(b"backend", b"east", b"name", b"\xff"), "must be UTF-8"),
        (hashed(b"backend", b"east", b"name", b"a\r\nb"), "control characters"),
        (text(b'{"backend": "east"'), "begins as a JSON object does"),
        (text(b"{" * 60000), "begins as a JSON object does"),
        (text(b'{"a":' + b"[" * 60000), "begins as a JSON object does"),
        (text('{"backend": "east"}'.encode("utf-16")), "must be UTF-8"),
        (text(b'["east"]'), "there is no backend"),
        (text(b"x" * 60000), "512 bytes long"),
        (text(b"x" * 70000), "more than 65536 bytes"),
        (b"*1000\r\n", "128 fields"),
        (b"-WRONGTYPE no\r\n", "neither a hash nor a string"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nonsense_refuses_that_login_alone(serve, script, why):
    """An answer that makes no sense is told apart, and no failure of the source: others are answered."""
    setting = serve(script)
    assert why in await setting.ask()
    setting.factory.script = lambda _: hashed(b"backend", b"east")
    assert await setting.ask("eve") == Route("east")
    assert setting.router.counts.failed == 0


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "not Redis's protocol; look at what listens"),
        (b"+OK\r\n:1\r\n", "not Redis's protocol; look at what listens"),
        (b":1\r\n", "not Redis's protocol; look at what listens"),
        (hashed(b"backend"), "not Redis's protocol; look at what listens"),
        (b"*2\r\n:1\r\n:2\r\n", "not Redis's protocol; look at what listens"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "cannot answer now; look at its log"),
        (b"-NOPERM this user has no permissions\r\n", "takes +hgetall"),
        (b"-NOAUTH Authentication required.\r\n", "wants a password; look at"),
        (None, "ended the connection before its answer; look at"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_failures_are_told_with_what_to_do(serve, reply, told):
    """What the server does instead of answering is a failure; the next question has a new connection."""
    setting = serve(reply)
    with capturedLogs() as logs:
        assert await setting.ask() is Reason.UNAVAILABLE
    [why] = [event["why"] for event in logs if "failed: " in event["log_format"]]
    assert told in why
    await patient(lambda: not setting.factory.connections)
    setting.factory.script = lambda _: hashed(b"backend", b"east")
    assert await setting.ask("eve") == Route("east")


@pytest_twisted.ensureDeferred
async def test_words_that_nobody_asked_for_answer_nothing(serve):
    """A reply that comes too much is not taken for the answer to the next question."""
    setting = serve(hashed(b"backend", b"east"))
    assert await setting.ask("first") == Route("east")
    [connection] = setting.factory.connections
    connection.transport.write(hashed(b"backend", b"west"))
    await patient(lambda: setting.factory.lost)
    assert await setting.ask("second") == Route("east")


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_is_gone_is_replaced(serve):
    """A connection that ends as it is used again costs nobody the login."""
    setting = serve(hashed(b"backend", b"east"))
    assert await setting.ask("first") == Route("east")
    setting.factory.script = lambda _: None if setting.factory.lost == 0 else hashed(b"backend", b"east")
    assert await setting.ask("second") == Route("east")
    assert setting.router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_connections_are_bounded_and_kept(serve):
    """Hundreds of questions at a time share a few connections, each with its own answer."""
    setting = serve(lambda words: hashed(b"backend", b"east", b"name", words[1]), connections=3, key="{user}")
    for _ in range(2):
        names = [f"u{number}" for number in range(300)]
        routes = await gatherResults([setting.router.route(lookup(name, "p")) for name in names[:150]])
        routes += await gatherResults(
            [Deferred.fromCoroutine(setting.ask(name, "q")) for name in names[150:]]
        )
        assert [route.name for route in routes] == names
        setting.router._positive._known.clear()
    assert len(setting.factory.connections) <= 3
    assert setting.factory.lost == 0


@pytest_twisted.ensureDeferred
async def test_a_connection_is_not_kept_for_ever(serve, monkeypatch):
    """What lies in between may have forgotten a connection that was idle for long: it is closed, not used."""
    setting = serve(hashed(b"backend", b"east"))
    assert setting.factory.connections == []
    assert await setting.ask("first") == Route("east")
    monkeypatch.setattr("mailroute.sources.redis.KEPT", 0.0)
    assert await setting.ask("second") == Route("east")
    await patient(lambda: setting.factory.lost)
    assert len(setting.factory.connections) == 1


@pytest_twisted.ensureDeferred
async def test_a_hanging_server_takes_no_connection_for_ever(serve):
    """A question that is given up ends its connection; the next one has one of its own."""
    setting = serve(b"", timeout=0.05, connections=1, breaker_failures=0)
    assert await setting.ask("first") is Reason.UNAVAILABLE
    assert await setting.ask("second") is Reason.UNAVAILABLE
    assert setting.router.counts.slow == 2
    setting.factory.script = lambda _: hashed(b"backend", b"east")
    assert await setting.ask("third") == Route("east")


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_nobody(serve):
    """What is asked, and what waits for its turn, is given up at once, and no connection stays."""
    setting = serve(b"", connections=2)
    waiting = [setting.router.route(lookup(f"u{number}")) for number in range(50)]
    await patient(lambda: len(setting.factory.heard) == 2)
    assert setting.router.stopService() is None
    for each in waiting:
        with pytest.raises((LoginRefused, CancelledError)):
            await each
    await patient(lambda: not setting.factory.connections)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, [(b"AUTH", b"s3cret")]),
        ({"username": "reader"}, [(b"AUTH", b"reader", b"s3cret")]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_said_first(serve, tmp_path, options, said):
    """A connection begins with the password, if there is one, and the database."""
    (tmp_path / "password").write_text("s3cret\n")
    setting = serve(
        lambda words: hashed(b"backend", b"east") if words[0] == b"HGETALL" else b"+OK\r\n",
        password_file="password",
        **options,
    )
    assert await setting.ask() == Route("east")
    assert setting.factory.heard == [*said, (b"HGETALL", b"mailroute:bob")]


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (b"-WRONGPASS invalid username-password pair s3cret\r\n", "do not match"),
        (b"-ERR unknown command 'AUTH', args: 's3cret'\r\n", "not take the password"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_without_it(serve, tmp_path, refused, told):
    """Log and refusal say what the server does not take and what to look at; the secret is nowhere."""
    (tmp_path / "password").write_text("s3cret\n")
    with capturedLogs() as logs:
        setting = serve(refused, password_file="password")
        with pytest.raises(LoginRefused) as caught:
            await setting.router.route(Lookup("bob", "imap", CLIENT))
    [complaint] = [event["why"] for event in logs if "Redis at" in event.get("why", "")]
    for said in (complaint, caught.value.refusal.detail):
        assert told in said
        assert "password_file" in said
    assert "s3cret" not in repr(logs)
    router = setting.router
    assert re.fullmatch(r"the Redis at 127\.0\.0\.1:\d+ knows where users live", str(router))
    assert "s3cret" not in repr([vars(router), vars(router._server), router._server._access, str(router)])


@pytest_twisted.ensureDeferred
async def test_ten_thousand_lookups_of_a_hundred_users(serve):
    """The server is asked once for each user."""
    setting = serve(hashed(b"backend", b"east"))
    for number in range(10000):
        assert await setting.ask(f"user{number % 100}") == Route("east")
    assert len(setting.factory.heard) == 100


@pytest_twisted.ensureDeferred
async def test_credentials_stay_here(serve):
    """The server gets no password of a user's."""
    setting = serve(hashed(b"backend", b"east"))
    await setting.router.route(Lookup("bob", "imap", CLIENT, Credentials("PLAIN", b"bob", b"s3cret")))
    assert setting.factory.heard == [(b"HGETALL", b"mailroute:bob")]
