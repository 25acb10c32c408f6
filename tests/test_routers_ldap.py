"""The ldap source, with directories that do not do as they should."""

import sys
from typing import ClassVar

import pytest
import pytest_twisted
from asking import explained
from hypothesis import given
from hypothesis import strategies as st
from live import Backends, Talk, listening, patient
from sansldap import LDAPClient, LDAPFilter, LDAPResultCode, LDAPServer, PartialAttribute
from servers.certificates import Authority
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread

from mailroute import routers
from mailroute.config.files import read_chain, read_key
from mailroute.events import Credentials, LoginRefused, Lookup, Reason, Route
from mailroute.routers import BadOption, SourceContext
from mailroute.sources.ldap import escape
from mailroute.sources.ldap_connection import MAX_MESSAGE, MAX_MESSAGES, Connection
from mailroute.testing import CLIENT
from mailroute.tls import KeyPair, ServerTLS

STARTTLS = "1.3.6.1.4.1.1466.20037"
NAME = "uid=alice,dc=example,dc=org"


class Answering(Talk):
    """A directory that answers each question with what ``answers`` has for its kind."""

    answers: ClassVar = {}

    def connectionMade(self):
        super().connectionMade()
        self.session = LDAPServer()
        self.asked = []

    def dataReceived(self, data):
        super().dataReceived(data)
        for message in self.session.receive(data):
            kind = type(message).__name__
            self.asked.append(message)
            if kind in self.answers:
                self.answers[kind](self, message)
                self.transport.write(self.session.data_to_send())

    def raw(self, data):
        self.transport.write(data)


def entry(talk, message, values=(b"east",), name=NAME):
    talk.session.search_result_entry(message.message_id, name, [PartialAttribute("mailHost", list(values))])


def done(talk, message, code=LDAPResultCode.SUCCESS):
    talk.session.search_result_done(message.message_id, result_code=code)


def found(talk, message):
    entry(talk, message)
    done(talk, message)


def bound(code):
    return lambda talk, message: talk.session.bind_response(message.message_id, result_code=code)


def securing(authority, name):
    """Return what begins TLS with a certificate for a name."""
    issued = authority.issue(name)
    chain = read_chain(issued.chain)
    context = ServerTLS([KeyPair(chain.certificates, read_key(issued.key, chain).private)])

    def secure(talk, message):
        talk.session.extended_response(message.message_id, name=STARTTLS)
        talk.raw(talk.session.data_to_send())
        talk.session = LDAPServer()
        talk.transport.startTLS(context)

    return secure


@pytest.fixture
def server():
    """Play a directory."""
    factory = Backends()
    factory.answers = {}
    factory.protocol = lambda: type("Playing", (Answering,), {"answers": factory.answers})()
    with listening(factory) as port:
        factory.url = f"ldap://127.0.0.1:{port}"
        yield factory


@pytest.fixture
def make(tmp_path, server):
    made = []
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "latin").write_bytes(b"\xff\n")

    def make(**options):
        context = SourceContext(
            tmp_path, frozenset({"east"}), str.lower, reactor, deferToThread, label="route[1] (ldap)"
        )
        usual = {
            "urls": [server.url],
            "base": "dc=example,dc=org",
            "filter": "(mail={user})",
            "attributes": {"mailhost": "backend"},
        }
        options = {key: value for key, value in (usual | options).items() if value is not None}
        router = routers.source("ldap").router(options, context)
        router.startService()
        made.append(router)
        return router

    yield make
    for router in made:
        router.stopService()


async def ask(router, user="alice", password=b"wonderland"):
    """Return the answer, or why there is none."""
    credentials = Credentials("PLAIN", user.encode(), password)
    return await explained(router, Lookup(user, "imap", CLIENT, credentials))


@given(st.text())
def test_a_value_is_one(text):
    """Whatever a name holds, the filter that it is put into stays what it was."""
    whole = LDAPFilter.from_string(f"(&(objectClass=person)(mail={escape(text)}))")
    assert [type(each).__name__ for each in whole.filters] == ["FilterEquality", "FilterEquality"]
    assert whole.filters[1].value == text.encode("utf-8", "surrogatepass")


@pytest_twisted.ensureDeferred
async def test_what_is_asked(make, server):
    """The search has bounds of its own, for the directory to keep to."""
    server.answers |= {"SearchRequest": found}
    assert await ask(make(scope="one", timeout=2.5)) == Route("east")
    (asked,) = server.talks[0].asked
    assert (asked.base_object, asked.scope.name, asked.attributes) == (
        *("dc=example,dc=org", "ONE_LEVEL", ["mailhost"]),
    )
    assert (asked.size_limit, asked.time_limit, asked.deref_aliases.name) == (2, 3, "NEVER")


@pytest.mark.parametrize("kind", ["entries", "limit"])
@pytest_twisted.ensureDeferred
async def test_more_than_one_entry(make, server, kind):
    """Two entries make no sense, whether the directory sends both or says that there are more."""

    def several(talk, message):
        entry(talk, message)
        if kind == "entries":
            entry(talk, message)
        done(
            talk, message, LDAPResultCode.SUCCESS if kind == "entries" else LDAPResultCode.SIZE_LIMIT_EXCEEDED
        )

    server.answers |= {"SearchRequest": several}
    assert await ask(make()) == "there is more than one such entry in the directory"


@pytest.mark.parametrize("code", [12345, LDAPResultCode.COMPARE_TRUE, LDAPResultCode.TIME_LIMIT_EXCEEDED])
@pytest_twisted.ensureDeferred
async def test_a_search_that_does_not_succeed(make, server, code):
    """No entry counts, and none that is missing, unless the directory says that all is well."""
    server.answers |= {"SearchRequest": lambda talk, message: done(talk, message, LDAPResultCode(code))}
    assert await ask(make()) is Reason.UNAVAILABLE


REFUSALS = {
    LDAPResultCode.NO_SUCH_OBJECT: "code 32 (no such object); correct base",
    LDAPResultCode.INVALID_CREDENTIALS: "code 49 (invalid credentials); look at bind_dn and bind_password_",
    LDAPResultCode.CONFIDENTIALITY_REQUIRED: "code 13 (confidentiality required); it wants TLS: set starttls",
    LDAPResultCode.BUSY: "code 51 (busy); look at the directory's log",
}


async def why(router):
    """Return why the source cannot be asked."""
    with pytest.raises(LoginRefused) as caught:
        await router.route(Lookup("alice", "imap", CLIENT))
    return caught.value.refusal.detail


@pytest.mark.parametrize("code", REFUSALS)
@pytest_twisted.ensureDeferred
async def test_why_a_directory_refuses_is_told(make, server, code):
    """Whoever asks where an account lives reads the directory's code, and which keys to look at."""
    server.answers |= {"SearchRequest": lambda talk, message: done(talk, message, code)}
    assert f"route[1] (ldap) cannot be asked: the directory refuses, {REFUSALS[code]}" in await why(make())


@pytest_twisted.ensureDeferred
async def test_each_of_several_servers_is_told(make, server):
    """Where none answers, each is named with what it did, not the last alone."""
    server.answers |= {"SearchRequest": lambda talk, message: done(talk, message, LDAPResultCode.BUSY)}
    told = await why(make(urls=[server.url, "ldap://127.0.0.1:1"]))
    host = server.url.partition("//")[2]
    refused = "the directory refuses, code 51 (busy); look at the directory's log"
    assert f"cannot be asked: {host}: {refused}; 127.0.0.1:1: Connection" in told


@pytest.mark.parametrize(
    ("name", "trusts", "told"),
    [
        ("127.0.0.1", False, "certificate verify failed"),
        ("elsewhere.example.org", True, "the certificate does not carry the name 127.0.0.1"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_why_a_directory_is_not_trusted(make, server, tmp_path, name, trusts, told):
    """What is wrong with its certificate is told, and which keys to look at."""
    authority = Authority(tmp_path / "authority")
    server.answers |= {"ExtendedRequest": securing(authority, name), "SearchRequest": found}
    router = make(starttls=True, ca=str(authority.file) if trusts else None)
    assert f"no TLS: {told}; look at ca, and at the name that the certificate is for" in await why(router)


@pytest_twisted.ensureDeferred
async def test_referrals_are_not_followed(make, server):
    """References among the entries count for nothing; to be sent elsewhere as a whole is a failure."""

    def referring(talk, message):
        talk.session.search_result_reference(message.message_id, ["ldap://192.0.2.1/dc=x"])
        found(talk, message)

    server.answers |= {"SearchRequest": referring}
    assert await ask(make()) == Route("east")
    server.answers |= {"SearchRequest": lambda talk, message: done(talk, message, LDAPResultCode.REFERRAL)}
    assert await ask(make()) is Reason.UNAVAILABLE


def flood(talk, message):
    for _ in range(MAX_MESSAGES + 10):
        talk.session.search_result_reference(message.message_id, ["ldap://192.0.2.1/dc=x"])


HOSTILE = {
    "an entry too large": lambda talk, message: entry(talk, message, [b"x" * (MAX_MESSAGE * 3)]),
    "a message without end": lambda talk, _: talk.raw(b"\x30\x84\x7f\xff\xff\xff" + b"x" * (MAX_MESSAGE * 2)),
    "too many messages": flood,
    "no LDAP": lambda talk, _: talk.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "another's answer": lambda talk, _: talk.raw(bytes.fromhex("300c02017f65070a010004000400")),
    "a question": lambda talk, _: talk.raw(bytes.fromhex("30050201014200")),
    "the end": lambda talk, _: talk.transport.loseConnection(),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest_twisted.ensureDeferred
async def test_a_directory_that_speaks_otherwise(make, server, what):
    """It is a failure, in no time, and the connection is not used again."""
    server.answers |= {"SearchRequest": HOSTILE[what]}
    router = make(breaker_failures=0)
    assert await ask(router) is Reason.UNAVAILABLE
    assert (router.counts.failed, router.counts.slow) == (1, 0)
    await server.talks[0].end()
    server.answers |= {"SearchRequest": found}
    assert await ask(router, "bob") == Route("east")


@given(st.lists(st.binary(max_size=64)))
def test_any_bytes(chunks):
    """Whatever a directory sends, nothing is raised, and no more is kept than the bound."""
    connection = Connection()
    connection.makeConnection(StringTransport())
    connection.ask(lambda session: session.search_request("dc=x")).addErrback(lambda _: None)
    for chunk in [b"\x30", *chunks]:
        if connection.lost is None:
            connection.dataReceived(chunk)


@given(st.data())
def test_any_split(data):
    """An answer is the same however it comes."""
    talking = LDAPServer()
    connection = Connection()
    connection.makeConnection(StringTransport())
    answer = connection.ask(lambda session: session.search_request("dc=x"))
    talking.receive(connection.transport.value())
    talking.search_result_entry(1, NAME, [PartialAttribute("mailHost", [b"east"])])
    talking.search_result_done(1)
    rest = talking.data_to_send()
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        connection.dataReceived(rest[:length])
        rest = rest[length:]
    assert [type(each).__name__ for each in answer.result] == ["SearchResultEntry", "SearchResultDone"]


@pytest_twisted.ensureDeferred
async def test_answers_to_nobody(make, server):
    """A directory that speaks without being asked is not listened to."""
    server.answers |= {"SearchRequest": found}
    router = make()
    assert await ask(router) == Route("east")
    server.talks[0].raw(bytes.fromhex("300c02010265070a010004000400"))
    await server.talks[0].end()
    assert await ask(router, "bob") == Route("east")
    assert len(server.talks) == 2


# --- STARTTLS ---------------------------------------------------------------


def started(rest=b"", code=LDAPResultCode.SUCCESS):
    def start(talk, message):
        talk.session.extended_response(message.message_id, name=STARTTLS, result_code=code)
        talk.raw(talk.session.data_to_send() + rest)

    return start


def planted():
    """Return the answer to a search that comes behind TLS, and was sent before it."""
    client, talking = LDAPClient(), LDAPServer()
    client.extended_request(STARTTLS)
    client.data_to_send()
    client.search_request("dc=x")
    talking.receive(client.data_to_send())
    talking.search_result_entry(2, NAME, [PartialAttribute("mailHost", [b"east"])])
    talking.search_result_done(2)
    return talking.data_to_send()


@pytest.mark.parametrize(
    "rest", [planted(), planted()[:-3], b"\x30", bytes.fromhex("300c02010165070a010004000400")]
)
@pytest_twisted.ensureDeferred
async def test_what_is_sent_in_the_clear_behind_starttls(make, server, rest):
    """It is never taken for an answer that came under TLS."""
    server.answers |= {"ExtendedRequest": started(rest), "SearchRequest": found}
    router = make(starttls=True, timeout=0.5)
    assert await ask(router) is Reason.UNAVAILABLE
    assert [type(each).__name__ for each in server.talks[0].asked] == ["ExtendedRequest"]


@pytest.mark.parametrize("length", [1, 10, 30])
def test_half_a_message_in_the_clear(length):
    """What was begun before TLS is not ended under it."""
    transport = StringTransport()
    transport.startTLS = lambda _: None
    transport.abortConnection = lambda: None
    connection = Connection()
    connection.makeConnection(transport)
    securing = Deferred.fromCoroutine(connection.starttls(None))
    talking = LDAPServer()
    talking.receive(transport.value())
    talking.extended_response(1, name=STARTTLS)
    connection.dataReceived(talking.data_to_send() + planted()[:length])
    connection.handshakeCompleted()
    assert securing.called
    answers = []
    connection.ask(lambda session: session.search_request("dc=x")).addCallbacks(
        answers.append, lambda _: None
    )
    connection.dataReceived(planted()[length:])
    assert not answers


@pytest_twisted.ensureDeferred
async def test_a_directory_that_hangs_does_not_keep_its_connection(make, server, tmp_path, monkeypatch):
    """Over TLS it would have to say good-bye too; it has its time for that."""
    monkeypatch.setattr("mailroute.sources.ldap.GOOD_BYE", 0.05)
    authority = Authority(tmp_path / "authority")
    secure = securing(authority, "127.0.0.1")
    server.answers |= {"ExtendedRequest": secure, "SearchRequest": found}
    router = make(starttls=True, ca=str(authority.file))
    assert await ask(router) == Route("east")
    [(_, connection)] = router._directory._searching
    [talk] = server.talks
    talk.transport.pauseProducing()
    router.stopService()
    await patient(lambda: connection.lost is not None)
    talk.transport.resumeProducing()


@pytest_twisted.ensureDeferred
async def test_a_directory_without_starttls(make, server):
    """It gets no question, and no password."""
    server.answers |= {"ExtendedRequest": started(code=LDAPResultCode.PROTOCOL_ERROR), "SearchRequest": found}
    router = make(starttls=True, bind_dn="cn=searcher", bind_password_file="secret")
    assert await ask(router) is Reason.UNAVAILABLE
    await server.talks[0].end()
    assert b"s3cret" not in server.talks[0].heard
    assert len(server.talks[0].asked) == 1


# --- passwords --------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (LDAPResultCode.SUCCESS, Route("east", proven=True)),
        (LDAPResultCode.INVALID_CREDENTIALS, Reason.AUTHENTICATION_FAILED),
        (LDAPResultCode.CONSTRAINT_VIOLATION, Reason.AUTHENTICATION_FAILED),
        (LDAPResultCode.UNWILLING_TO_PERFORM, Reason.AUTHENTICATION_FAILED),
        (LDAPResultCode.BUSY, Reason.UNAVAILABLE),
        (LDAPResultCode.REFERRAL, Reason.UNAVAILABLE),
        (LDAPResultCode.SASL_BIND_IN_PROGRESS, Reason.UNAVAILABLE),
        (LDAPResultCode.COMPARE_FALSE, Reason.UNAVAILABLE),
        (12345, Reason.UNAVAILABLE),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_a_bind_means(make, server, code, answer):
    """Only success lets anybody in; what says nothing of the password is a failure."""
    server.answers |= {"SearchRequest": found, "BindRequest": bound(LDAPResultCode(code))}
    assert await ask(make(bind=True)) == answer


@pytest_twisted.ensureDeferred
async def test_no_bind_that_proves_nothing(make, server):
    """An empty password, or an entry without a name, is never bound with: anybody could."""
    server.answers |= {
        "SearchRequest": lambda talk, message: (entry(talk, message, name=""), done(talk, message)),
        "BindRequest": bound(LDAPResultCode.SUCCESS),
    }
    router = make(bind=True)
    assert await ask(router, password=b"") is Reason.AUTHENTICATION_FAILED
    assert not server.talks
    assert await ask(router) is Reason.AUTHENTICATION_FAILED
    assert [type(each).__name__ for each in server.talks[0].asked] == ["SearchRequest"]
    assert len(server.talks) == 1


@pytest_twisted.ensureDeferred
async def test_searches_are_not_made_as_users(make, server):
    """The connection on which a password was checked is used for passwords alone."""
    server.answers |= {"SearchRequest": found, "BindRequest": bound(LDAPResultCode.SUCCESS)}
    router = make(bind=True)
    for user in ("alice", "bob", "claire"):
        assert (await ask(router, user)).proven
    asked = [{type(each).__name__ for each in talk.asked} for talk in server.talks]
    assert asked == [{"SearchRequest"}, {"BindRequest"}]


@pytest_twisted.ensureDeferred
async def test_it_stops_while_it_asks(make, server):
    """Whoever waits is told to come later; nothing stays open."""
    router = make()
    answer = Deferred.fromCoroutine(ask(router))
    talk = await server.next()
    await talk.wait_for(lambda: talk.asked)
    router.stopService()
    assert await answer is Reason.UNAVAILABLE
    await talk.end()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"urls": []}, "is empty"),
        ({"urls": None}, r'missing: write for example urls = \["ldaps://ldap.example.org"\]'),
        ({"urls": ["ldap://a"] * 9}, "must have at most 8 items, not 9"),
        ({"connections": 1001}, "must be 1000 or less, not 1001"),
        ({"urls": ["http://a"]}, "must be such as ldap://"),
        ({"urls": ["ldap://u:s3cret@a"]}, "must be such as ldap://"),
        ({"urls": ["ldap://a:x"]}, "must be such as ldap://"),
        ({"urls": ["ldap://a/dc=x?uid"]}, "must be such as ldap://"),
        ({"urls": ["ldaps://a"], "starttls": True}, "from the first byte"),
        ({"filter": "(mail=alice)"}, "must hold {user}"),
        ({"filter": "(mail={user})(x={name})"}, "must hold {user}"),
        ({"filter": "(mail={user}"}, "is no filter"),
        ({"filter": "(&(mail={user})"}, "is no filter"),
        ({"scope": "all"}, "scope"),
        ({"attributes": {"a b": "name"}}, "no attribute's name"),
        ({"attributes": {"mail": "nam"}}, "there is no field 'nam'"),
        ({"attributes": {"mail": "name", "cn": "name"}}, "cannot be one field"),
        ({"attributes": {"mail": "name", "MAIL": "host"}}, "names one attribute twice"),
        ({"attributes": None}, "has to say where"),
        ({"bind_dn": "cn=x"}, "goes with bind_password_file"),
        ({"bind_dn": "", "bind_password_file": "secret"}, "is empty"),
        ({"bind_dn": "cn=x", "bind_password_file": "missing"}, "cannot read"),
        ({"bind_dn": "cn=x", "bind_password_file": "latin"}, "must hold UTF-8"),
        ({"ca": "secret"}, "holds no certificate"),
        ({"connections": 0}, "connections"),
        ({"bse": "x"}, 'did you mean "base"'),
    ],
)
def test_wrong_keys_are_named(make, options, why):
    """The operator is told what is wrong before anything runs."""
    with pytest.raises(BadOption, match=why) as caught:
        make(**options)
    assert "s3cret" not in str(caught.value)


def test_the_library_may_be_missing(make, monkeypatch):
    """Who has not installed it is told how."""
    for name in [*sys.modules]:
        if name.startswith(("mailroute.sources.ldap", "sansldap")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("mailroute.sources.ldap")
    monkeypatch.setitem(sys.modules, "sansldap", None)
    with pytest.raises(BadOption, match=r'needs the package sansldap: pip install "mailroute\[ldap\]"'):
        make()
