"""What a password's hash may cost to be checked: what is far beyond that is a mistake, or somebody's malice.

A number too many in a database or a file would hold a thread for hours, and
nobody can take the work back once it has begun.  The bounds are generous: what
a fast core does in some ten seconds, where half a second is much for a login.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_ROUNDS = 10_000_000
"""Rounds of SHA-crypt, and iterations of PBKDF2 and of SCRAM's keys for each block: with SHA-512 some 8 s,
reckoned from what 100 000 take.  The usual are 5000 and some hundred thousand."""

MAX_BCRYPT = 17
"""The logarithm of bcrypt's rounds: some 7 s, reckoned from a cost of 10; each step is twice as much.
The usual is 10 or 12."""

MAX_MEMORY = 2 << 20
"""KiB of memory of Argon2 and yescrypt: 2 GiB, the first choice of RFC 9106 section 4, and the most that it
speaks of.  The usual is 64 MiB and less."""

MAX_FILLED = 8 << 20
"""KiB that Argon2 or yescrypt may fill in all passes over its memory: some 10 s, reckoned from less."""

_ITOA64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def rounds_too_many(rounds: str | None, blocks: int = 1) -> str:
    """Return what is too much in rounds or iterations, for each of so many blocks; nothing if they will do.

    :param rounds: a number, None for the usual ones.
    """
    if rounds is None or int(rounds) * blocks <= MAX_ROUNDS:
        return ""
    return f"more than {MAX_ROUNDS} rounds"


def bcrypt_too_much(cost: str) -> str:
    """Return what is too much in bcrypt's cost; nothing if it will do."""
    return f"a cost of more than {MAX_BCRYPT}" if int(cost) > MAX_BCRYPT else ""


def argon2_too_much(parameters: str) -> str:
    """Return what is too much in ``m=…,t=…,p=…`` (in KiB, passes and lanes); nothing if they will do."""
    memory, passes, _ = (int(each.partition("=")[2]) for each in parameters.split(","))
    return _filled_too_much(memory, passes)


def yescrypt_too_much(parameters: str) -> str:
    """Return what is too much in yescrypt's parameters, such as ``j9T``; nothing if they will do.

    They are numbers in a form of its own: flavour, logarithm of the rows, size of a row, and where there are
    others a mask that says which of parallelism, time, upgrades, and size of a ROM follow.
    """
    numbers = _yescrypt_numbers(parameters)
    try:
        _, logarithm, size = next(numbers), next(numbers) + 1, next(numbers) + 1
        others = next(numbers, -1) + 1
        parallel = next(numbers) + 2 if others & 1 else 1
        time = next(numbers) + 1 if others & 2 else 0
    except StopIteration:
        return "parameters that cannot be read"
    # The logarithm's bound is there to keep the number small.
    memory = (128 * size << min(logarithm, 64)) >> 10
    # A pass takes twice as long as one of Argon2.
    return _filled_too_much(memory, 2 * (time + 1) * parallel)


def _yescrypt_numbers(parameters: str) -> Iterator[int]:
    """Yield numbers from 0: up to 47 they have one character; the first one says how many there are."""
    characters = iter(parameters)
    for character in characters:
        first = _ITOA64.index(character)
        start, end, more, number = 0, 47, 0, 0
        while first > end:
            number += (end + 1 - start) << (6 * more)
            start, end, more = end + 1, end + 1 + (62 - end) // 2, more + 1
        number += (first - start) << (6 * more)
        for place in reversed(range(more)):
            following = next(characters, None)
            if following is None:
                return
            number += _ITOA64.index(following) << (6 * place)
        yield number


def _filled_too_much(memory: int, passes: int) -> str:
    if memory > MAX_MEMORY:
        return f"more than {MAX_MEMORY} KiB of memory"
    return f"more than {MAX_FILLED} KiB filled in all passes" if memory * passes > MAX_FILLED else ""


def dear(too_much: str) -> str:
    """Return what to tell the operator of a hash that wants too much."""
    return f"it wants {too_much}, which would take too long: have the password hashed with less"
