"""Messages and log events between the parent and its workers."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import (
    Logger,
    LogLevel,
    capturedLogs,
    eventAsText,
    formatEvent,
    globalLogPublisher,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python import log as legacy
from twisted.python.failure import Failure

from mailroute.events import Reason, Refusal
from mailroute.record import SessionRecord
from mailroute.testing import CLIENT
from mailroute.workers import channel as channels
from mailroute.workers.channel import MAX_MESSAGE, Channel, pair
from mailroute.workers.logs import MAX_EVENT, Sender, packed, publish, unpacked


class Reactor:
    """Knows what is to be watched; the test turns."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard


class Ends:
    """Both ends of a channel, and what each has heard."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.heard: tuple[list[Any], list[Any]] = ([], [])
        self.ends = [
            Channel(end, self.reactor, self._hear(heard), lambda heard=heard: heard.append("lost"))
            for end, heard in zip(pair(), self.heard, strict=True)
        ]

    def _hear(self, heard: list[Any]) -> Callable[[bytes, bytes, Sequence[int]], None]:
        return lambda word, rest, descriptors: heard.append((word, rest, *descriptors))

    def turn(self) -> None:
        """Let both ends read and write until nothing is left to do."""
        for _ in range(1000):
            before = [len(heard) for heard in self.heard], len(self.reactor.writers)
            for writer in list(self.reactor.writers):
                writer.doWrite()
            for reader in list(self.reactor.readers):
                reader.doRead()
            if before == ([len(heard) for heard in self.heard], len(self.reactor.writers)):
                return


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    for end in ends.ends:
        end.close()


def test_a_message_that_cannot_be_obeyed_costs_nothing_else(ends: Ends) -> None:
    """A defect in what a message leads to is logged, and the next message is heard."""

    def hear(word: bytes, _rest: bytes, _descriptors: Sequence[int]) -> None:
        if word == b"bad":
            raise RuntimeError("a defect")
        ends.heard[1].append(word)

    ends.ends[1]._received = hear
    with capturedLogs() as logged:
        for word in (b"bad", b"good"):
            ends.ends[0].send(word)
        ends.turn()
    assert ends.heard[1] == [b"good"]
    assert [formatEvent(event) for event in logged] == ["cannot do what another process has said: bad"]


def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    """A message is a word and what stands behind it, any bytes, both ways."""
    one, other = ends.ends
    one.send(b"ready")
    one.send(b"log", b"a b\n\0c" * 1000)
    other.send(b"adopt", b"3")
    ends.turn()
    assert ends.heard == ([(b"adopt", b"3")], [(b"ready", b""), (b"log", b"a b\n\0c" * 1000)])


def test_nothing_is_lost_while_the_other_end_is_busy(ends: Ends) -> None:
    """What the other end does not take now waits, in order, and nobody waits for it."""
    one, _ = ends.ends
    sent = [(b"log", str(number).encode() + bytes(2000)) for number in range(2000)]
    for word, rest in sent:
        assert one.send(word, rest)
    assert one in ends.reactor.writers
    ends.turn()
    assert ends.heard[1] == sent
    assert not ends.reactor.writers


def test_what_waits_has_a_bound(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the other end takes nothing for long, the sender is told that there is no room, until there is."""
    monkeypatch.setattr(channels, "MAX_WAITING", 100_000)
    one, _ = ends.ends
    count = 0
    while one.send(b"log", bytes(1000)):
        count += 1
        assert count < 10_000
    ends.turn()
    assert len(ends.heard[1]) == count
    assert one.send(b"log")
    ends.turn()
    assert ends.heard[1][-1] == (b"log", b"")


def test_the_end_comes_after_all_that_was_said(ends: Ends) -> None:
    """What an end has sent before it went is read first, and then, once, that it has gone."""
    one, other = ends.ends
    for number in range(200):
        one.send(b"log", str(number).encode())
    one.close()
    ends.turn()
    assert ends.heard[1] == [*((b"log", str(number).encode()) for number in range(200)), "lost"]
    assert not other.open
    assert not ends.reactor.readers
    assert other.send(b"stop")  # to nobody
    assert not ends.heard[0]


def test_all_that_is_there_can_be_read_at_once(ends: Ends) -> None:
    """Whoever knows that the other end is gone reads its last words without waiting for a turn."""
    one, other = ends.ends
    for number in range(200):
        one.send(b"log", str(number).encode())
    other.drain()
    assert len(ends.heard[1]) == 200
    one.close()
    other.drain()
    assert ends.heard[1][-1] == "lost"


def test_the_longest_message_arrives(ends: Ends) -> None:
    """A message may be as long as it is said to be."""
    one, _ = ends.ends
    one.send(b"log", bytes(MAX_MESSAGE - 4))
    ends.turn()
    assert ends.heard[1] == [(b"log", bytes(MAX_MESSAGE - 4))]


def test_descriptors_go_with_their_message(ends: Ends) -> None:
    """The other end gets copies of descriptors, even if the message has to wait and they are closed."""
    one, _ = ends.ends
    while not ends.reactor.writers:
        one.send(b"log", bytes(1000))
    with tempfile.TemporaryFile() as file:
        file.write(b"content")
        file.flush()
        one.send(b"adopt", b"3", [file.fileno(), file.fileno()])
    ends.turn()
    word, rest, first, second = ends.heard[1][-1]
    assert (word, rest) == (b"adopt", b"3")
    for descriptor in (first, second):
        assert os.pread(descriptor, 100, 0) == b"content"
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_descriptors_of_messages_that_never_went_are_closed(ends: Ends) -> None:
    """A message that waits for ever keeps nothing open."""
    one, _ = ends.ends
    while not ends.reactor.writers:
        one.send(b"log", bytes(1000))
    before = len(list(Path("/proc/self/fd").iterdir()))
    one.send(b"adopt", b"3", [0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_whoever_is_woken_often_rests(ends: Ends) -> None:
    """An end that pauses reads all that is there, then nothing for a while, and loses nothing by that."""
    clock, heard, (here, there) = Clock(), [], pair()
    ends.reactor.callLater = clock.callLater
    resting = Channel(
        there, ends.reactor, lambda word, *_: heard.append(word), lambda: heard.append("lost"), 0.5
    )
    with here:
        here.send(b"one ")
        here.send(b"two ")
        resting.doRead()
        assert heard == [b"one", b"two"]
        assert resting not in ends.reactor.readers
        here.send(b"three ")
        clock.advance(0.5)
        assert resting in ends.reactor.readers
        resting.doRead()
        resting.doRead()  # whoever waits in a way of their own may read more often
        assert heard[2:] == [b"three"]
        resting.drain()  # whoever wants to know at once, does
        here.send(b"four ")
        resting.drain()
        assert heard[3:] == [b"four"]
    resting.drain()
    assert heard[4:] == ["lost"]
    assert not clock.getDelayedCalls()


# --- events ---------------------------------------------------------------------


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    caught: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(caught.append)
    yield caught
    globalLogPublisher.removeObserver(caught.append)


def as_written(event: dict[str, Any]) -> str:
    """The line that twistd writes for an event."""
    file = io.StringIO()
    textFileLogObserver(file)(event)
    return file.getvalue()


def as_json(event: dict[str, Any]) -> dict[str, Any]:
    """What an observer that writes JSON has of an event."""
    file = io.StringIO()
    jsonFileLogObserver(file, recordSeparator="")(event)
    return json.loads(file.getvalue())


def sessions() -> None:
    """Leave the lines that sessions leave."""
    record = SessionRecord(CLIENT, "imap tcp:143", 0.0, user="al\nice é\ud800 {x}@example.com", bytes_in=5)
    record.refused(Refusal(Reason.AUTHENTICATION_FAILED, "the backend said: NO {}"))
    record.ended("the client closed the connection", 1.23456)


def others() -> None:
    """Leave events of all other sorts."""
    log = Logger(namespace="a.namespace")
    log.info("{number} of {things}", number=7, things=["a", b"b", 3.5])
    log.error("{log_source} did it", log_source=CLIENT)
    log.warn("no fields")
    legacy.msg("old", "fashioned", system="-")
    legacy.msg(format="%(old)s style", old=CLIENT)
    print_like = Logger(namespace="stdout")
    print_like.info("{log_io}", log_io="printed {text}")


def failures() -> None:
    """Leave a failure with its traceback."""
    try:
        raise KeyError("lost")
    except KeyError:
        Logger(namespace="a.namespace").failure("could not {what}", what="find it")
        legacy.err(Failure(), "why")


@pytest.mark.parametrize("cause", [sessions, others, failures])
def test_an_event_is_logged_as_if_it_had_happened_here(events: list[dict[str, Any]], cause: Any) -> None:
    """The parent's log has the same line for it, with time, level, namespace and traceback."""
    cause()
    happened = list(events)
    assert happened
    events.clear()
    for event in happened:
        publish(packed(dict(event)), 3)
    assert [as_written(event) for event in events] == [as_written(event) for event in happened]
    assert {event["worker"] for event in events} == {3}
    assert [event["log_level"] for event in events] == [event["log_level"] for event in happened]


def test_a_session_keeps_its_fields(events: list[dict[str, Any]]) -> None:
    """Whoever watches the log as structured events gets the session's fields from a worker, too."""
    sessions()
    happened = list(events)
    for event in happened:
        got = as_json(unpacked(packed(event)))
        wanted = as_json(event)
        for key in ("log_logger", "log_source"):
            wanted.pop(key, None)
            got.pop(key, None)
        assert got == wanted


@given(
    st.dictionaries(
        st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False))
    )
)
def test_simple_values_arrive_as_they_were(fields: dict[str, Any]) -> None:
    """A simple event is the same on the other side, whatever its texts hold."""
    event = {**fields, "log_level": LogLevel.warn}
    assert unpacked(packed(event)) == event


class Rude:
    """An object that cannot even be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __format__(self, _: str) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value", ["x" * 100_000, "é" * 100_000, "\U0001f600" * 60_000, ["y" * 100_000], Rude()]
)
def test_every_event_fits_into_a_message(value: object) -> None:
    """Of an event that is too long, or cannot be had, what can be told of it is told."""
    level = LogLevel.error
    message = packed(
        {"log_format": "{value}", "value": value, "log_level": level, "log_namespace": "n", "log_time": 1.5}
    )
    assert len(message) <= MAX_EVENT
    event = unpacked(message)
    assert (event["log_level"], event["log_namespace"], event["log_time"]) == (level, "n", 1.5)
    assert eventAsText(event, includeTimestamp=False, includeSystem=False)


def test_lines_that_are_lost_are_counted() -> None:
    """If the parent cannot keep up, the log says how many lines it lacks, once there is room again."""
    room, got = [True], []

    def send(message: bytes) -> bool:
        if room[0]:
            got.append(unpacked(message))
        return room[0]

    sender = Sender(send)
    for number in range(10):
        room[0] = not 3 <= number < 8
        sender({"log_format": "{number}", "number": number, "log_level": LogLevel.info})
    assert [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in got] == [
        *("0", "1", "2"),
        "5 lines of the log are lost: they came faster than they were written",
        *("8", "9"),
    ]
