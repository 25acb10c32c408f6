"""Bearer tokens: which are good, whose they are, and what a client is told whose token is not."""

from __future__ import annotations

import base64
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from authenticating import Thread, answer, lookup, refusal
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms
from jwt.warnings import InsecureKeyLengthWarning
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from mailroute.authenticators import source
from mailroute.authenticators.oauth2 import ALGORITHMS, keys
from mailroute.authenticators.oauth2.authenticator import BadToken
from mailroute.authenticators.oauth2.introspection import Introspection
from mailroute.authenticators.oauth2.keys import Keys
from mailroute.authenticators.oauth2.signed import SignedTokens
from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.interfaces import IAuthenticator
from mailroute.names import UserNames
from mailroute.proofs import Proof
from mailroute.sources import BadOption, SourceContext
from mailroute.web import MAX_ASKED

ISSUER, AUDIENCE = "https://login.example.org", "mail"

RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SHARED = b"a secret of thirty-two bytes, or more"


def jwk(key: Any, algorithm: str, **more: object) -> dict[str, object]:
    public = key if isinstance(key, bytes) else key.public_key()
    return {**get_default_algorithms()[algorithm].to_jwk(public, as_dict=True), **more}


KEYS = [
    jwk(RSA, "RS256", kid="one", use="sig"),
    jwk(EC, "ES256", kid="two"),
    jwk(ED, "EdDSA", kid="three"),
    jwk(SHARED, "HS256", kid="four"),
    jwk(OTHER, "RS256", kid="five", use="enc"),
    {"kty": "strange", "kid": "six"},
    "no key at all",
]


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **claims: object) -> str:
    said = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": time.time() + 60,
        "email": "Alice@EXAMPLE.org",
        "scope": "openid mail",
        **claims,
    }
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


def context(folder: Path, clock: Clock | None = None) -> SourceContext:
    normalise = UserNames(lowercase_local_part=True).normalise
    return SourceContext(folder, frozenset(), normalise, clock or Clock(), Thread())


def made(folder: Path, **options: object) -> Any:
    (folder / "keys.json").write_text(json.dumps({"keys": KEYS}))
    usual = {"jwks": "keys.json", "issuer": ISSUER, "audience": AUDIENCE}
    return source("oauth2").authenticator({**usual, **options}, context(folder))


def ask(token: str, user: str = "", mechanism: str = "OAUTHBEARER") -> Any:
    message = {
        "OAUTHBEARER": f"n,a={user},\1host=localhost\1auth=Bearer {token}\1\1",
        "XOAUTH2": f"user={user}\1auth=Bearer {token}\1\1",
    }[mechanism]
    return lookup(user, message.encode(), Proof.TOKEN, mechanism)


@pytest.fixture
def oauth2(tmp_path: Path) -> Any:
    return made(tmp_path)


# --- good ones ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (RSA, "RS256", "one"),
        (RSA, "PS512", "one"),
        (EC, "ES256", "two"),
        (ED, "EdDSA", "three"),
        (RSA, "RS256", None),
        (EC, "ES256", None),
    ],
)
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_good_token_says_who_it_is(oauth2: Any, key: Any, algorithm: str, kid: str, mechanism: str) -> None:
    """Whatever kind of key pair has signed it, the claim is the user's name, brought into its one form."""
    verifyObject(IAuthenticator, oauth2)
    assert oauth2.proofs == {Proof.TOKEN}
    good = token(key, algorithm, kid)
    for user in ("", "alice@example.org"):
        assert answer(oauth2.authenticate(ask(good, user, mechanism))) == "alice@example.org"


def test_a_token_for_several_is_for_one(oauth2: Any) -> None:
    """A token may be meant for others, too."""
    assert answer(oauth2.authenticate(ask(token(aud=["calendar", AUDIENCE])))) == "alice@example.org"


def test_clocks_may_differ(tmp_path: Path) -> None:
    """A token whose time is over by less than the leeway is taken."""
    oauth2 = made(tmp_path, leeway=60)
    assert answer(oauth2.authenticate(ask(token(exp=time.time() - 30, nbf=time.time() + 30))))
    refusal(oauth2.authenticate(ask(token(exp=time.time() - 90))))


def test_a_shared_secret_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    """Signatures that whoever checks them can make as well have to be named."""
    shared = token(SHARED, "HS256", "four")
    refusal(made(tmp_path).authenticate(ask(shared)))
    assert answer(made(tmp_path, algorithms=["HS256"]).authenticate(ask(shared))) == "alice@example.org"


def test_another_claim_may_be_the_name(tmp_path: Path) -> None:
    """Where the user's name is in another claim, that one counts, and no other."""
    oauth2 = made(tmp_path, claim="sub")
    assert answer(oauth2.authenticate(ask(token(sub="bob")))) == "bob"


# --- bad ones --------------------------------------------------------------------------


def public(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def forged(header: dict[str, object], claims: dict[str, object], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def by_public_key() -> str:
    """Return a token that takes the public key for a shared secret (the classic of JWT's defects)."""
    import hashlib
    import hmac

    head, body, _ = forged({"alg": "HS256", "kid": "one"}, jwt.decode(token(), options=UNCHECKED)).split(".")
    signature = hmac.digest(public(RSA), f"{head}.{body}".encode(), hashlib.sha256)
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


UNCHECKED: Any = {"verify_signature": False}

BAD = {
    "of another key": lambda: token(OTHER),
    "of a key for encryption": lambda: token(OTHER, kid="five"),
    "of an unknown key": lambda: token(kid="seven"),
    "of the wrong kind of key": lambda: token(EC, "ES256", "one"),
    "without a signature": lambda: forged({"alg": "none"}, jwt.decode(token(), options=UNCHECKED)),
    "without a signature, for a key": lambda: forged(
        {"alg": "none", "kid": "one"}, jwt.decode(token(), options=UNCHECKED)
    ),
    "with a strange kind of signature": lambda: forged(
        {"alg": ["RS256"], "kid": "one"}, jwt.decode(token(), options=UNCHECKED)
    ),
    "signed with the public key": by_public_key,
    "changed": lambda: token()[:-8] + "AAAAAAAA",
    "for somebody else": lambda: token(aud="calendar"),
    "for nobody": lambda: token(aud=None),
    "over": lambda: token(exp=time.time() - 3600),
    "for ever": lambda: token(exp=None),
    "not yet": lambda: token(nbf=time.time() + 3600),
    "without the claim": lambda: token(email=None),
    "with a strange claim": lambda: token(email=["alice@example.org"]),
    "with an empty claim": lambda: token(email=""),
    "with an address that is not verified": lambda: token(email_verified=False),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_token_is_refused(tmp_path: Path, what: str) -> None:
    """Whatever is wrong with a token, its client is told so in RFC 7628's words, and nobody gets in."""
    bad = BAD[what]()
    for algorithms in (list(ALGORITHMS), [*ALGORITHMS, "HS256"]):
        no = refusal(made(tmp_path, algorithms=algorithms).authenticate(ask(bad)))
        assert no.reason is Reason.AUTHENTICATION_FAILED
        assert json.loads(no.challenge or b"") == {"status": "invalid_token"}
        assert bad not in repr(no)


@pytest.mark.parametrize("foreign", ["opaque", "a.b.c", "x" * 5000])
def test_what_is_not_our_issuers_is_for_others(oauth2: Any, foreign: str) -> None:
    """A token of another issuer's, or none of JWT's, is left to the next authenticator."""
    assert answer(oauth2.authenticate(ask(foreign))) is None
    assert answer(oauth2.authenticate(ask(token(iss="https://elsewhere.example.org")))) is None
    assert answer(oauth2.authenticate(ask(token(iss=None)))) is None


def test_a_token_opens_its_own_account_alone(oauth2: Any) -> None:
    """A client that names somebody else than its token does is turned away, and not for a bad token."""
    no = refusal(oauth2.authenticate(ask(token(), "bob@example.org")))
    assert no.reason is Reason.AUTHORIZATION_FAILED


def test_a_token_must_be_good_for_mail(tmp_path: Path) -> None:
    """A token that lacks a scope is refused, and the client told which it needs and where to get it."""
    url = "https://login.example.org/.well-known/openid-configuration"
    oauth2 = made(tmp_path, scope=["mail", "imap"], openid_configuration=url)
    told = {"scope": "mail imap", "openid-configuration": url}
    no = refusal(oauth2.authenticate(ask(token())))
    assert no.reason is Reason.AUTHENTICATION_FAILED
    assert json.loads(no.challenge or b"") == {"status": "insufficient_scope", **told}
    no = refusal(oauth2.authenticate(ask(token(OTHER))))
    assert json.loads(no.challenge or b"") == {"status": "invalid_token", **told}
    for said in ({"scope": "imap x mail"}, {"scope": None, "scp": ["mail", "imap"]}):
        assert answer(oauth2.authenticate(ask(token(**said)))) == "alice@example.org"


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text(alphabet="eyJ.-_={}").map(str.encode))
def test_any_bytes_are_refused_in_good_order(said: bytes) -> None:
    """No message of a client's makes the check break."""
    validator = SignedTokens(Keys(Fake(), context(Path()), 60, 10), ISSUER, [AUDIENCE], ALGORITHMS, 30)
    from mailroute.authenticators.oauth2.authenticator import TokenAuthenticator

    oauth2 = TokenAuthenticator(validator, str, claim="sub", scope=(), openid_configuration=None)
    asked = lookup("bob", b"n,,\1auth=Bearer " + said + b"\1\1", Proof.TOKEN, "OAUTHBEARER")
    with suppress(LoginRefused):
        assert answer(oauth2.authenticate(asked)) is None


# --- keys that change --------------------------------------------------------------------


class Fake:
    """Has a document, counts who asks, and answers when it is told to."""

    def __init__(self, *described: object) -> None:
        self.document = json.dumps({"keys": list(described) or KEYS}).encode()
        self.asked = 0
        self.later: Deferred[bytes] | None = None
        self.error: Exception | None = None

    async def fetch(self) -> bytes:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return await (self.later or succeed(self.document))

    def __str__(self) -> str:
        return "the fake"


AWAY = LoginRefused(Refusal(Reason.UNAVAILABLE, "away"))


def of(kept: Keys, key_id: str | None) -> list[str | None]:
    return [key.id for key in answer(kept.of(key_id))]


def test_keys_are_fetched_once(tmp_path: Path) -> None:
    """As long as they are fresh, keys that are known are not fetched again."""
    fake, clock = Fake(), Clock()
    kept = Keys(fake, context(tmp_path, clock), 60, 10)
    for _ in range(5):
        assert of(kept, "one") == ["one"]
        clock.advance(10)
    assert fake.asked == 1
    clock.advance(10)
    assert of(kept, "one") == ["one"]
    assert fake.asked == 2


def test_an_unknown_key_has_them_fetched_but_not_too_often(tmp_path: Path) -> None:
    """A new key is known with its first token; made-up keys do not make mailroute ask on and on."""
    fake, clock = Fake(KEYS[0]), Clock()
    kept = Keys(fake, context(tmp_path, clock), 3600, 10)
    assert of(kept, "one") == ["one"]
    clock.advance(10)
    fake.document = Fake(KEYS[0], KEYS[1]).document
    assert of(kept, "two") == ["two"]
    assert fake.asked == 2
    for number in range(9):
        assert of(kept, f"made up {number}") == []
        clock.advance(1)
    assert fake.asked == 2
    clock.advance(1)
    assert of(kept, "made up") == []
    assert fake.asked == 3


def tokens_of(fake: Fake, folder: Path, clock: Clock) -> SignedTokens:
    kept = Keys(fake, context(folder, clock), 3600, 10)
    return SignedTokens(kept, ISSUER, [AUDIENCE], ALGORITHMS, 30)


def test_a_token_that_names_no_key_has_them_fetched_but_not_too_often(tmp_path: Path) -> None:
    """Where keys have no ids, a new one is known with its first token; forged ones do not make it ask on."""
    fake, clock = Fake(jwk(RSA, "RS256")), Clock()
    signed = tokens_of(fake, tmp_path, clock)
    assert answer(signed.claims(token(kid=None)))
    fake.document = Fake(jwk(OTHER, "RS256")).document
    clock.advance(9)
    with pytest.raises(BadToken):
        answer(signed.claims(token(OTHER, kid=None)))
    assert fake.asked == 1
    clock.advance(1)
    assert answer(signed.claims(token(OTHER, kid=None)))
    assert fake.asked == 2
    for _ in range(9):
        with pytest.raises(BadToken, match="not signed with any of the keys"):
            answer(signed.claims(token(kid=None)))
        clock.advance(1)
    assert fake.asked == 2


def test_a_key_without_an_id_is_tried_for_any(tmp_path: Path) -> None:
    """An id is only a hint (RFC 7515 section 4.1.4): a key that has none may be the one that is named."""
    fake, clock = Fake(jwk(RSA, "RS256"), jwk(OTHER, "RS256", kid="two")), Clock()
    signed = tokens_of(fake, tmp_path, clock)
    assert answer(signed.claims(token(kid="one")))
    with pytest.raises(BadToken):
        answer(signed.claims(token(OTHER, kid="one")))


WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point


def test_a_weak_key_is_worth_nothing_and_in_nobodys_way(tmp_path: Path) -> None:
    """Whoever could have broken a key signs nothing; those that stand beside it are as good as ever."""
    fake = Fake(jwk(WEAK, "RS256"), jwk(WEAK, "RS256", kid="weak"), jwk(RSA, "RS256", kid="one"))
    signed = tokens_of(fake, tmp_path, Clock())
    for kid in (None, "one"):
        assert answer(signed.claims(token(kid=kid)))
        with pytest.warns(InsecureKeyLengthWarning):
            weak = token(WEAK, kid=kid and "weak")
        with pytest.raises(BadToken, match="too weak"):
            answer(signed.claims(weak))


def test_a_key_that_is_withdrawn_is_gone(tmp_path: Path) -> None:
    """What is not in the set any more when that is fetched again signs nothing."""
    fake, clock = Fake(KEYS[0], KEYS[1]), Clock()
    kept = Keys(fake, context(tmp_path, clock), 60, 10)
    of(kept, "one")
    fake.document = Fake(KEYS[1]).document
    clock.advance(61)
    of(kept, "two")
    assert of(kept, "one") == []


def test_all_wait_for_one_fetch_and_who_leaves_does_not_end_it(tmp_path: Path) -> None:
    """Clients that come at once share a fetch, which goes on if the one leaves that it began with."""
    fake, clock = Fake(), Clock()
    fake.later = Deferred()
    kept = Keys(fake, context(tmp_path, clock), 60, 10)
    first = Deferred.fromCoroutine(kept.of("one"))
    second = Deferred.fromCoroutine(kept.of("two"))
    first.addErrback(lambda _: None)
    first.cancel()
    fake.later.callback(fake.document)
    assert [key.id for key in answer(second)] == ["two"]
    assert fake.asked == 1


@pytest.mark.parametrize("error", [AWAY, ValueError, RuntimeError("defect")])
def test_old_keys_stay_when_there_are_no_new_ones(tmp_path: Path, error: Any) -> None:
    """A server that is away, or talks nonsense, costs nobody a login as long as the keys are known."""
    fake, clock = Fake(), Clock()
    kept = Keys(fake, context(tmp_path, clock), 60, 10)
    of(kept, "one")
    clock.advance(61)
    if error is ValueError:
        fake.document = b'{"keys": []}'
    else:
        fake.error = error
    with capturedLogs() as logs:
        assert of(kept, "one") == ["one"]
    assert len(logs) == 1
    assert "the fake" in formatEvent(logs[0]) or "away" in formatEvent(logs[0])


def test_without_any_key_nobody_can_tell(tmp_path: Path) -> None:
    """As long as there has never been a key, logins are told to come again, and it is tried again."""
    fake, clock = Fake(), Clock()
    fake.error = AWAY
    kept = Keys(fake, context(tmp_path, clock), 60, 10)
    with capturedLogs():
        for _ in range(3):
            assert refusal(kept.of("one")).reason is Reason.UNAVAILABLE
    assert fake.asked == 1
    fake.error = None
    clock.advance(10)
    assert of(kept, "one") == ["one"]


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [{"kty": "RSA"}]}', b"[" * 100000],
)
def test_what_is_no_set_of_keys_is_told(document: bytes) -> None:
    """A document without a usable key is none, whatever else it is."""
    with pytest.raises(ValueError, match=r"is no set of keys|has no key"):
        keys.read(document)


def test_keys_are_bounded() -> None:
    """A set with thousands of keys is refused before they are read."""
    with pytest.raises(ValueError, match="more than 100 keys"):
        keys.read(json.dumps({"keys": [{}] * 101}).encode())


def test_a_file_of_keys_is_read_again(tmp_path: Path) -> None:
    """A key that comes into the file is known soon after."""
    clock = Clock()
    (tmp_path / "keys.json").write_text(json.dumps({"keys": KEYS[:1]}))
    options = {"jwks": "keys.json", "issuer": ISSUER, "audience": AUDIENCE}
    oauth2 = source("oauth2").authenticator(options, context(tmp_path, clock))
    clock.advance(60)
    assert answer(oauth2.authenticate(ask(token())))
    refusal(oauth2.authenticate(ask(token(EC, "ES256", "two"))))
    (tmp_path / "keys.json").write_text(json.dumps({"keys": KEYS}))
    clock.advance(keys.FILE_TTL)
    assert answer(oauth2.authenticate(ask(token(EC, "ES256", "two"))))


def test_a_file_of_keys_that_is_gone_leaves_those_that_it_had(tmp_path: Path) -> None:
    """Whoever may not read the file any more, or finds it spoilt, has the keys of the start, and says so."""
    (tmp_path / "keys.json").write_text(json.dumps({"keys": KEYS}))
    options = {"jwks": "keys.json", "issuer": ISSUER, "audience": AUDIENCE}
    oauth2 = source("oauth2").authenticator(options, context(tmp_path))
    (tmp_path / "keys.json").unlink()
    with capturedLogs() as logs:
        assert answer(oauth2.authenticate(ask(token())))
    assert "keys.json: No such file" in formatEvent(logs[0])


# --- a server that knows -------------------------------------------------------------------


class FakeWeb:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self, said: object) -> None:
        self.said = said
        self.asked: list[Any] = []

    async def post(self, url: str, headers: Any, form: Any) -> bytes:
        self.asked.append((url, headers, form))
        if isinstance(self.said, Exception):
            raise self.said
        if isinstance(self.said, Deferred):
            await self.said
        return self.said if isinstance(self.said, bytes) else json.dumps(self.said).encode()


def introspected(said: object, clock: Clock | None = None, **changes: Any) -> tuple[Any, FakeWeb]:
    """Return an authenticator that asks such a server, at the time 1000, and the server."""
    from mailroute.authenticators.oauth2 import OAuth2Options
    from mailroute.authenticators.oauth2.authenticator import TokenAuthenticator

    web, clock = FakeWeb(said), clock or Clock()
    clock.advance(1000)
    checks = {"issuer": None, "audience": (), "leeway": 30}
    checks |= {key: changes.pop(key) for key in [*checks] if key in changes}
    server: Any = Introspection(
        web,
        "https://login.example.org/i",
        (b"mail:route", b"p:w d\xc3\xa4"),
        OAuth2Options(**changes),
        context(Path(), clock),
        **checks,
    )
    return TokenAuthenticator(server, str, claim="username", scope=("mail",), openid_configuration=None), web


ACTIVE = {"active": True, "username": "alice", "scope": "mail", "exp": 1010, "iss": ISSUER, "aud": [AUDIENCE]}


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        (ACTIVE, {}),
        ({"active": True, "username": "alice", "scope": "mail"}, {}),
        (ACTIVE, {"issuer": ISSUER, "audience": (AUDIENCE,)}),
        ({**ACTIVE, "exp": 980, "nbf": 1020}, {}),
        ({**ACTIVE, "aud": AUDIENCE}, {"audience": ("x", AUDIENCE)}),
    ],
)
def test_a_server_says_who_it_is(said: Any, changes: Any) -> None:
    """A token that the server knows opens the account that it names; it is asked as RFC 7662 wants it."""
    oauth2, web = introspected(said, **changes)
    assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
    ((url, headers, form),) = web.asked
    assert url == "https://login.example.org/i"
    name, _, password = base64.b64decode(headers["Authorization"].removeprefix("Basic ")).partition(b":")
    assert (name, password) == (b"mail%3Aroute", b"p%3Aw+d%C3%A4")
    assert form["token"] == "opaque"


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ({"active": False}, {}),
        ({**ACTIVE, "active": "true"}, {}),
        ({**ACTIVE, "exp": 960}, {}),
        ({**ACTIVE, "exp": "never"}, {}),
        ({**ACTIVE, "exp": float("nan")}, {}),
        ({**ACTIVE, "exp": 10**400}, {}),
        ({**ACTIVE, "nbf": -(10**400)}, {}),
        ({**ACTIVE, "nbf": 1040}, {}),
        ({**ACTIVE, "username": None}, {}),
        (ACTIVE, {"issuer": "https://elsewhere.example.org"}),
        (ACTIVE, {"audience": ("calendar",)}),
        ({**ACTIVE, "aud": [[], {}]}, {"audience": ("calendar",)}),
    ],
)
def test_a_token_that_the_server_does_not_know_is_refused(said: Any, changes: Any) -> None:
    """What is not active, over, or for others is a bad token."""
    no = refusal(introspected(said, **changes)[0].authenticate(ask("opaque")))
    assert no.reason is Reason.AUTHENTICATION_FAILED
    assert json.loads(no.challenge or b"")["status"] == "invalid_token"


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", b"<html>", b"[" * 100000, AWAY])
def test_a_server_that_does_not_answer_is_no_refusal(said: Any) -> None:
    """Nonsense, or no answer at all, says nothing of the token: come again."""
    assert refusal(introspected(said)[0].authenticate(ask("opaque"))).reason is Reason.UNAVAILABLE


LONG = {**ACTIVE, "exp": 5000}


def test_a_token_is_asked_about_once_in_a_while() -> None:
    """Until `cache_ttl` is over the server is not asked again; what it takes no longer is then refused."""
    oauth2, web = introspected(LONG, clock := Clock())
    for _ in range(10):
        assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
    assert len(web.asked) == 1
    web.said = {"active": False}
    clock.advance(10)
    assert refusal(oauth2.authenticate(ask("opaque"))).reason is Reason.AUTHENTICATION_FAILED


def test_a_bad_token_is_asked_about_once_in_a_while() -> None:
    """Neither is it asked again about one that it does not take, and the client is told why as ever."""
    oauth2, web = introspected({"active": False}, clock := Clock())
    for _ in range(10):
        no = refusal(oauth2.authenticate(ask("opaque")))
        assert json.loads(no.challenge or b"")["status"] == "invalid_token"
    assert len(web.asked) == 1
    web.said = LONG
    clock.advance(10)
    assert answer(oauth2.authenticate(ask("opaque"))) == "alice"


def test_what_is_kept_is_one_tokens() -> None:
    """Another token, be it longer by one character, is another question; none is kept as it is."""
    oauth2, web = introspected(LONG)
    assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
    web.said = {"active": False}
    for other in ("opaqu", "opaquee", "Opaque"):
        assert refusal(oauth2.authenticate(ask(other))).reason is Reason.AUTHENTICATION_FAILED
    assert len(web.asked) == 4
    assert "opaque" not in repr(vars(oauth2._validator))


def test_a_token_is_not_kept_beyond_its_end() -> None:
    """Whatever `cache_ttl` and `stale_if_error` say, a token is good until its `exp` and no longer."""
    said = {**ACTIVE, "exp": 1050}
    oauth2, web = introspected(said, clock := Clock(), cache_ttl=3600, stale_if_error=3600)
    assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
    web.said = AWAY
    clock.advance(49)
    assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
    assert len(web.asked) == 1
    clock.advance(1)
    assert refusal(oauth2.authenticate(ask("opaque"))).reason is Reason.UNAVAILABLE


def test_a_token_may_be_taken_while_the_server_fails() -> None:
    """With `stale_if_error` a token that was good goes on being good for so long, and not without."""
    for stale in (0, 60):
        oauth2, web = introspected(LONG, clock := Clock(), stale_if_error=stale)
        assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
        web.said = AWAY
        clock.advance(11)
        if stale:
            assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
            clock.advance(60)
        assert refusal(oauth2.authenticate(ask("opaque"))).reason is Reason.UNAVAILABLE


def test_a_long_answer_is_not_kept() -> None:
    """Of what a server says, no more is kept than a bound."""
    oauth2, web = introspected({**LONG, "more": "x" * 5000})
    for _ in range(2):
        assert answer(oauth2.authenticate(ask("opaque"))) == "alice"
    assert len(web.asked) == 2


@pytest.mark.parametrize("fails", [AWAY, b"<html>"])
def test_a_server_that_fails_is_left_alone(fails: object) -> None:
    """After some failures it is not asked until one question tries it; no token is called bad meanwhile."""
    oauth2, web = introspected(fails, clock := Clock(), breaker_failures=3)
    for number in range(10):
        assert refusal(oauth2.authenticate(ask(f"token{number}"))).reason is Reason.UNAVAILABLE
    assert len(web.asked) == 3
    web.said = LONG
    clock.advance(10)
    assert answer(oauth2.authenticate(ask("opaque"))) == "alice"


def test_one_asks_for_all_and_not_for_long() -> None:
    """Logins with one token at the same time are one question, which ends when its time is over."""
    oauth2, web = introspected(Deferred(), clock := Clock())
    waiting = [Deferred.fromCoroutine(oauth2.authenticate(ask("opaque"))) for _ in range(10)]
    assert len(web.asked) == 1
    waiting.pop().addErrback(lambda _: None).cancel()
    clock.advance(5)
    for each in waiting:
        assert refusal(each).reason is Reason.UNAVAILABLE


def test_many_tokens_at_once_are_not_the_servers_fault() -> None:
    """Who comes on top of those that it may be asked is told to come again; it is not left alone for that."""
    oauth2, web = introspected(held := Deferred())
    waiting = [
        Deferred.fromCoroutine(oauth2.authenticate(ask(f"t{number}"))) for number in range(MAX_ASKED + 20)
    ]
    assert len(web.asked) == MAX_ASKED
    assert all(refusal(each).reason is Reason.UNAVAILABLE for each in waiting[MAX_ASKED:])
    web.said = LONG
    held.callback(None)
    assert [answer(each) for each in waiting[:MAX_ASKED]] == ["alice"] * MAX_ASKED
    assert answer(oauth2.authenticate(ask("another"))) == "alice"


def test_it_stops_while_it_asks() -> None:
    """What is asked when mailroute stops is given up."""
    oauth2, _ = introspected(Deferred())
    oauth2.startService()
    waiting = Deferred.fromCoroutine(oauth2.authenticate(ask("opaque")))
    oauth2.stopService()
    assert refusal(waiting).reason is Reason.UNAVAILABLE


# --- the block ------------------------------------------------------------------------------

SERVER = {"introspection": "https://x.example/i", "client_id": "me", "client_secret_file": "secret"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "jwks: missing: write jwks"),
        ({"jwks": "keys.json", **SERVER}, "jwks: cannot go with introspection"),
        ({"jwks": "keys.json"}, "issuer: missing: jwks needs it"),
        ({"jwks": "keys.json", "issuer": "x"}, "audience: missing: jwks needs it"),
        ({"jwks": "none.json", "issuer": "x", "audience": "y"}, "jwks: cannot read .*none.json: No such"),
        ({"jwks": "secret", "issuer": "x", "audience": "y"}, "jwks: .*secret is no set of keys"),
        ({"jwks": "http://x.example/k", "issuer": "x", "audience": "y"}, "jwks: must be an https:// address"),
        ({"jwks": "keys.json", "issuer": "x", "audience": "y", "client_id": "z"}, "client_id: means nothing"),
        ({"jwks": "keys.json", "issuer": "x", "audience": 3}, "audience: "),
        ({**SERVER, "client_id": None}, "client_id: missing: introspection needs it"),
        ({**SERVER, "client_secret_file": "none"}, "client_secret_file: cannot read .*none"),
        (
            {"jwks": "keys.json", "issuer": "x", "audience": "y", "cache_ttl": 1},
            "cache_ttl: means nothing without introspection",
        ),
        ({**SERVER, "cache_ttl": -1}, "cache_ttl: "),
        ({**SERVER, "algorithms": ["RS256"]}, "algorithms: means nothing without jwks"),
        ({**SERVER, "introspection": "http://x.example/"}, "introspection: must be an https:// address"),
        ({**SERVER, "ca": "secret"}, "ca: .*secret holds no certificate"),
        ({**SERVER, "ca": "none"}, "ca: cannot read .*none"),
        ({**SERVER, "leeway": -1}, "leeway: "),
        ({"jwks": "keys.json", "algorithms": ["none"]}, 'algorithms: "none" is no signature'),
        ({**SERVER, "key": 1}, "key: unknown key"),
    ],
)
def test_a_bad_block_says_what_is_wrong(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Keys that are missing, wrong, or do not go together are told by their names."""
    (tmp_path / "keys.json").write_text(json.dumps({"keys": KEYS}))
    (tmp_path / "secret").write_text("hush\n")
    options = {key: value for key, value in options.items() if value is not None}
    with pytest.raises(BadOption, match=message):
        source("oauth2").authenticator(options, context(tmp_path))


def test_what_checks_tokens_is_told(tmp_path: Path) -> None:
    """The check of a configuration says with what tokens are checked, and no secret."""
    (tmp_path / "secret").write_text("hush\n")
    assert str(made(tmp_path)) == (
        f"tokens are checked by the keys in {tmp_path}/keys.json, for those of {ISSUER}; "
        "the claim email is the user's name"
    )
    told = str(source("oauth2").authenticator(SERVER, context(tmp_path)))
    assert told.startswith("tokens are checked by the server at https://x.example/i;")


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed what tokens need is told which package that is, and how to install it."""
    home = sys.modules["mailroute.authenticators.oauth2"]
    for name in ("keys", "signed"):
        monkeypatch.delitem(sys.modules, f"{home.__name__}.{name}", raising=False)
        # Its package's name for it, too: the tests that come after would patch another module than they use.
        monkeypatch.delattr(home, name, raising=False)
    monkeypatch.setitem(sys.modules, "jwt", None)
    told = r'source: needs the package jwt: pip install "mailroute\[oauth2\]"'
    with pytest.raises(BadOption, match=told):
        made(tmp_path)
