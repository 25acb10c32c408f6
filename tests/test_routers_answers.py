"""Answers of sources become routes, or are nonsense that hurts nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.events import Change, Identity, LoginRefused, Method, Reason, Route, Security
from mailroute.routers.answers import FIELDS, MAX_FORWARD, MAX_OTHERS, MAX_TEXT, Answers
from mailroute.sources.context import BadAnswer

ANSWERS = Answers(["east", "west", "north"])


@pytest.mark.parametrize(
    ("answer", "route"),
    [
        ({"backend": "east"}, Route("east")),
        ({"backend": b"east"}, Route("east")),
        ({"backend": "east", "name": None, "host": "", "port": None}, Route("east")),
        ({"backend": "east", "name": "bob@old"}, Route("east", "bob@old")),
        ({"backend": "east", "name": 1234}, Route("east", "1234")),
        ({"backend": "east, west,north"}, Route("east", None, ("west", "north"))),
        ({"backend": ["east", "west"]}, Route("east", None, ("west",))),
        ({"backend": "east", "password": "s3cret"}, Route("east", password=b"s3cret")),
        ({"backend": "east", "password": b"gr\xc3\xbcn"}, Route("east", password="grün".encode())),
        (
            {"backend": "east", "password": "x", "master": "root"},
            Route("east", password=b"x", master="root"),
        ),
        (
            {"backend": "east", "host": "10.0.0.5", "port": "1143"},
            Route("east", change=Change("10.0.0.5", 1143)),
        ),
        ({"backend": "east", "host": "2001:db8::1"}, Route("east", change=Change("2001:db8::1"))),
        ({"backend": "east", "port": 143}, Route("east", change=Change(port=143))),
        (
            {"backend": "east", "login": "master", "identity": "none", "security": "tls"},
            Route("east", change=Change(None, None, Method.MASTER, Identity.NONE, Security.TLS)),
        ),
        (
            {"backend": "east", "forward_shard": "7", "forward_colour": "blue"},
            Route("east", forward=(("colour", "blue"), ("shard", "7"))),
        ),
        ({"backend": "east", "refuse": "", "later": False}, Route("east")),
        ({"backend": "east", "later": 0}, Route("east")),
    ],
)
def test_fields_become_a_route(answer, route):
    """Every field of a route can be had from a source, as text, bytes or numbers; empty is missing."""
    assert ANSWERS.route(answer) == route


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"host": "h1"}, "names no backend"),
        ({"backend": "south"}, "no backend 'south'"),
        ({"backend": "east,south"}, "no backend 'south'"),
        ({"backend": "east\r\n"}, r"no backend 'east\\r\\n'"),
        ({"backend": 7}, "backend must be one name"),
        ({"backend": []}, "backend must be one name"),
        ({"backend": ["east"] * (MAX_OTHERS + 2)}, "at most"),
        ({"backend": "east", "port": 0}, "port must be from 1 to 65535, not 0"),
        ({"backend": "east", "port": 65536}, "port must be from 1 to 65535, not 65536"),
        ({"backend": "east", "port": "imap"}, "port must be from 1 to 65535, not 'imap'"),
        ({"backend": "east", "port": True}, "port must be"),
        ({"backend": "east", "port": "٣"}, "port must be"),
        ({"backend": "east", "host": "a b"}, "host must be a host's name"),
        ({"backend": "east", "host": "-a"}, "host must be a host's name"),
        ({"backend": "east", "host": "a:1:port=2"}, "host must be a host's name"),
        ({"backend": "east", "name": "bob\r\nX LOGOUT"}, "name must not hold control characters"),
        ({"backend": "east", "name": "bob\0"}, "name must not hold control characters"),
        ({"backend": "east", "name": "x" * (MAX_TEXT + 1)}, "name must be from 1 to 512 bytes long, not 513"),
        ({"backend": "east", "name": "\ud800"}, "name must be Unicode"),
        ({"backend": "east", "name": b"\xff"}, "name must be UTF-8"),
        ({"backend": "east", "name": 1.5}, "name must be a text, and 1.5 is none"),
        ({"backend": "east", "master": "root"}, "master goes with a password"),
        ({"backend": "east", "login": "guess"}, "login must be one of replay, master, none"),
        ({"backend": "east", "security": "maybe"}, "security must be one of starttls, tls, none"),
        ({"backend": "east", "later": "perhaps"}, "later must be true or false"),
        ({"backend": "east", "proven": True}, "no field 'proven'"),
        ({"backend": "east", "colour": "blue"}, "no field 'colour'; there are backend, host"),
        ({"backend": "east", "forward_a b": "x"}, "is no name to forward"),
        ({"backend": "east", "forward_a": "x\ty"}, "forward_a must not hold control characters"),
        ({"backend": "east", "forward_a": "x" * MAX_FORWARD}, "longer than 400 bytes"),
    ],
)
def test_nonsense_is_told_apart(answer, why):
    """What makes no sense is never a route; the message says which field, and what is wrong with it."""
    with pytest.raises(BadAnswer, match=why):
        ANSWERS.route(answer)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [nested(5000), {"a": nested(5000)}, 10**5000, "x" * 10**6, b"\xff" * 10**6],
    ids=["lists", "objects", "number", "text", "bytes"],
)
@pytest.mark.parametrize("field", FIELDS)
def test_what_nobody_can_read_is_nonsense_too(field, value):
    """Lists without end and endless numbers are one user's nonsense, and no failure of the source."""
    with pytest.raises(BadAnswer) as caught:
        ANSWERS.route({"backend": "east", field: value})
    assert len(str(caught.value)) < 400


def test_a_password_that_is_nonsense_is_not_shown():
    """The log gets no secret, whatever is wrong with it."""
    for password in ("s3cret\n", 1.25, ["s3cret"], "s3cret" * 100):
        with pytest.raises(BadAnswer) as caught:
            ANSWERS.route({"backend": "east", "password": password})
        assert "s3cret" not in str(caught.value)
        assert "1.25" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"refuse": "disabled"}, Reason.CONTACT_ADMIN),
        ({"refuse": "expired"}, Reason.EXPIRED),
        ({"refuse": "password"}, Reason.AUTHENTICATION_FAILED),
        ({"refuse": "forbidden"}, Reason.AUTHORIZATION_FAILED),
        ({"refuse": "has not paid"}, Reason.CONTACT_ADMIN),
        ({"later": True}, Reason.UNAVAILABLE),
        ({"later": "yes", "backend": "nowhere"}, Reason.UNAVAILABLE),
    ],
)
def test_a_source_can_refuse(fields, reason):
    """A source may say that a user must not log in, or not now, and why."""
    with pytest.raises(LoginRefused) as caught:
        ANSWERS.route(fields)
    assert caught.value.refusal.reason is reason


def test_an_answer_without_fields_is_none():
    """Nothing but nulls is what a database says of somebody it does not know."""
    assert ANSWERS.route({}) is None
    assert ANSWERS.route({"backend": None, "name": ""}) is None


def test_a_block_may_name_the_backend():
    """A source that only knows hosts has a block whose settings hold for them."""
    answers = Answers(["east"], "east")
    assert answers.route({"host": "h1"}) == Route("east", change=Change("h1"))
    assert answers.route({}) == Route("east")


def test_only_who_can_have_checked_a_password_says_so():
    """The field is one of those sources alone that get the password."""
    answers = Answers(["east"], proves=True)
    assert answers.route({"backend": "east", "proven": "true"}).proven
    assert not answers.route({"backend": "east"}).proven


VALUES = st.one_of(
    st.none(), st.text(), st.binary(), st.integers(), st.floats(), st.booleans(), st.lists(st.text())
)
NAMES = st.one_of(st.sampled_from([*FIELDS, "proven", "forward_x"]), st.text())


@given(st.dictionaries(NAMES, VALUES))
def test_any_answer_is_a_route_a_refusal_or_nonsense(answer):
    """Whatever a source says, nothing else comes of it, and no control character gets through."""
    try:
        route = Answers(["east"], "east", proves=True).route(answer)
    except (BadAnswer, LoginRefused):
        return
    assert route is not None
    assert route.backend == "east"
    texts = [route.name, route.master, route.change and route.change.host, *sum(route.forward, ())]
    assert all(text is None or text.isprintable() or ord(max(text)) > 127 for text in texts)
    assert not any(set(text or "") & {"\r", "\n", "\0", "\t"} for text in texts)
