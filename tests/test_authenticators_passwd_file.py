"""The file with users and hashes: what may stand there, whose password is right, and how long that takes."""

from __future__ import annotations

import base64
import ctypes
import itertools
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from authenticating import ScramClient, Thread, answer, lookup, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.programs import program
from twisted.application.service import IService
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mailroute.authenticators import AuthenticatorChain, Link, hashes, source
from mailroute.authenticators.chain import IDecoy
from mailroute.computing import MAX_WAIT, MAX_WAITING, Computing
from mailroute.events import LoginRefused, Reason
from mailroute.interfaces import IKeyholder
from mailroute.names import UserNames
from mailroute.proofs import SCRAM, Proof, proof_of
from mailroute.sources import BadOption, SourceContext
from mailroute.sources.users_file import POLL, SETTLE
from mailroute.wire.scram import ScramExchange, make_keys

PASSWORD = "pä ss:wörd"


def context(folder: Path, **changes: Any) -> SourceContext:
    return SourceContext(
        folder,
        frozenset(),
        UserNames(default_domain="example.org").normalise,
        changes.pop("clock", Clock()),
        changes.pop("in_thread", Thread()),
        **changes,
    )


def made(folder: Path, text: str, **changes: Any) -> Any:
    (folder / "passwd").write_text(text, encoding="utf-8")
    return source("passwd-file").authenticator({"file": "passwd"}, context(folder, **changes))


# --- hashes that other programs have made ---------------------------------------------


def doveadm(scheme: str, password: str = PASSWORD) -> str:
    command = [program("doveadm", "dovecot-core"), "pw", "-s", scheme, "-p", password]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


SCHEMES = ["ARGON2ID", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "PBKDF2", "SCRAM-SHA-256", "SCRAM-SHA-1"]


@pytest.mark.integration
@pytest.mark.parametrize("scheme", [*SCHEMES, "PLAIN", "CRYPT"])
def test_a_hash_of_dovecots_is_checked(scheme: str) -> None:
    """The right password passes and no other does, for each scheme that `doveadm pw` makes."""
    stored = doveadm(scheme)
    assert hashes.check(stored).split()[0] == ("BLF-CRYPT" if scheme == "CRYPT" else scheme)
    assert hashes.verify(stored, PASSWORD.encode())
    for wrong in (b"", b"x", PASSWORD.encode()[:-1], PASSWORD.encode() + b"x", PASSWORD.upper().encode()):
        assert not hashes.verify(stored, wrong)


@pytest.mark.integration
@pytest.mark.parametrize("option", ["-6", "-5"])
def test_a_hash_of_openssls_is_checked(option: str) -> None:
    """What `openssl passwd` makes needs no scheme in braces: it says itself what it is."""
    command = [program("openssl", "openssl"), "passwd", option, PASSWORD]
    stored = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    hashes.check(stored)
    assert hashes.verify(stored, PASSWORD.encode())
    assert hashes.verify(f"{{CRYPT}}{stored}", PASSWORD.encode())
    assert not hashes.verify(stored, b"x")


@pytest.mark.integration
@pytest.mark.parametrize("method", ["yescrypt", "bcrypt", "sha512crypt"])
def test_a_hash_of_mkpasswds_is_checked(method: str) -> None:
    """What Debian's `mkpasswd` makes, as it stands in /etc/shadow, is taken."""
    command = [program("mkpasswd", "whois"), "-m", method, PASSWORD]
    stored = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    hashes.check(stored)
    assert hashes.verify(stored, PASSWORD.encode())
    assert not hashes.verify(stored, b"x")


@pytest.mark.parametrize(
    ("stored", "password"),
    [
        # RFC 7677 section 3, RFC 5802 section 5: the users' password is "pencil".
        (
            "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,"
            "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
            b"pencil",
        ),
        (
            "{SCRAM-SHA-1}4096,QSXCR+Q6sek8bf92,6dlGYMOdZcOPutkcNY8U2g7vK9Y=,D+CSWLOshSulAsxiupA+qs2/fTE=",
            b"pencil",
        ),
        # hashlib's documentation of pbkdf2_hmac, in the form of passlib.
        (
            "$pbkdf2-sha256$6400$.6UI/S.nXIk8jcbdHx3Fhg$98jZicV16ODfEsEZeYPGHU3kbrUrvUEXOPimVSQDD44",
            b"password",
        ),
        ("{PLAIN}a{b}c$d", b"a{b}c$d"),
        ("{plain.b64}YTpi", b"a:b"),
    ],
)
def test_a_hash_from_elsewhere_is_checked(stored: str, password: bytes) -> None:
    """The examples of the RFCs and of other programs' documentation come out right."""
    hashes.check(stored)
    assert hashes.verify(stored, password)
    assert not hashes.verify(stored, password + b"x")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("secret", "write {PLAIN} before a password as it is typed"),
        ("{PLAIN", "no end"),
        ("{PLAIN}", "no hash of the scheme PLAIN"),
        ("{MD5}x", "unknown scheme; known: ARGON2ID, "),
        ("{CRYPT}ab1234567890.", "neither a scheme"),
        ("{SHA512-CRYPT}$6$abc$short", "no hash of the scheme SHA512-CRYPT"),
        ("{SCRAM-SHA-1}4096,QSX,abc,def", "no hash of the scheme SCRAM-SHA-1"),
        ("{SCRAM-SHA-1}0,QSXC,QSXC,QSXC", "no hash of the scheme SCRAM-SHA-1"),
        ("{PBKDF2}$1$salt$0$" + "00" * 20, "no hash of the scheme PBKDF2"),
        ("{BCRYPT}$2y$99$" + "a" * 53, "no hash of the scheme BLF-CRYPT"),
    ],
)
def test_what_is_no_hash_is_told(stored: str, message: str) -> None:
    """A text against which no password could be checked is refused when it is read, and not repeated."""
    with pytest.raises(hashes.BadHash, match=message) as error:
        hashes.check(stored)
    assert stored not in str(error.value)


B64 = "a" * 86
BEYOND = {
    "sha512-crypt": f"$6$rounds=999999999$saltsalt${'a' * 86}",
    "sha256-crypt": f"$5$rounds=10000001$saltsalt${'a' * 43}",
    "bcrypt": f"$2b$31${'a' * 53}",
    "bcrypt just above": f"$2y$18${'a' * 53}",
    "pbkdf2 of dovecot": "{PBKDF2}$1$salt$999999999$" + "00" * 20,
    "pbkdf2 of passlib": f"$pbkdf2-sha512$99999999$saltsalt${B64}",
    "pbkdf2 of many blocks": f"$pbkdf2$100000$saltsalt${'abcd' * 1000}",
    "argon2 memory": "$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ",
    "argon2 passes": "$argon2id$v=19$m=65536,t=9999,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ",
    "yescrypt memory": f"$y$jOT$saltsalt${'a' * 43}",
    "yescrypt time": f"$y$jDT/V$saltsalt${'a' * 43}",
    "yescrypt lanes": f"$y$jDT.V$saltsalt${'a' * 43}",
    "yescrypt nonsense": f"$y$j9$saltsalt${'a' * 43}",
    "scram": "{SCRAM-SHA-256}999999999,QSXC,QSXC,QSXC",
}

DEAREST = {
    "sha512-crypt": f"$6$rounds=10000000$saltsalt${'a' * 86}",
    "bcrypt": f"$2b$17${'a' * 53}",
    "pbkdf2 of dovecot": "{PBKDF2}$1$salt$10000000$" + "00" * 20,
    "pbkdf2 of passlib": f"$pbkdf2-sha512$10000000$saltsalt${B64}",
    "argon2 of RFC 9106": "$argon2id$v=19$m=2097152,t=1,p=4$c2FsdHNhbHQ$c2FsdHNhbHQ",
    "argon2 passes": "$argon2id$v=19$m=65536,t=128,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ",
    "yescrypt": f"$y$jFT$saltsalt${'a' * 43}",
    "yescrypt time": f"$y$j9T/.$saltsalt${'a' * 43}",
    "scram": "{SCRAM-SHA-256}10000000,QSXC,QSXC,QSXC",
}


@pytest.mark.parametrize("kind", BEYOND)
def test_a_hash_costs_no_hours(kind: str) -> None:
    """One that would take a thread for hours, or its memory, is refused before it does, with what to do."""
    with pytest.raises(
        hashes.BadHash, match="would take too long: have the password hashed with less"
    ) as error:
        hashes.check(BEYOND[kind])
    assert "salt" not in str(error.value)


@pytest.mark.parametrize("kind", DEAREST)
def test_a_dear_hash_is_taken(kind: str) -> None:
    """The bounds are generous: what takes seconds is the operator's own affair."""
    hashes.check(DEAREST[kind])


@pytest.mark.parametrize("cost", range(1, 12))
def test_yescrypts_costs_are_read_as_libcrypt_means_them(cost: int) -> None:
    """Whatever cost crypt(3) can make a setting of, its hash is taken."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt_gensalt.restype = ctypes.c_char_p
    library.crypt_gensalt.argtypes = (ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int)
    setting = library.crypt_gensalt(b"$y$", cost, b"a" * 16, 16).decode()
    assert hashes.check(f"{setting}${'a' * 43}").split() == ["YESCRYPT", setting.split("$")[2]]


def test_a_file_names_the_line_of_a_hash_that_costs_too_much(tmp_path: Path) -> None:
    """Whoever writes it there is told where, before anybody logs in."""
    with pytest.raises(
        BadOption, match=r"passwd:2: the password of bob@example\.org: it wants more"
    ) as error:
        made(tmp_path, f"alice:{{PLAIN}}x\nbob:{BEYOND['sha512-crypt']}\n")
    assert "aaaa" not in str(error.value)


@settings(max_examples=300)
@given(
    st.text()
    | st.sampled_from(["{SCRAM-SHA-1}", "$6$", "{PLAIN.B64}"]).flatmap(
        lambda start: st.text("ab/+=,$.\n").map(lambda rest: start + rest)
    ),
    st.binary(max_size=20),
)
def test_whatever_check_takes_verify_takes(stored: str, password: bytes) -> None:
    """No text makes the check of a password break once it has been taken."""
    try:
        hashes.check(stored)
    except hashes.BadHash:
        return
    assert hashes.verify(stored, password) in (True, False)


def test_a_long_password_costs_nothing() -> None:
    """Some hashes take the longer the longer the password is, which a stranger chooses: it has a bound."""
    stored = "{PLAIN}" + "x" * (hashes.MAX_PASSWORD + 1)
    assert not hashes.verify(stored, b"x" * (hashes.MAX_PASSWORD + 1))
    assert hashes.verify(stored[:-1], b"x" * hashes.MAX_PASSWORD)


def test_a_nul_does_not_end_a_password() -> None:
    """What C would take for the end of a password makes it a wrong one."""
    stored = "$5$rounds=1000$salt$"
    stored = hashes._crypt(stored.encode(), b"x").decode()
    assert hashes.verify(stored, b"x")
    assert not hashes.verify(stored, b"x\0y")


# --- the file ---------------------------------------------------------------------------


def test_a_line_is_a_user(tmp_path: Path) -> None:
    """The password of a line opens the user's account, and no other password; who has no line is unknown."""
    found = made(tmp_path, "# users\n\nAlice@EXAMPLE.org:{PLAIN}wonderland\nbob:{PLAIN}builder:::::: \r\n")
    verifyObject(IDecoy, found)
    verifyObject(IService, found)
    assert found.proofs == {Proof.PASSWORD, *SCRAM}
    assert answer(found.authenticate(lookup("Alice@example.org", b"wonderland"))) == "Alice@example.org"
    assert answer(found.authenticate(lookup("bob@example.org", b"builder"))) == "bob@example.org"
    no = refusal(found.authenticate(lookup("bob@example.org", b"wonderland")))
    assert no.reason is Reason.AUTHENTICATION_FAILED
    assert answer(found.authenticate(lookup("carol@example.org", b"x"))) is None
    assert str(found) == f"passwords are checked by {tmp_path}/passwd, which has 2 users now"


@pytest.mark.parametrize("stored", ["*", "!", "!{PLAIN}secret", "!*"])
def test_a_locked_account_lets_nobody_in(tmp_path: Path, stored: str) -> None:
    """As in /etc/shadow, an asterisk or an exclamation mark is nobody's password, and the user is known."""
    thread = Thread()
    found = made(tmp_path, f"bob:{stored}\neve:{{PLAIN}}x\n", compute=thread)
    for password in (b"*", b"!", b"secret", b"x"):
        no = refusal(found.authenticate(lookup("bob@example.org", password)))
        assert no.reason is Reason.AUTHENTICATION_FAILED
    assert thread.calls == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bob", "a line is name:hash"),
        (":{PLAIN}x", "a line is name:hash"),
        ("bob:", "bob@example.org has no password: write"),
        ("bob:secret", "the password of bob@example.org: neither a scheme in braces nor a hash"),
        (
            "bob:{PLAIN}x\nBob@EXAMPLE.ORG:{PLAIN}y\nbob@example.org:{PLAIN}z",
            "bob@example.org is listed twice",
        ),
        ("bob:{PLAIN}x\x07", "a control character"),
        ("bob:{PLAIN}x::::::userdb_quota=1 nologin", 'the extra field "nologin" would do nothing here'),
        ("bob:{PLAIN}x::::::allow_nets=10.0.0.0/8", 'the extra field "allow_nets" would do nothing here'),
    ],
)
def test_a_bad_line_is_told(tmp_path: Path, line: str, message: str) -> None:
    """A line that cannot be meant so is an error, with file and line, and the password is not repeated."""
    with pytest.raises(BadOption, match=r"passwd:\d: ") as error:
        made(tmp_path, line)
    assert message in error.value.message
    assert "secret" not in error.value.message


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The key, the path and the reason are in the message."""
    with pytest.raises(BadOption, match=r"file: cannot read .*/nowhere: No such file"):
        source("passwd-file").authenticator({"file": "nowhere"}, context(tmp_path))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """A password that is changed in the file is the right one a few seconds later."""
    clock = Clock()
    found = made(tmp_path, "bob:{PLAIN}old\n", clock=clock)
    found.startService()
    clock.pump([POLL, SETTLE])
    (tmp_path / "passwd").write_text("bob:{PLAIN}newer\n")
    clock.pump([POLL, SETTLE])
    assert answer(found.authenticate(lookup("bob@example.org", b"newer"))) == "bob@example.org"
    refusal(found.authenticate(lookup("bob@example.org", b"old")))
    found.stopService()
    assert not clock.getDelayedCalls()


# --- stored keys ------------------------------------------------------------------------------


def stored(password: str, salt: bytes = b"saltsalt", iterations: int = 10, algorithm: str = "sha256") -> str:
    keys = make_keys(algorithm, password.encode(), salt, iterations)
    scheme = {"sha256": "SCRAM-SHA-256", "sha1": "SCRAM-SHA-1"}[algorithm]
    parts = [base64.b64encode(each).decode() for each in keys[1:]]
    return f"{{{scheme}}}{iterations},{','.join(parts)}"


def scram(user: str, secret: bytes = b"", name: str = "SCRAM-SHA-256") -> Any:
    return lookup(user, secret, proof_of(name), name)


LINES = {
    "keys": f"bob:{stored('pencil')}\n",
    "older keys": f"bob:{stored('pencil', algorithm='sha1')}\n",
    "a locked account": f"bob:{stored('pencil')}\neve:*\n",
    "other hashes": "bob:{PLAIN}pencil\n",
    "both": f"bob:{stored('pencil')}\neve:{{PLAIN}}x\n",
    "both kinds of keys": f"bob:{stored('pencil')}\neve:{stored('x', algorithm='sha1')}\n",
    "nobody": "",
}

OFFERED = {
    "keys": {Proof.PASSWORD, Proof.SCRAM_SHA_256},
    "older keys": {Proof.PASSWORD, Proof.SCRAM_SHA_1},
    "a locked account": {Proof.PASSWORD, Proof.SCRAM_SHA_256},
}


@pytest.mark.parametrize("what", LINES)
def test_scram_is_offered_where_all_have_keys(tmp_path: Path, what: str) -> None:
    """A client that prefers SCRAM must not fail because its user has another hash."""
    found = made(tmp_path, LINES[what])
    verifyObject(IKeyholder, found)
    assert found.offers == OFFERED.get(what, {Proof.PASSWORD})
    chain = AuthenticatorChain([Link("f", found)])
    assert chain.offers == found.offers
    memory = source("checker").authenticator({"checker": "memory:a:b"}, context(tmp_path))
    assert AuthenticatorChain([Link("f", found), Link("c", memory)]).offers == {Proof.PASSWORD}


def test_keys_open_an_account_by_password_or_by_proof(tmp_path: Path) -> None:
    """The stored keys of a user do for its password as it is, and for a client that proves to know it."""
    found = made(tmp_path, f"bob@example.org:{stored('pencil')}\n")
    assert answer(found.authenticate(lookup("bob@example.org", b"pencil"))) == "bob@example.org"
    keys = answer(found.keys(scram("bob@example.org")))
    assert keys == make_keys("sha256", b"pencil", b"saltsalt", 10)
    for password, right in ((b"pencil", True), (b"pen", False)):
        client, exchange = ScramClient("SCRAM-SHA-256", password), ScramExchange("SCRAM-SHA-256", b"x", None)
        exchange.respond(base64.b64encode(client.first()))
        exchange.take(keys)
        final = client.final(base64.b64decode(exchange.prompt()))
        shown = exchange.respond(base64.b64encode(final)) or exchange.respond(b"")
        asked = found.authenticate(scram("bob@example.org", shown.secret))
        if right:
            assert answer(asked) == "bob@example.org"
        else:
            assert refusal(asked).reason is Reason.AUTHENTICATION_FAILED


@pytest.mark.parametrize("line", ["bob@example.org:{PLAIN}pencil", "bob@example.org:*", ""])
def test_who_has_no_keys_gets_some_that_fit_nothing(tmp_path: Path, line: str) -> None:
    """A user with another hash, a locked one and an unknown one are given keys, and never let in by them."""
    found = made(tmp_path, f"{line}\neve@example.org:{stored('x', b'123456789012', 20)}\n")
    asked = AuthenticatorChain([Link("f", found)])
    keys = answer(asked.keys(scram("bob@example.org")))
    assert (keys.iterations, len(keys.salt), len(keys.server_key)) == (20, 12, 32)
    assert keys != make_keys("sha256", b"pencil", keys.salt, 20)
    no = refusal(asked.authenticate(scram("bob@example.org", b"AAAA,x")))
    assert no.reason is Reason.AUTHENTICATION_FAILED
    if "PLAIN" in line:
        assert no.detail.startswith("the user has no keys for SCRAM-SHA-256")


def test_made_up_keys_stay(tmp_path: Path) -> None:
    """With a secret of the operator's, a user who is unknown has the same salt after a restart."""
    (tmp_path / "passwd").write_text(
        f"eve@example.org:{stored('x')}\nzoe@example.org:{stored('y', iterations=20)}\n"
    )
    seen = []
    for number, said in enumerate(["one", "one", "another"]):
        (tmp_path / "secret").write_text(f"{said}\n")
        options = {"file": "passwd", "secret_file": "secret"}
        again = source("passwd-file").authenticator(options, context(tmp_path))
        seen.append([again.made_up(scram(f"user{n}")) for n in range(20)])
        assert len({keys.salt for keys in seen[number]}) == 20
    assert seen[0] == seen[1]
    assert not {keys.salt for keys in seen[0]} & {keys.salt for keys in seen[2]}
    assert {keys.iterations for keys in seen[0]} == {10, 20}


def test_made_up_keys_tell_nothing_of_anybody(tmp_path: Path) -> None:
    """What an unknown user is shown does not depend on anybody's password: it could be tried on it."""
    (tmp_path / "secret").write_text("one\n")
    seen = set()
    for password in ("x", "y"):
        (tmp_path / "passwd").write_text(f"eve@example.org:{stored(password)}\n")
        options = {"file": "passwd", "secret_file": "secret"}
        found = source("passwd-file").authenticator(options, context(tmp_path))
        seen.add(found.made_up(scram("nobody")))
    assert len(seen) == 1


def test_a_secret_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The key, the file and the reason are in the message."""
    (tmp_path / "passwd").write_text("")
    options = {"file": "passwd", "secret_file": "nowhere"}
    with pytest.raises(BadOption, match=r"secret_file: cannot read .*nowhere"):
        source("passwd-file").authenticator(options, context(tmp_path))


# --- time ---------------------------------------------------------------------------------


def test_an_unknown_user_costs_a_hash(tmp_path: Path) -> None:
    """To pretend is to check the password against one of the kinds of hashes that the file has."""
    thread = Thread()
    found = made(tmp_path, "bob:{PLAIN}x\n", compute=thread)
    assert answer(found.pretend(lookup("eve", b"x"))) is None
    assert thread.calls == 1


def test_one_unknown_name_always_costs_the_same(tmp_path: Path) -> None:
    """Whoever comes into the file or leaves it, an unknown name keeps its kind of hash."""
    kinds = ["$5$rounds=1000$aa$" + "a" * 43, "$5$rounds=2000$aa$" + "a" * 43, "$6$aa$" + "a" * 86]
    found = made(tmp_path, "".join(f"u{n}:{stored}\n" for n, stored in enumerate(kinds)))
    before = {name: hashes.check(found._decoy(name)) for name in map(str, range(50))}
    assert len(set(before.values())) == 3
    again = made(tmp_path, "".join(f"u{n}:{stored}\n" for n, stored in enumerate([kinds[1], *kinds, *kinds])))
    assert {name: hashes.check(again._decoy(name)) for name in before} == before


def test_an_empty_file_knows_nobody(tmp_path: Path) -> None:
    """A file without users has nothing to pretend with, and does no harm."""
    found = made(tmp_path, "")
    assert answer(found.authenticate(lookup("bob", b"x"))) is None
    assert answer(found.pretend(lookup("bob", b"x"))) is None


SLOW = "$6$rounds=400000$saltsalt$" + "a" * 86


@pytest_twisted.ensureDeferred
async def test_a_slow_hash_holds_nobody_up(tmp_path: Path) -> None:
    """While hashes of a quarter of a second each are computed, the reactor goes on as if nothing was."""
    from twisted.internet import reactor

    found = made(tmp_path, f"bob:{SLOW}\n", compute=Computing(reactor))
    beats: list[float] = []
    heart = task.LoopingCall(lambda: beats.append(time.monotonic()))
    heart.start(0.005)
    began = time.monotonic()
    asked = [found.pretend(lookup(f"user{n}", b"x")) for n in range(4)]
    await gatherResults([Deferred.fromCoroutine(each) for each in asked])
    took = time.monotonic() - began
    heart.stop()
    longest = max(later - earlier for earlier, later in itertools.pairwise(beats))
    assert took > 0.2
    assert longest < took / 4


@pytest_twisted.ensureDeferred
async def test_hashes_that_wait_are_bounded_and_can_be_given_up() -> None:
    """Beyond the bound a login is told to come again; a client that leaves takes its hash out of the row."""
    from twisted.internet import reactor

    ran: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.001)
        ran.append(number)

    compute = Computing(reactor, threads=1)
    waiting = [compute(lambda number=number: slow(number)) for number in range(MAX_WAITING)]
    with pytest.raises(LoginRefused) as error:
        await compute(lambda: None)
    assert error.value.refusal.reason is Reason.UNAVAILABLE
    for each in waiting[10:]:
        each.addErrback(lambda failure: failure.trap(CancelledError) and None)
        each.cancel()
    await gatherResults(waiting)
    await compute(lambda: None)
    assert len(ran) <= 20
    with pytest.raises(ZeroDivisionError):
        await compute(lambda: 1 / 0)


class Held:
    """Computations that take as long as the test says, one at a time."""

    def __init__(self) -> None:
        from twisted.internet import reactor

        self.now = 0.0
        self.ran: list[int] = []
        self.turn = threading.Semaphore(0)
        self.compute = Computing(reactor, threads=1, now=lambda: self.now)

    def ask(self, number: int, takes: float = 0.0) -> Deferred[None]:
        def work() -> None:
            self.turn.acquire(timeout=30)
            self.now += takes
            self.ran.append(number)

        return self.compute(work)


@pytest_twisted.ensureDeferred
async def test_the_row_of_hashes_is_bounded_in_seconds() -> None:
    """With dear hashes it is short: who would wait for longer than a login can is told so at once."""
    held = Held()
    first = held.ask(0, takes=4.0)
    held.turn.release()
    await first
    waiting = [held.ask(number, takes=4.0) for number in range(1, 4)]
    with pytest.raises(LoginRefused) as error:
        await held.ask(4)
    assert error.value.refusal.reason is Reason.UNAVAILABLE
    held.turn.release()
    await waiting[0]
    waiting.append(held.ask(5))
    held.turn.release(3)
    await gatherResults(waiting[1:], consumeErrors=True)
    assert held.ran == [0, 1, 2, 3, 5]
    again = held.ask(6)  # nothing is before it: however long the others took
    held.turn.release()
    await again


@pytest_twisted.ensureDeferred
async def test_a_hash_that_has_waited_too_long_is_not_begun() -> None:
    """Its client has hardly time left: whoever comes later is not held up by it."""
    held = Held()
    first = held.ask(0, takes=MAX_WAIT + 1)
    late = held.ask(1)
    held.turn.release(2)
    await first
    with pytest.raises(LoginRefused) as error:
        await late
    assert error.value.refusal.reason is Reason.UNAVAILABLE
    assert held.ran == [0]
    held.turn.release()
    await held.ask(2)
    assert held.ran == [0, 2]


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_costs_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives up the login while its hash waits spares it, through the whole chain."""
    held = Held()
    checked: list[bytes] = []
    monkeypatch.setattr(hashes, "verify", lambda _, password: checked.append(password) or True)
    file = made(tmp_path, f"bob:{SLOW}\n", compute=held.compute)
    chain = AuthenticatorChain([Link("passwd", file)])
    busy = held.ask(0)
    gone = chain.authenticate(lookup("bob@example.org", b"gone"))
    stays = chain.authenticate(lookup("bob@example.org", b"stays"))
    gone.addErrback(lambda failure: failure.trap(CancelledError) and None)
    gone.cancel()
    held.turn.release()
    await busy
    assert await stays == "bob@example.org"
    assert checked == [b"stays"]
