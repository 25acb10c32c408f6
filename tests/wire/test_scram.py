"""SCRAM's messages, beside the examples of its RFCs."""

from __future__ import annotations

import base64

import pytest
from authenticating import ScramClient as Client
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.sasl import SCRAM, SaslError
from mailroute.wire.scram import (
    ALGORITHMS,
    Proven,
    ScramExchange,
    StoredKeys,
    Wanted,
    make_keys,
    nonce,
    proves,
)

BINDING = bytes(range(32))


def b64(message: bytes) -> bytes:
    return base64.b64encode(message)


# RFC 5802 section 5 and RFC 7677 section 3: the user is "user", the password "pencil".
EXAMPLES = [
    (
        "SCRAM-SHA-1",
        b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        b"3rfcNHYJY1ZVvWVs7j",
        b"QSXCR+Q6sek8bf92",
        b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    (
        "SCRAM-SHA-256",
        b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        b"W22ZaJ0SNY7soEsUEjb6gQ==",
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
]


@pytest.mark.parametrize(("name", "first", "ours", "salt", "final", "signature"), EXAMPLES)
def test_the_rfcs_example(
    name: str, first: bytes, ours: bytes, salt: bytes, final: bytes, signature: bytes
) -> None:
    """What the RFC has the server say is what is said, and its client is taken for who it is."""
    exchange = ScramExchange(name, ours, None)
    assert exchange.prompt() == b""
    assert exchange.respond(b64(first)) == Wanted(b"user", b"")
    keys = make_keys(ALGORITHMS[name], b"pencil", base64.b64decode(salt), 4096)
    exchange.take(keys)
    theirs = first.rpartition(b"r=")[2]
    assert exchange.prompt() == b64(b"r=" + theirs + ours + b",s=" + salt + b",i=4096")
    assert exchange.respond(b64(final)) is None
    assert exchange.prompt() == b64(signature)
    shown = exchange.respond(b"")
    assert isinstance(shown, Proven)
    assert shown.user == b"user"
    assert proves(name, keys, shown.secret)
    assert not proves(name, make_keys(ALGORITHMS[name], b"pen", base64.b64decode(salt), 4096), shown.secret)
    assert final[-20:] not in repr(shown).encode()


def keys_of(name: str, password: bytes = b"pencil") -> StoredKeys:
    return make_keys(ALGORITHMS[name.removesuffix("-PLUS")], password, b"saltsalt", 10)


def run(
    name: str, client: Client, binding: bytes | None = None, user: bytes = b"bob"
) -> Wanted | Proven | None:
    exchange = ScramExchange(name, b"ournonce", binding)
    exchange.respond(b64(client.first(user)))
    exchange.take(keys_of(name))
    return exchange.respond(b64(client.final(base64.b64decode(exchange.prompt()))))


@pytest.mark.parametrize("name", SCRAM)
def test_every_mechanism(name: str) -> None:
    """With or without channel binding, the right password goes through, and a wrong one is shown at once."""
    plus = name.endswith("-PLUS")
    header, binding = (b"p=tls-exporter,,", BINDING) if plus else (b"n,,", b"")
    assert run(name, Client(name, header=header, binding=binding), BINDING) is None
    wrong = run(name, Client(name, b"pen", header, binding), BINDING)
    assert isinstance(wrong, Proven)
    assert not proves(name, keys_of(name), wrong.secret)


def test_names_are_written_with_signs() -> None:
    """Commas and equals signs in names come as =2C and =3D, and an identity to act for is told apart."""
    exchange = ScramExchange("SCRAM-SHA-1", b"x", None)
    wanted = exchange.respond(b64(b"n,a=ot=3Dher,n=b=2Cob,r=0123456789"))
    assert wanted == Wanted(b"b,ob", b"ot=her")
    own = ScramExchange("SCRAM-SHA-1", b"x", None).respond(b64(b"n,a=bob,n=bob,r=0123456789"))
    assert own == Wanted(b"bob", b"")
    with pytest.raises(SaslError):
        ScramExchange("SCRAM-SHA-1", b"x", None).respond(b64(b"n,,n=b=2Dob,r=0123456789"))


@pytest.mark.parametrize(
    ("name", "header", "sent", "ours"),
    [
        ("SCRAM-SHA-256-PLUS", b"p=tls-exporter,,", bytes(32), BINDING),
        ("SCRAM-SHA-256-PLUS", b"p=tls-exporter,,", b"", BINDING),
        ("SCRAM-SHA-256-PLUS", b"p=tls-unique,,", BINDING, BINDING),
        ("SCRAM-SHA-256-PLUS", b"n,,", b"", BINDING),
        ("SCRAM-SHA-256-PLUS", b"y,,", b"", BINDING),
        ("SCRAM-SHA-256", b"p=tls-exporter,,", BINDING, BINDING),
        ("SCRAM-SHA-256", b"y,,", b"", BINDING),
        ("SCRAM-SHA-256", b"n,,", BINDING, None),
    ],
)
def test_another_channel_is_refused(name: str, header: bytes, sent: bytes, ours: bytes | None) -> None:
    """Whoever stands in the middle has another channel, or had to take channel binding out of the list."""
    with pytest.raises(SaslError):
        run(name, Client(name, header=header, binding=sent), ours)


def test_a_client_that_knows_binding_may_do_without() -> None:
    """Where there is none to be had, a client says that it could have, and goes on."""
    assert run("SCRAM-SHA-256", Client("SCRAM-SHA-256", header=b"y,,"), None) is None


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n,,",
        b"n,,n=bob",
        b"n,,n=,r=0123456789",
        b"n,,n=bob,r=short",
        b"n,,n=bob,r=with space in it",
        b"n,,m=ext,n=bob,r=0123456789",
        b"x,,n=bob,r=0123456789",
        b"n,bob,n=bob,r=0123456789",
        b"n,,n=" + b"b" * 3000 + b",r=0123456789",
    ],
)
def test_what_is_no_first_message_is_told(first: bytes) -> None:
    """A message that makes no sense, or a mandatory extension that nobody knows, ends the exchange."""
    with pytest.raises(SaslError):
        ScramExchange("SCRAM-SHA-256", b"x", None).respond(b64(first))


@pytest.mark.parametrize("change", [b"r=", b"c=", b"p=", b"="])
def test_a_last_message_that_does_not_fit_is_told(change: bytes) -> None:
    """A nonce that is not ours, or a message with something missing, ends the exchange."""
    exchange = ScramExchange("SCRAM-SHA-256", b"ournonce", None)
    client = Client("SCRAM-SHA-256")
    exchange.respond(b64(client.first()))
    exchange.take(keys_of("SCRAM-SHA-256"))
    final = client.final(base64.b64decode(exchange.prompt()))
    with pytest.raises(SaslError):
        exchange.respond(b64(final.replace(change, b"x" + change if change == b"=" else change + b"!")))


def test_nothing_may_follow() -> None:
    """Behind the server's proof comes an empty message, and no other."""
    exchange = ScramExchange("SCRAM-SHA-256", b"ournonce", None)
    client = Client("SCRAM-SHA-256")
    exchange.respond(b64(client.first()))
    exchange.take(keys_of("SCRAM-SHA-256"))
    assert exchange.respond(b64(client.final(base64.b64decode(exchange.prompt())))) is None
    with pytest.raises(SaslError):
        exchange.respond(b64(b"x"))


@given(st.lists(st.binary(max_size=80) | st.binary(max_size=80).map(b64), min_size=1, max_size=4))
def test_any_lines_are_taken_or_refused(lines: list[bytes]) -> None:
    """No line of a client's raises anything but a SaslError."""
    exchange = ScramExchange("SCRAM-SHA-256", nonce(), None)
    try:
        for line in lines:
            if isinstance(exchange.respond(line), Wanted):
                exchange.take(keys_of("SCRAM-SHA-256"))
    except SaslError:
        pass


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_proof_is_right_or_wrong(proof: bytes, said: bytes) -> None:
    """A proof of any length and content is wrong, unless it is right."""
    assert not proves("SCRAM-SHA-256", keys_of("SCRAM-SHA-256"), b64(proof) + b"," + said)


def test_nonces_differ() -> None:
    """No nonce comes twice, and each can stand in a message."""
    seen = {nonce() for _ in range(100)}
    assert len(seen) == 100
    assert all(len(each) >= 24 and b"," not in each for each in seen)


def test_keys_are_not_shown() -> None:
    """What a server keeps of a password is in no repr."""
    assert repr(keys_of("SCRAM-SHA-1")) == "StoredKeys(iterations=10, ...)"
