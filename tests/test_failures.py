"""How long failed logins take."""

from __future__ import annotations

from mailroute.failures import RECENT, FailureTiming


def test_an_unknown_user_waits_as_long_as_a_backend_refuses():
    """An unknown name gets a duration that one backend has lately taken, always the same backend's."""
    timing = FailureTiming(0.0, ["east", "west"], choose=min)
    for _ in range(3):
        timing.refused("east", 1.5)
        timing.refused("west", 4.5)
    seen = {timing.unknown(f"user{number}") for number in range(50)}
    assert seen == {1.5, 4.5}
    assert len({timing.unknown("somebody") for _ in range(20)}) == 1


def test_every_refusal_takes_the_minimum():
    """Without anything to go by, known and unknown users wait for the minimum."""
    timing = FailureTiming(2.0, ["east"])
    assert timing.minimum == timing.unknown("anybody") == 2.0
    timing.refused("east", 0.1)
    assert timing.unknown("anybody") == 2.0
    timing.refused("east", 3.0)
    assert {timing.unknown("anybody") for _ in range(200)} == {2.0, 3.0}


def test_memory_is_bounded():
    """Only the latest refusals count."""
    timing = FailureTiming(0.0, ["east"], choose=max)
    timing.refused("east", 100.0)
    for _ in range(RECENT):
        timing.refused("east", 1.0)
    assert timing.unknown("anybody") == 1.0


def test_a_backend_that_has_refused_nobody_is_like_the_others():
    """Until a backend has refused somebody, its share of the unknown names waits as elsewhere."""
    timing = FailureTiming(0.0, ["east", "west"], choose=min)
    timing.refused("west", 1.5)
    assert {timing.unknown(f"user{number}") for number in range(50)} == {1.5}


def test_an_unknown_user_gets_the_latest_error_document():
    """An OAuth client of an unknown user is told what a known one was told last."""
    timing = FailureTiming(0.0, ["east"])
    assert timing.challenge(None) == b'{"status":"invalid_token"}'
    assert timing.challenge(b'{"status":"401"}') == b'{"status":"401"}'
    assert timing.challenge(None) == b'{"status":"401"}'


def test_processes_with_one_salt_agree():
    """An unknown name has one backend's durations, whichever worker is asked; without a salt, who knows."""

    def backends(**salt):
        timing = FailureTiming(0.0, ["east", "west"], choose=min, **salt)
        timing.refused("east", 1.5)
        timing.refused("west", 4.5)
        return [timing.unknown(f"user{number}") for number in range(100)]

    assert backends(salt=b"salt") == backends(salt=b"salt") != backends(salt=b"another")
    assert backends() != backends()
