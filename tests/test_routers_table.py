"""The table of users: what a file may say, and what happens when it changes."""

from __future__ import annotations

import itertools
import os
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from twisted.application.service import IService
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from zope.interface import verify

from mailroute.events import Client, Lookup, Route
from mailroute.interfaces import IRouter
from mailroute.names import UserNames
from mailroute.routers import BadOption, Copies, SourceContext, source
from mailroute.routers.table import TableRouter
from mailroute.sources import users_file
from mailroute.sources.users_file import POLL, SETTLE

CLIENT = Client("session", None, None)


@define
class Rig:
    """A table's file, the router that reads it, a clock, and what was logged."""

    path: Path
    clock: Clock
    in_thread: Callable[..., Deferred[Any]] = execute
    router: Any = None
    copies: Copies = field(factory=Copies)

    def write(self, text: str) -> None:
        self.path.write_text(text, encoding="utf-8")

    def load(self, text: str | None = None) -> None:
        if text is not None:
            self.write(text)
        context = SourceContext(
            folder=self.path.parent,
            backends=frozenset({"east", "west"}),
            normalise=UserNames(lowercase_local_part=True, default_domain="example.org").normalise,
            clock=self.clock,
            in_thread=lambda function: self.in_thread(function),
            copies=self.copies,
        )
        self.router = source("table").router({"file": self.path.name}, context)

    def start(self, text: str) -> None:
        """Load and start, and let the second reading of a young file go by."""
        self.load(text)
        self.router.startService()
        self.poll()

    def ask(self, user: str) -> Route | None:
        answer = self.router.route(Lookup(user, "imap", CLIENT))
        assert not isinstance(answer, Deferred)
        return answer

    def poll(self) -> None:
        """Let one look at the file go by, and the moment for which a changed one must rest."""
        self.clock.advance(POLL)
        self.clock.advance(SETTLE)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "users.txt", Clock())
    yield rig
    if rig.router is not None and rig.router.running:
        rig.router.stopService()
        assert not rig.clock.getDelayedCalls()


# --- what a file may say ----------------------------------------------------------


def test_a_line_is_a_user(rig: Rig) -> None:
    """A user lives where the line says, under the name that it says, or else under the user's own."""
    rig.load("alice@example.org east\nbob@example.org\twest  robert\n")
    verify.verifyObject(IRouter, rig.router)
    verify.verifyObject(IService, rig.router)
    assert rig.ask("alice@example.org") == Route("east")
    assert rig.ask("bob@example.org") == Route("west", "robert")
    assert rig.ask("carol@example.org") is None
    assert len(rig.router) == 2


def test_names_are_in_their_one_form(rig: Rig) -> None:
    """A table may write a name as it likes: it is compared in the form in which clients' names are."""
    rig.load("Alice@EXAMPLE.org east\nBob west Robert@Example.ORG\n")
    assert rig.ask("alice@example.org") == Route("east")
    assert rig.ask("bob@example.org") == Route("west", "Robert@Example.ORG")


def test_comments_blanks_and_other_systems_line_ends(rig: Rig) -> None:
    """What people and editors put into a text file besides lines of users does no harm."""
    rig.path.write_bytes(
        "\ufeff# users\r\n\r\n  \t\r\n alice east # the first\r\n #bob west\r\ncarol#1 west c#2\r\n"
        "d\u00e9j\u00e0\u00a0vu east".encode()
    )
    rig.load()
    assert len(rig.router) == 3
    assert rig.ask("alice@example.org") == Route("east")
    assert rig.ask("carol#1@example.org") == Route("west", "c#2")
    assert rig.ask("d\u00e9j\u00e0\u00a0vu@example.org") == Route("east")


def test_an_empty_table_knows_nobody(rig: Rig) -> None:
    """A table without users is a table."""
    rig.load("")
    assert rig.ask("alice@example.org") is None


BAD_LINES = [
    (b"carol\n", "the backend is missing"),
    (b"carol east c x\n", "4 fields: a line is name backend"),
    (b"carol north\n", r"there is no \[backend.north\]; known: east, west"),
    (b"carol wset\n", r'did you mean "west"'),
    (b"Alice@example.ORG west\n", "alice@example.org is listed twice"),
    (b"caf\xe9 east\n", "not UTF-8"),
    (b"ca\0rol east\n", "a control character"),
    (b"carol east c\x7f\n", "a control character"),
    (b"carol east c\rd\n", "a control character"),
    ("carol\u2028 east\n".encode(), "a control character"),
    ("carol\u0085 east\n".encode(), "a control character"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_named(rig: Rig, line: bytes, reason: str) -> None:
    """At start, a table with a bad line is refused, with the file, the line's number and the reason."""
    rig.path.write_bytes(b"# first\nalice east\n" + line)
    with pytest.raises(BadOption, match=rf"users\.txt:3: .*{reason}") as bad:
        rig.load()
    assert bad.value.key == "file"


def test_several_bad_lines_are_counted(rig: Rig) -> None:
    """The first bad line is shown, and how many more there are."""
    with pytest.raises(BadOption, match=r"users\.txt:1: .*missing.* \(and 2 more bad lines\)"):
        rig.load("a\nb east\nc\nd north\n")


def test_a_folder_is_no_table(rig: Rig) -> None:
    """What cannot be read is told with the system's reason."""
    rig.path.mkdir()
    with pytest.raises(BadOption, match="Is a directory"):
        rig.load()


def test_a_user_costs_little_memory(rig: Rig) -> None:
    """A table of many users takes less than 200 bytes for each, names of usual length included."""
    rig.write(
        "".join(
            f"user{number:07}@example.org {'east' if number % 2 else 'west'}\n" for number in range(30000)
        )
    )
    tracemalloc.start()
    try:
        rig.load()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rig.router) == 30000
    assert taken / 30000 < 200


# --- what happens when it changes ---------------------------------------------------


def test_a_changed_file_is_read_again(rig: Rig) -> None:
    """A user who moves is found at the new place a moment later, without a restart."""
    rig.start("alice east\n")
    rig.write("alice west\nbob east\n")
    assert rig.ask("alice@example.org") == Route("east")
    with capturedLogs() as logs:
        rig.poll()
    assert rig.ask("alice@example.org") == Route("west")
    assert rig.ask("bob@example.org") == Route("east")
    assert [formatEvent(event) for event in logs] == [f"read {rig.path} again: 2 users"]


def test_a_file_put_in_its_place_is_read(rig: Rig, tmp_path: Path) -> None:
    """A file that is replaced by another, of the same size and date, counts as changed."""
    rig.start("alice east\n")
    date = rig.path.stat()
    new = tmp_path / "new.txt"
    new.write_text("alice west\n")
    os.utime(new, ns=(date.st_atime_ns, date.st_mtime_ns))
    new.replace(rig.path)
    rig.poll()
    assert rig.ask("alice@example.org") == Route("west")


def test_an_unchanged_file_is_left_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has been at rest is looked at, and not read again."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    rig.load("alice east\n")
    reads: list[object] = []
    monkeypatch.setattr(users_file, "read", lambda *arguments, **_: reads.append(arguments))
    with capturedLogs() as logs:
        rig.router.startService()
        for _ in range(5):
            rig.poll()
    assert not reads
    assert not logs


def test_a_young_file_is_read_a_second_time(rig: Rig) -> None:
    """A write right after the start, within the tick of the file system's clock, is not missed."""
    rig.load("alice east\n")
    rig.write("alice west\n")
    rig.router.startService()
    with capturedLogs() as logs:
        rig.poll()
        rig.poll()
    assert rig.ask("alice@example.org") == Route("west")
    assert [formatEvent(event) for event in logs] == [f"read {rig.path} again: 1 users"]


def test_the_second_reading_of_an_unchanged_file_is_not_told(rig: Rig) -> None:
    """Who has just written the file and starts mailroute reads of no change that there was not."""
    rig.load("alice east\n")
    rig.router.startService()
    with capturedLogs() as logs:
        rig.poll()
        rig.poll()
    assert not logs
    later = time.time() + 60
    os.utime(rig.path, (later, later))
    with capturedLogs() as logs:
        rig.poll()
    assert len(logs) == 1


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_change_keeps_the_table(rig: Rig, line: bytes, reason: str) -> None:
    """While it runs, a table that has got a bad line is told once, and the one before stays whole."""
    rig.start("alice east\nbob east\n")
    with capturedLogs() as logs:
        rig.path.write_bytes(b"# first\nalice west\n" + line)
        for _ in range(5):
            rig.poll()
    assert rig.ask("alice@example.org") == Route("east")
    assert rig.ask("bob@example.org") == Route("east")
    (event,) = logs
    assert event["log_level"] is LogLevel.error
    assert re.search(rf"users\.txt:3: .*{reason}.*; the 2 users", formatEvent(event))


def test_a_repaired_table_is_taken(rig: Rig) -> None:
    """Each change is told once, and the first good one ends the trouble."""
    rig.start("alice east\n")
    with capturedLogs() as logs:
        rig.write("alice\n")
        rig.poll()
        rig.write("alice north\n")
        rig.poll()
        rig.write("alice west\n")
        rig.poll()
    assert rig.ask("alice@example.org") == Route("west")
    assert [event["log_level"].name for event in logs] == ["error", "error", "info"]


def test_a_vanished_table_stays_known(rig: Rig) -> None:
    """A file that is gone is told once and changes nothing; when it comes back it is read."""
    rig.start("alice east\n")
    with capturedLogs() as logs:
        rig.path.unlink()
        for _ in range(5):
            rig.poll()
    assert rig.ask("alice@example.org") == Route("east")
    (event,) = logs
    assert event["log_level"] is LogLevel.error
    assert (
        formatEvent(event)
        == f"cannot read {rig.path}: No such file or directory; the 1 users read before stay"
    )
    rig.write("alice west\n")
    rig.poll()
    assert rig.ask("alice@example.org") == Route("west")


def test_a_file_that_is_still_being_written_is_not_read(rig: Rig) -> None:
    """Users at the end of a long file are known all the time that it takes to write it anew."""
    rig.start("alice east\nbob east\n")
    rig.clock.advance(POLL - SETTLE)
    rig.write("alice west\n")
    rig.clock.advance(SETTLE)
    for number in range(5):
        with rig.path.open("a") as file:
            file.write(f"carol{number} west\n")
        rig.clock.advance(SETTLE)
        assert rig.ask("bob@example.org") == Route("east")
    with rig.path.open("a") as file:
        file.write("bob west\n")
    rig.clock.advance(SETTLE)
    rig.clock.advance(SETTLE)
    assert rig.ask("bob@example.org") == Route("west")
    assert len(rig.router) == 7


def test_a_file_that_never_rests_is_read_all_the_same(rig: Rig) -> None:
    """A file that is appended to for ever does not keep its table from being read."""
    rig.start("alice east\n")
    for number in range(30):
        with rig.path.open("a") as file:
            file.write(f"bob{number} west\n")
        rig.clock.advance(SETTLE)
    assert rig.ask("bob0@example.org") == Route("west")


class Torn(type(Path())):  # type: ignore[misc]
    """A file that somebody writes while it is read: each text of ``writes``, in turn."""

    writes: Iterator[str] = iter(())

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = super().open(mode, *args, **kwargs)
        if mode != "rb":
            return file
        read = file.read

        class Reading:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def fileno(self) -> int:
                return int(file.fileno())

            def read(_) -> bytes:  # noqa: N805
                content: bytes = read()
                for text in itertools.islice(Torn.writes, 1):
                    self.write_text(text)
                return content

        return Reading()


@pytest.fixture
def torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(Torn, "writes", iter(()))
    path = Torn(tmp_path / "users.txt")
    path.write_text("alice east\n")
    context = SourceContext(tmp_path, frozenset({"east", "west"}), str, Clock(), execute)
    return Rig(path, context.clock, router=TableRouter(path, context))


def test_a_table_written_while_it_is_read_ends_right(torn: Rig) -> None:
    """What was read of a file that changed meanwhile is dropped; what stands there in the end is taken."""
    torn.router.startService()
    torn.poll()
    Torn.writes = iter(["alice west again\n", "alice west final\n"])
    torn.write("alice west torn\n")
    seen = []
    for _ in range(4):
        torn.poll()
        seen.append(torn.ask("alice"))
    torn.router.stopService()
    assert seen == [Route("east"), Route("east"), Route("west", "final"), Route("west", "final")]


def test_a_table_written_during_the_start_ends_right(tmp_path: Path, torn: Rig) -> None:
    """At start a torn reading is made good at once."""
    Torn.writes = iter(["alice west again\n"])
    torn.router = TableRouter(
        torn.path, SourceContext(tmp_path, frozenset({"west", "east"}), str, Clock(), execute)
    )
    assert torn.ask("alice") == Route("west", "again")


def test_the_old_table_answers_until_the_new_one_is_whole(rig: Rig) -> None:
    """Reading takes its time in a thread; meanwhile the table before it answers."""
    rig.start("alice east\n")
    work: list[tuple[Callable[[], object], Deferred[Any]]] = []

    def later(function: Callable[[], object]) -> Deferred[Any]:
        work.append((function, Deferred()))
        return work[-1][1]

    rig.write("alice west\n")
    rig.in_thread = later
    for _ in range(3):  # two looks at the file, one reading
        rig.poll()
        assert rig.ask("alice@example.org") == Route("east")
        function, waiting = work.pop()
        waiting.callback(function())
    assert rig.ask("alice@example.org") == Route("west")


def test_one_fault_does_not_end_the_watch(rig: Rig) -> None:
    """Should something unforeseen go wrong while looking, it is logged and the next look is made."""
    rig.start("alice east\n")
    rig.in_thread = lambda _: execute(lambda: 1 / 0)
    with capturedLogs() as logs:
        rig.poll()
    assert len(logs) == 1
    rig.in_thread = execute
    rig.write("alice west\n")
    rig.poll()
    assert rig.ask("alice@example.org") == Route("west")


def test_a_stopped_table_leaves_nothing_behind(rig: Rig) -> None:
    """After the end no timer runs, nothing is read and nothing is logged, even if a thread was busy."""
    rig.start("alice east\n")
    rig.write("alice west\n")
    busy: Deferred[Any] = Deferred()
    rig.in_thread = lambda _: busy
    rig.poll()
    with capturedLogs() as logs:
        rig.router.stopService()
        rig.router.stopService()
    assert not rig.clock.getDelayedCalls()
    assert not logs
    rig.in_thread = execute
    rig.router.startService()
    rig.poll()
    assert rig.ask("alice@example.org") == Route("west")


# --- in another process ---------------------------------------------------------


@pytest.fixture
def later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Return a rig for a process that is given a copy of what the file held long ago."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    rig.copies = Copies(keep=True)
    rig.load("alice east\n")
    assert rig.copies.kept() == {rig.path: b"alice east\n"}
    rig.copies = Copies(rig.copies.kept())
    rig.load()
    return rig


def test_a_process_that_cannot_read_the_file_has_the_copy(later: Rig) -> None:
    """What one process has read serves another one that may not read it, and that is told once."""
    later.path.unlink()
    later.load()
    with capturedLogs() as logged:
        later.router.startService()
        later.poll()
        later.poll()
    assert later.ask("alice@example.org") == Route("east")
    assert [formatEvent(event) for event in logged] == [
        f"cannot read {later.path}: No such file or directory; the 1 users read before stay"
    ]
    later.write("alice west\n")
    later.poll()
    assert later.ask("alice@example.org") == Route("west")


def test_a_process_that_starts_later_catches_up(later: Rig) -> None:
    """Nobody begins with users of long ago if the file can be read: they may have moved."""
    later.write("alice west\n")
    assert later.ask("alice@example.org") == Route("east")
    later.router.startService()
    assert later.ask("alice@example.org") == Route("west")


def test_an_unchanged_file_is_not_read_again_in_each_process(
    later: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that share what was read once go on sharing it."""
    monkeypatch.setattr(users_file, "read", None)
    later.router.startService()
    assert later.ask("alice@example.org") == Route("east")


def test_a_process_does_not_start_with_a_table_that_is_none(later: Rig) -> None:
    """What is wrong with it is told, as it is when mailroute is started."""
    later.write("alice nowhere\n")
    with pytest.raises(BadOption, match=r"users\.txt:1: there is no \[backend\.nowhere\]"):
        later.router.startService()


def test_a_file_that_spoils_during_the_start_is_told_at_the_end_of_it(later: Rig) -> None:
    """Between two processes that read it the file may change: the second has the copy, and then says so."""
    later.write("alice nowhere\n")
    later.load()
    assert later.ask("alice@example.org") == Route("east")
    with pytest.raises(BadOption, match="nowhere"):
        later.router.startService()
