"""Passwords' hashes: what a text in a file or a database says, and whether a password is the one.

A text begins with a scheme in braces, as Dovecot writes it, or with the
``$…$`` that says the same in crypt(3).  The work is done by OpenSSL (through
cryptography and hashlib) and by the system's libcrypt, all of which leave
Python's lock to others meanwhile.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hashlib
import hmac
import re
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from hashlib import blake2b
from secrets import token_bytes
from typing import Any

from attrs import frozen
from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from mailroute.authenticators.costs import (
    argon2_too_much,
    bcrypt_too_much,
    dear,
    rounds_too_many,
    yescrypt_too_much,
)
from mailroute.events import Credentials
from mailroute.proofs import SCRAM
from mailroute.wire.scram import StoredKeys, base_name, make_keys, proves

MAX_PASSWORD = 512
"""Bytes of a password that is looked at; a longer one is wrong.

libcrypt takes no more, and the time that SHA-crypt takes grows with the length
(CVE-2016-20013), which a stranger chooses.
"""

LOCKED = ("*", "!")
"""How the text begins for an account that nobody may log in to, as in ``/etc/shadow``."""

_BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})"
_UNPADDED = "(?:[A-Za-z0-9+/.]{4})*[A-Za-z0-9+/.]{2,4}"


SECRET = token_bytes(32)
"""What decides how users look whom nobody knows; workers, which are forks, have the same."""

_USUAL = 4096
"""Iterations of keys that are made up where there are no others (RFC 7677 section 4)."""


class BadHash(ValueError):
    """A text is no hash that can be checked here; the message does not repeat it."""


@frozen
class _Scheme:
    """A kind of hash: how its text looks, with a group for each thing that makes it slow, and its check."""

    pattern: re.Pattern[str]
    verify: Callable[[str, bytes], bool]
    usable: Callable[[], bool] = lambda: True
    too_much: Callable[[re.Match[str]], str] = lambda _: ""
    """Says what a hash would cost too much of; nothing if it will do."""


def check(text: str) -> str:
    """Return what decides how long it takes to check a password against this hash.

    :raises BadHash: nobody's password could be checked against it.
    """
    name, scheme, rest = _read(text)
    match = scheme.pattern.fullmatch(rest)
    if match is None:
        raise BadHash(f"what follows is no hash of the scheme {name}")
    if too_much := scheme.too_much(match):
        raise BadHash(dear(too_much))
    if not scheme.usable():
        raise BadHash(f"this system cannot check hashes of the scheme {name}")
    return " ".join([name, *(group or "" for group in match.groups())])


def verify(text: str, password: bytes) -> bool:
    """Tell whether it is the password; takes its time, for which a thread is the place.

    :param text: one that `check` takes.
    """
    if not 0 < len(password) <= MAX_PASSWORD or b"\0" in password:
        return False
    _, scheme, rest = _read(text)
    return scheme.verify(rest, password)


def stored_keys(text: str, mechanism: str) -> StoredKeys | None:
    """Return the keys of a SCRAM mechanism; None for a hash of another scheme.

    :param text: one that `check` takes.
    """
    name, _, rest = _read(text)
    if name != base_name(mechanism):
        return None
    iterations, *keys = rest.split(",")
    return StoredKeys(int(iterations), *map(base64.b64decode, keys))


def proven(text: str, shown: Credentials) -> bool:
    """Tell whether a client has shown in a SCRAM exchange that it knows the password.

    :param text: one that `check` takes.
    """
    keys = stored_keys(text, shown.mechanism)
    return keys is not None and proves(shown.mechanism, keys, shown.secret)


def why_wrong(text: str, shown: Credentials) -> str:
    """Say for the log why it is not right what a client has shown."""
    if shown.proof in SCRAM and stored_keys(text, shown.mechanism) is None:
        return f"the user has no keys for {base_name(shown.mechanism)}"
    return "wrong password"


def made_up(user: str, like: StoredKeys | None, secret: bytes) -> StoredKeys:
    """Return keys for a user who has none, always with the same salt.

    :param like: keys of somebody's, whose iterations and length of the salt they have; nothing else of these
        goes into them, for whoever is shown the salt could try passwords on that.
    :param secret: what decides how users look.
    """
    iterations, size = (_USUAL, 16) if like is None else (like.iterations, len(like.salt))
    salt, key = drawn(b"salt", user, secret), drawn(b"key", user, secret)
    return StoredKeys(iterations, salt[:size], key[:32], key[32:])


def drawn(what: bytes, user: str, secret: bytes) -> bytes:
    """Draw 64 bytes for a user: the same ones each time, and nobody can tell them beforehand."""
    return blake2b(what + b"\0" + user.encode("utf-8"), digest_size=64, key=secret).digest()


def _read(text: str) -> tuple[str, _Scheme, str]:
    """Return the scheme's name, the scheme and the rest."""
    if text.startswith("{"):
        name, brace, rest = text[1:].partition("}")
        name = name.upper()
        if not brace:
            raise BadHash("a scheme in braces has no end")
        if name != "CRYPT":
            name = _ALIASES.get(name, name)
            if name not in _SCHEMES:
                raise BadHash(f"an unknown scheme; known: {', '.join(sorted(_SCHEMES))}")
            return name, _SCHEMES[name], rest
        text = rest
    for beginning, name in _BEGINNINGS.items():
        if text.startswith(beginning):
            return name, _SCHEMES[name], text
    raise BadHash("neither a scheme in braces nor a hash: write {PLAIN} before a password as it is typed")


# --- crypt(3) ----------------------------------------------------------------


_CRYPT_DATA = 1 << 18
"""Bytes of a ``struct crypt_data``: 32 KiB in libxcrypt, 128 KiB in the glibc before that."""

_room = threading.local()


@cache
def _libcrypt() -> Any:
    """Return the C function; None where there is none."""
    for name in (ctypes.util.find_library("crypt"), "libcrypt.so.1", "libcrypt.so.2", None):
        try:
            function = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError, TypeError):
            continue
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        function.restype = ctypes.c_char_p
        return function
    return None


def _crypt(setting: bytes, password: bytes) -> bytes:
    """Hash a password; the result is none of a password's where it cannot be done."""
    function = _libcrypt()
    if function is None:
        return b"*0"
    if not hasattr(_room, "data"):
        _room.data = ctypes.create_string_buffer(_CRYPT_DATA)
    result = function(password, setting, _room.data)
    hashed: bytes = result or b"*0"
    ctypes.memset(_room.data, 0, _CRYPT_DATA)  # it holds the password
    return hashed


def _verify_crypt(text: str, password: bytes) -> bool:
    setting = text.encode("ascii")
    return hmac.compare_digest(_crypt(setting, password), setting)


@cache
def _crypts(setting: bytes) -> bool:
    """Tell whether the system's crypt(3) knows a kind of hash."""
    return _crypt(setting, b"x").startswith(setting)


def _crypt_scheme(pattern: str, example: bytes, too_much: Callable[[re.Match[str]], str]) -> _Scheme:
    return _Scheme(re.compile(pattern), _verify_crypt, partial(_crypts, example), too_much)


def _rounds(match: re.Match[str]) -> str:
    return rounds_too_many(match["number"])


# --- the others ---------------------------------------------------------------


def _verify_argon2(text: str, password: bytes) -> bool:
    try:
        Argon2id.verify_phc_encoded(password, text)
    except (InvalidKey, ValueError):
        return False
    return True


@cache
def _argon2() -> bool:
    try:
        Argon2id(salt=b"saltsalt", length=4, iterations=1, lanes=1, memory_cost=8)
    except UnsupportedAlgorithm:
        return False
    return True


def _verify_pbkdf2_dovecot(text: str, password: bytes) -> bool:
    """Dovecot's own form: the salt is used as it is written, the hash is SHA-1's in hexadecimal."""
    _, _, salt, rounds, stored = text.split("$")
    digest = bytes.fromhex(stored)
    made = hashlib.pbkdf2_hmac("sha1", password, salt.encode("ascii"), int(rounds), len(digest))
    return hmac.compare_digest(made, digest)


def _verify_pbkdf2_modular(text: str, password: bytes) -> bool:
    """The form of passlib and others: base64 without padding, in which a dot stands for the plus."""
    _, name, rounds, salt, stored = text.split("$")
    algorithm = name.removeprefix("pbkdf2").removeprefix("-") or "sha1"
    digest = _unpadded(stored)
    made = hashlib.pbkdf2_hmac(algorithm, password, _unpadded(salt), int(rounds), len(digest))
    return hmac.compare_digest(made, digest)


def _verify_pbkdf2(text: str, password: bytes) -> bool:
    modular = text.startswith("$pbkdf2")
    return (_verify_pbkdf2_modular if modular else _verify_pbkdf2_dovecot)(text, password)


def _pbkdf2_iterations(match: re.Match[str]) -> str:
    """Return what is too much; where a hash is longer than the algorithm's, each block has all of them."""
    if match["dovecots"]:
        return rounds_too_many(match["dovecots"])
    longest = {None: 20, "sha256": 32, "sha512": 64}[match["algorithm"]]
    digest = _unpadded(match[0].rpartition("$")[2])
    return rounds_too_many(match["iterations"], -(-len(digest) // longest))


def _unpadded(text: str) -> bytes:
    text = text.replace(".", "+")
    return base64.b64decode(text + "=" * (-len(text) % 4))


def _verify_scram(algorithm: str, text: str, password: bytes) -> bool:
    """Make the stored key of a password (RFC 5802 section 3) and compare it."""
    iterations, salt, stored, _ = text.split(",")
    made = make_keys(algorithm, password, base64.b64decode(salt), int(iterations))
    return hmac.compare_digest(made.stored_key, base64.b64decode(stored))


def _scram_scheme(algorithm: str) -> _Scheme:
    pattern = f"(?P<number>[1-9][0-9]{{0,8}}),{_BASE64},{_BASE64},{_BASE64}"
    return _Scheme(re.compile(pattern), partial(_verify_scram, algorithm), too_much=_rounds)


def _verify_plain(text: str, password: bytes) -> bool:
    return hmac.compare_digest(text.encode("utf-8"), password)


def _verify_plain_base64(text: str, password: bytes) -> bool:
    return hmac.compare_digest(base64.b64decode(text), password)


_SCHEMES: Mapping[str, _Scheme] = {
    "ARGON2ID": _Scheme(
        re.compile(
            rf"\$argon2id\$v=19\$(m=[0-9]{{1,8}},t=[0-9]{{1,4}},p=[0-9]{{1,3}})\${_UNPADDED}\${_UNPADDED}"
        ),
        _verify_argon2,
        _argon2,
        lambda match: argon2_too_much(match[1]),
    ),
    "BLF-CRYPT": _crypt_scheme(
        r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}",
        b"$2b$04$abcdefghijklmnopqrstuu",
        lambda match: bcrypt_too_much(match[1]),
    ),
    "SHA512-CRYPT": _crypt_scheme(
        r"\$6\$(?:rounds=(?P<number>[1-9][0-9]{0,8})\$)?[^$:]{1,16}\$[./A-Za-z0-9]{86}",
        b"$6$rounds=1000$salt",
        _rounds,
    ),
    "SHA256-CRYPT": _crypt_scheme(
        r"\$5\$(?:rounds=(?P<number>[1-9][0-9]{0,8})\$)?[^$:]{1,16}\$[./A-Za-z0-9]{43}",
        b"$5$rounds=1000$salt",
        _rounds,
    ),
    "YESCRYPT": _crypt_scheme(
        r"\$y\$([./A-Za-z0-9]+)\$[./A-Za-z0-9]{0,86}\$[./A-Za-z0-9]{43}",
        b"$y$j75$abcdefgh",
        lambda match: yescrypt_too_much(match[1]),
    ),
    "PBKDF2": _Scheme(
        re.compile(
            r"\$1\$[!-#%-~]{1,64}\$(?P<dovecots>[1-9][0-9]{0,8})\$(?:[0-9a-fA-F]{2}){20}"
            r"|\$pbkdf2(?:-(?P<algorithm>sha256|sha512))?\$(?P<iterations>[1-9][0-9]{0,8})"
            rf"\${_UNPADDED}\${_UNPADDED}"
        ),
        _verify_pbkdf2,
        too_much=_pbkdf2_iterations,
    ),
    "SCRAM-SHA-256": _scram_scheme("sha256"),
    "SCRAM-SHA-1": _scram_scheme("sha1"),
    "PLAIN": _Scheme(re.compile(r"[^\0]+"), _verify_plain),
    "PLAIN.B64": _Scheme(re.compile(_BASE64), _verify_plain_base64),
}
"""By the names that Dovecot has for them."""

_ALIASES = {"BCRYPT": "BLF-CRYPT", "PLAIN.BASE64": "PLAIN.B64"}

_BEGINNINGS = {
    "$argon2id$": "ARGON2ID",
    "$2a$": "BLF-CRYPT",
    "$2b$": "BLF-CRYPT",
    "$2y$": "BLF-CRYPT",
    "$6$": "SHA512-CRYPT",
    "$5$": "SHA256-CRYPT",
    "$y$": "YESCRYPT",
    "$pbkdf2": "PBKDF2",
}
"""How hashes begin that say themselves what they are."""
