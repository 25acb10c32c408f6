"""Running out of file descriptors: who is in stays in, who comes is told, and all is well afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.certificates import Authority
from servers.processes import PATIENCE, wait_until
from servers.proxy import Mailroute
from servers.raw import RawImap, UnixImap
from twisted.internet.defer import fail
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from mailroute import descriptors
from mailroute.descriptors import FRUITLESS, NOTHING, PAUSE, WARN_EVERY, Descriptors, remedy
from mailroute.listening import Listening, StartError

LIMIT = 90

BYE = rb"\* BYE \[UNAVAILABLE\] Too many connections"


class Echo:
    """A mail server in a thread that takes any login and says OK to everything."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._listening: asyncio.Server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0)
        )
        self.port = self._listening.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            writer.write(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
            while line := await reader.readline():
                writer.write(line.partition(b" ")[0] + b" OK [CAPABILITY IMAP4rev1] done\r\n")
        writer.close()

    async def _end(self) -> None:
        self._listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


class House:
    """A mailroute with few descriptors, and the clients of the test."""

    def __init__(self, proxy: Mailroute, authority: Authority, path: Path) -> None:
        self.proxy = proxy
        self.clients: list[RawImap] = []
        self._context = authority.context()
        self._path = path

    def connect(self, door: str) -> RawImap:
        """Connect, and begin TLS where that comes first."""
        client = UnixImap(self._path) if door == "unix" else RawImap("127.0.0.1", self.proxy.ports[door])
        self.clients.append(client)
        if door == "tls":
            client.handshake(self._context)
        return client

    def log_in(self, door: str) -> RawImap | None:
        """Connect and log in; None for a client that is told that there are too many."""
        client = self.connect(door)
        greeting = client.greeting()
        if re.match(BYE, greeting):
            assert client.rest() == b""
            return None
        client.command("a LOGIN bob secret")
        return client

    def fill(self, door: str) -> list[RawImap]:
        """Log in until somebody is turned away."""
        inside = []
        while client := self.log_in(door):
            inside.append(client)
            assert len(inside) < LIMIT
        return inside


@pytest.fixture
def house(echo: Echo, authority: Authority, tmp_path: Path) -> Iterator[House]:
    issued = authority.issue("localhost")
    path = tmp_path / "socket"
    doors = {
        "plain": {"security": "none"},
        "tls": {"security": "tls"},
        "unix": {"security": "none", "endpoint": f"unix:{path}"},
    }
    config = {
        "certificate": [{"chain": str(issued.chain), "key": str(issued.key)}],
        "backend": {"east": {"imap": f"tcp:127.0.0.1:{echo.port}", "security": "none", "identity": "none"}},
        "route": [{"source": "default", "backend": "east"}],
        "limits": {"connections_per_address": 0},
    }
    with Mailroute(doors, config, open_files=(LIMIT // 2, LIMIT)) as proxy:
        wait_until("mailroute's start", lambda: proxy.log.find("listening: imap unix"))
        house = House(proxy, authority, path)
        yield house
        for client in house.clients:
            client.socket.close()


DOORS = pytest.mark.parametrize("door", ["plain", "tls", "unix"])


def test_the_limit_is_raised(house: House) -> None:
    """At the start the soft limit becomes the hard one, and that it is too low for the sessions is said."""
    assert house.proxy.open_files() == (LIMIT, LIMIT)
    assert house.proxy.log.wait_for(
        rf"limit of open files is {LIMIT}.*connections = 10000 .*LimitNOFILE=20256"
    )


@DOORS
def test_running_out_of_descriptors(house: House, door: str) -> None:
    """Sessions go on, whoever comes then hears BYE, and when somebody has left there is room for others."""
    inside = house.fill(door)
    # Nobody has been sent away for nothing: most of the descriptors are in use.
    assert len(inside) >= LIMIT * 0.3
    assert house.proxy.log.wait_for("reason=no descriptor left")  # the first who was sent away
    mark = house.proxy.log.mark()
    for _ in range(3 * LIMIT):
        assert house.log_in(door) is None
    for client in inside:
        assert client.command("b NOOP").startswith(b"b OK")
    lines = house.proxy.log.text(mark).splitlines()
    assert len([line for line in lines if "reason=no descriptor left" in line]) == 3 * LIMIT
    assert len(lines) <= 3 * LIMIT + 1
    assert house.proxy.log.find("new clients are turned away.*LimitNOFILE")
    for client in inside[::2]:
        client.socket.close()
    again = wait_until("room for another", lambda: house.log_in(door))
    for client in [*inside[1::2], again]:
        assert client.command("c NOOP").startswith(b"c OK")


def test_all_who_are_greeted_can_log_in(house: House) -> None:
    """Clients that take their time with the login find the descriptor for their backend kept for them."""
    early = house.fill("plain")
    for client in early:
        client.socket.close()
    waiting: list[RawImap] = []
    wait_until("all of them to be gone", lambda: house.proxy.sockets() == 3)
    while True:
        client = house.connect("plain")
        if re.match(BYE, client.greeting()):
            break
        waiting.append(client)
    assert len(waiting) >= LIMIT * 0.3
    for client in waiting:
        assert client.command("a LOGIN bob secret").startswith(b"a OK")


def test_a_backend_that_cannot_be_dialled(house: House) -> None:
    """Who came while there were plenty, and logs in when there are none, is told to try later, and can."""
    early = [house.connect("plain") for _ in range(8)]
    for client in early:
        client.greeting()
    inside = house.fill("plain")
    answers = [client.command("a LOGIN bob secret") for client in early]
    assert answers[-1].startswith(b"a NO [UNAVAILABLE]")
    assert house.proxy.log.find(r"cannot connect to backend east: .*Too many open files.*LimitNOFILE")
    for client in inside:
        client.socket.close()
    wait_until("room", lambda: early[-1].command("b LOGIN bob secret").startswith(b"b OK"))


def test_clients_that_are_turned_away_and_stay(house: House) -> None:
    """Those who never end their TLS handshake cost nothing but patience: the others wait in the queue."""
    inside = house.fill("plain")
    before = house.proxy.cpu()
    for _ in range(LIMIT // 6):
        house.clients.append(RawImap("127.0.0.1", house.proxy.ports["tls"]))
    house.proxy.log.wait_for("new clients have to wait")
    late = house.connect("plain")
    # It comes in when the silent ones have been put out, which takes seconds; meanwhile nothing spins.
    assert re.match(BYE, late.greeting())
    assert house.proxy.cpu() - before < 1
    assert inside[0].command("b NOOP").startswith(b"b OK")
    for client in house.clients:
        client.socket.close()
    wait_until("room for another", lambda: house.log_in("plain"))


# --- one at a time, in this process --------------------------------------------------


@pytest.fixture
def used_up() -> Iterator[Callable[[], None]]:
    """Make this process run out of descriptors, until the end of the test at the latest."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def use_up() -> None:
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))

    yield use_up
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []

    def observe(event: dict) -> None:
        if event["log_namespace"] == "mailroute":
            said.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield said
    globalLogPublisher.removeObserver(observe)


class Port:
    """A listening port whose kernel has hardly anybody for it, and says that it has."""

    connected = True
    disconnecting = False
    numberAccepts = 100

    def __init__(self) -> None:
        self.calls = 0
        self.made = 0
        self.queue = 0
        self.reading = True

    def doRead(self) -> None:
        self.calls += 1
        if self.queue:
            self.queue -= 1
            self.made += 1

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True

    def ready(self, times: int) -> int:
        """Call it as a reactor would; returns how often it was called."""
        before = self.calls
        for _ in range(times):
            if self.reading:
                self.doRead()
        return self.calls - before


def test_a_listener_with_nobody_to_let_in() -> None:
    """A listener that is told of clients and finds none, again and again, has to pause."""
    clock, port = Clock(), Port()
    watcher = Descriptors(clock, 0)
    watcher.startService()
    watcher.watch(port, lambda: port.made)
    assert port.ready(3 * FRUITLESS) == FRUITLESS
    clock.advance(PAUSE)
    assert port.ready(FRUITLESS - 1) == FRUITLESS - 1
    port.queue = 1
    assert port.ready(3 * FRUITLESS) == FRUITLESS + 1
    clock.advance(PAUSE)
    port.connected = False
    port.reading = True
    port.ready(FRUITLESS)
    clock.advance(PAUSE)
    assert not port.reading
    watcher.stopService()
    assert not clock.getDelayedCalls()


def test_a_listener_without_a_descriptor(used_up: Callable[[], None], warnings: list[str]) -> None:
    """It is not even asked, says so once a minute, and tries again in a while."""
    clock, port = Clock(), Port()
    watcher = Descriptors(clock, 0)
    watcher.startService()
    watcher.watch(port, lambda: 0)
    used_up()
    assert port.ready(1000) == 1
    for _ in range(3):
        clock.advance(PAUSE)
        assert port.reading
        assert port.ready(1000) == 0
    assert len(warnings) == 1
    assert "LimitNOFILE" in warnings[0]
    clock.advance(WARN_EVERY)
    port.ready(1)
    assert len(warnings) == 2
    watcher.stopService()


def open_now() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_what_is_kept(used_up: Callable[[], None]) -> None:
    """Nothing while there are plenty, then a descriptor each, then none."""
    watcher = Descriptors(Clock(), 0)
    assert watcher.keep(1000000) == NOTHING
    watcher.startService()
    assert watcher.keep(3) == NOTHING
    count = open_now()
    kept = watcher.keep(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)
    assert kept is not None
    assert Path(f"/proc/self/fd/{kept}").readlink() == Path(os.devnull)
    second = watcher.keep(3)
    assert second not in (None, NOTHING)
    watcher.give_back(second)
    watcher.give_back(kept)
    watcher.give_back(NOTHING)
    used_up()
    assert watcher.keep(3) is None
    watcher.stopService()
    assert open_now() == count


def test_select_gets_no_more_than_it_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is not raised above what select(2) can handle where that is what waits for events."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= descriptors.SELECT_AT_MOST:
        pytest.skip("the hard limit here is low enough")
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: wanted.append(limits))
    assert descriptors.raise_limit(descriptors.SELECT_AT_MOST) == descriptors.SELECT_AT_MOST
    assert descriptors.raise_limit() == hard
    assert wanted == [(descriptors.SELECT_AT_MOST, hard), (hard, hard)]
    assert soft <= hard


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(24, "x"), "LimitNOFILE"),
        (OSError(23, "x"), "fs.file-max"),
        (OSError(13, "x"), ""),
        (ValueError("x"), ""),
    ],
)
def test_what_to_do_about_an_error(error: Exception, what: str) -> None:
    """An error of too many files comes with its remedy, any other without."""
    assert what in remedy(error)
    assert bool(what) == bool(remedy(error))


def test_a_listener_without_a_descriptor_says_what_to_do() -> None:
    """Where the limit is too low for the listeners, nobody is told to change an endpoint."""

    class Full:
        def listen(self, _factory: object) -> Any:
            return fail(CannotListenError("", 143, OSError(errno.EMFILE, "Too many open files")))

    listening = Listening(Factory(), "imap tcp:143", Full)
    with pytest.raises(StartError, match=r"imap tcp:143: .*Too many open files: raise LimitNOFILE="):
        listening.privilegedStartService()
