"""The hash source: who lives where follows from names and weights, and little moves when those change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import execute
from twisted.internet.task import Clock
from zope.interface import verify

from mailroute import routers
from mailroute.events import Client, Lookup, Route
from mailroute.interfaces import IRouter
from mailroute.routers import BadOption, SourceContext
from mailroute.routers.hashing import MAX_WEIGHT

CLIENT = Client("session", None, None)
SHARDS = tuple(f"shard{number}" for number in range(8))
USERS = tuple(f"user{number}@example.org" for number in range(4000))


def made(**options: object) -> IRouter:
    context = SourceContext(Path(), frozenset(SHARDS), str.lower, Clock(), execute)
    return routers.source("hash").router(options, context)


def homes(backends: Sequence[str] | Mapping[str, float]) -> dict[str, str]:
    router = made(backends=list(backends) if isinstance(backends, tuple) else backends)
    return {user: home(router, user) for user in USERS}


def home(router: IRouter, user: str) -> str:
    route = router.route(Lookup(user, "imap", CLIENT))
    assert isinstance(route, Route)
    return route.backend


def test_everybody_has_one_home_wherever_it_is_asked() -> None:
    """Two mailroutes, and this one tomorrow, agree: not even the order of the backends counts."""
    verify.verifyObject(IRouter, made(backends=["shard0"]))
    assert homes(SHARDS) == homes(SHARDS[::-1]) == homes(dict.fromkeys(SHARDS, 3))
    # What a release of ours has said once, every later one has to say: mail lives there.
    router = made(backends=list(SHARDS))
    assert [home(router, user) for user in ("alice", "bob", "zoë@example.org")] == PINNED


PINNED = ["shard3", "shard6", "shard0"]


@pytest.mark.parametrize(
    "weights",
    [dict.fromkeys(SHARDS, 1), {"shard0": 1, "shard1": 2, "shard2": 5}, {"shard0": 0.5, "shard1": 1.5}],
)
def test_shares_are_as_the_weights(weights: dict[str, float]) -> None:
    """Each backend has its share of the users, within five standard deviations of a fair draw."""
    counted = Counter(homes(weights).values())
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = (len(USERS) * share * (1 - share)) ** 0.5
        assert abs(counted[name] - len(USERS) * share) < 5 * deviation


def test_a_backend_that_is_added_moves_only_its_share() -> None:
    """Whoever moves, moves to the new backend; taking it away again moves them back."""
    before, after = homes(SHARDS[:7]), homes(SHARDS)
    moved = {user for user in USERS if before[user] != after[user]}
    assert moved == {user for user in USERS if after[user] == SHARDS[7]}
    assert 0 < len(moved) < len(USERS) / 6


def test_a_weight_that_grows_takes_from_the_others_alone() -> None:
    """Whoever moves, moves to the backend that has got more weight."""
    before = homes({"shard0": 1, "shard1": 1, "shard2": 1})
    after = homes({"shard0": 1, "shard1": 1, "shard2": 2})
    moved = [user for user in USERS if before[user] != after[user]]
    assert moved
    assert {after[user] for user in moved} == {"shard2"}


def test_one_part_of_a_name_can_count() -> None:
    """With a match one person has one home, whatever is around the name; others are unknown."""
    router = made(backends=list(SHARDS), match=r"([^+@]*)(?:[+@].*)?")
    whole = made(backends=list(SHARDS))
    for user in ("alice", "bob", "carol"):
        expected = home(whole, user)
        assert home(router, f"{user}@example.org") == home(router, f"{user}+x@example.net") == expected
    assert router.route(Lookup("@example.org", "imap", CLIENT)) is None
    only_org = made(backends=list(SHARDS), match=r"(.*)@example\.org|(?:nobody)")
    assert only_org.route(Lookup("alice@example.net", "imap", CLIENT)) is None
    assert only_org.route(Lookup("nobody", "imap", CLIENT)) is None


def test_extreme_weights_still_draw() -> None:
    """The largest weight beside the smallest is no error, and takes nearly all."""
    counted = Counter(homes({"shard0": MAX_WEIGHT, "shard1": 5e-324}).values())
    assert counted == {"shard0": len(USERS)}


def test_it_says_what_it_does() -> None:
    """`mailroute check` shows who is spread over what."""
    assert str(made(backends=["shard1", "shard0"])) == "users are spread over shard1 (1), shard0 (1)"
    described = str(made(backends={"shard0": 0.5}, match="(a).*"))
    assert described == "users who match (a).* are spread over shard0 (0.5)"


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({}, "backends", "missing: write for example"),
        ({"backends": []}, "backends", "must name backends"),
        ({"backends": {}}, "backends", "must name backends"),
        ({"backends": "shard0"}, "backends", "must name backends"),
        ({"backends": ["shard0", 1]}, "backends", "each once"),
        ({"backends": ["shard0", "shard0"]}, "backends", "each once"),
        ({"backends": ["shard0", "shrad1"]}, "backends", r"no \[backend.shrad1\]; did you mean"),
        (
            {"backends": {"shard0": 0}},
            "backends",
            "weight of shard0 must be a number above 0 .* leave a backend",
        ),
        ({"backends": {"shard0": -1}}, "backends", "weight of shard0"),
        ({"backends": {"shard0": True}}, "backends", "not True"),
        ({"backends": {"shard0": "1"}}, "backends", "not '1'"),
        ({"backends": {"shard0": float("nan")}}, "backends", "not nan"),
        ({"backends": {"shard0": float("inf")}}, "backends", "not inf"),
        ({"backends": {"shard0": 10**400}}, "backends", "weight of shard0"),
        ({"backends": ["shard0"], "match": "("}, "match", "no regular expression"),
        ({"backends": ["shard0"], "match": "a.*"}, "match", "needs a group"),
        ({"backends": ["shard0"], "weights": {}}, "weights", "unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], key: str, message: str) -> None:
    """A block that could not do what it says names the key, the reason and the remedy."""
    with pytest.raises(BadOption, match=message) as bad:
        made(**options)
    assert bad.value.key == key
