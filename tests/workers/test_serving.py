"""Several processes serve as one: everybody is served, limits hold for all, the log is one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import twistd
from servers.certificates import Authority
from servers.processes import free_port
from workers.rig import Files, Running, alive, children, descriptors, strays, until


@pytest.fixture
def running(files: Files, stack: ExitStack) -> Running:
    return stack.enter_context(files.run())


# --- serving --------------------------------------------------------------------


def test_all_workers_serve(running: Running, stack: ExitStack) -> None:
    """Clients are spread over all workers, evenly, and the parent serves none."""
    clients = [stack.enter_context(running.greeted()) for _ in range(200)]
    served = running.serving(*clients)
    assert set(served) == set(running.workers().values()) == set(children(running.nursery()))
    # Of 200 fair throws, fewer than 50 fall on one side once in a thousand billion times.
    assert min(served.count(pid) for pid in set(served)) >= 50
    running.stop()


def test_a_session_is_carried_by_a_worker_from_beginning_to_end(running: Running, stack: ExitStack) -> None:
    """What goes through a worker is what goes through mailroute: login, commands, logout."""
    for client in [stack.enter_context(running.greeted()) for _ in range(10)]:
        assert client.command("a LOGIN alice@example.com wonderland").startswith(b"a OK")
        assert client.command("b NOOP") == b"b OK [CAPABILITY IMAP4rev1] NOOP\r\n"
        assert client.command("c LOGOUT").startswith(b"c OK")
        assert client.rest() == b""
    running.stop()


@pytest.mark.parametrize("count", [1, 3])
def test_the_command_line_has_the_last_word(files: Files, count: int) -> None:
    """--workers counts, and not what the file says."""
    with files.run(arguments=("--workers", str(count))) as running:
        running.greeted().socket.close()
        assert len(running.workers()) == (0 if count == 1 else count)
        assert len(children(running.pid)) == (0 if count == 1 else 1)
        running.stop()


def test_one_worker_spawns_nothing(files: Files) -> None:
    """One worker is mailroute as it is without workers: one process, and no descriptor more than that has."""
    found = []
    for workers in ({}, {"workers": 1}):
        files.config = {**workers, **{k: v for k, v in files.config.items() if k != "workers"}}
        with files.run() as running:
            running.greeted().socket.close()
            assert not children(running.pid)
            kinds = [re.sub(r"\d+", "N", name) for name in descriptors(running.pid)]
            found.append(
                sorted(kind for kind in kinds if not kind.startswith("socket:"))
            )  # clients come and go
            assert not running.workers()
            running.stop()
    assert found[0] == found[1]
    assert not any("memfd" in entry for entry in found[0])


@pytest.mark.parametrize("reactor", ["poll", "asyncio"])
def test_workers_have_the_reactor_that_was_asked_for(files: Files, reactor: str) -> None:
    """`twistd --reactor` chooses for the workers as well."""
    with files.run("--reactor", reactor) as running:
        running.greeted().socket.close()
        for pid in running.workers().values():
            # One is that of the hub.
            epolls = sum("eventpoll" in name for name in descriptors(pid))
            assert epolls == {"asyncio": 2, "poll": 1}[reactor]
        running.stop()


# --- where clients come in ------------------------------------------------------


def test_ipv6_is_shared_too(files: Files, stack: ExitStack) -> None:
    """A tcp6 endpoint has a socket for each worker, as a tcp endpoint has."""
    port = free_port()
    files.config["listen"].append(
        {"protocol": "imap", "endpoint": rf"tcp6:{port}:interface=\:\:1", "security": "none"}
    )
    running = stack.enter_context(files.run())
    for _ in range(20):
        client = stack.enter_context(socket.create_connection(("::1", port), timeout=20))
        assert client.recv(4) == b"* OK"
    running.stop()


def test_a_unix_socket_is_shared(files: Files, stack: ExitStack) -> None:
    """A UNIX socket keeps its permissions, whatever becomes of workers, and is gone at the end."""
    path = files.folder / "imap.sock"
    files.config["listen"].append(
        {"protocol": "imap", "endpoint": f"unix:{path}:mode=600", "security": "none"}
    )
    running = stack.enter_context(files.run())

    def login() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            assert client.recv(4) == b"* OK"
            client.sendall(b"a LOGIN alice@example.com wonderland\r\n")
            until("the login", lambda: b"a OK" in client.recv(4096))

    login()
    for pid in list(running.workers().values()):
        assert path.stat().st_mode & 0o777 == 0o600
        os.kill(pid, signal.SIGTERM)
        until("another worker", lambda pid=pid: pid not in running.workers().values())
        login()
    assert path.stat().st_mode & 0o777 == 0o600
    running.stop()
    assert not path.exists()
    assert not path.with_name("imap.sock.lock").is_symlink()
    assert running.log.find(r"session \S+ ended: user=alice@example.com client=local ")


# What systemd does; see tests/test_examples.py.
LIKE_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "mailroute.socket"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_systemds_is_shared(files: Files, stack: ExitStack) -> None:
    """A socket that systemd has opened reaches all workers, and stays open for systemd."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        files.config["listen"][0]["endpoint"] = "systemd:domain=INET:index=0"
        files.port = listening.getsockname()[1]
        command = [
            twistd.sys.executable,
            "-c",
            LIKE_SYSTEMD,
            str(listening.fileno()),
            twistd.program("twistd"),
        ]
        running = stack.enter_context(files.run(command=command, pass_fds=[listening.fileno()]))
        until(
            "both workers to accept",
            lambda: (
                len({*running.serving(*(stack.enter_context(running.greeted()) for _ in range(20)))}) == 2
            ),
        )
        running.stop()
        with socket.create_connection(("127.0.0.1", files.port), timeout=20):
            pass


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket_of_systemds_stays_what_it_is(files: Files, stack: ExitStack, workers: int) -> None:
    """Its permissions are those of the socket unit, and its name is there for the next start."""
    path = files.folder / "socket"
    files.config["workers"] = workers
    files.config["listen"].append(
        {"protocol": "imap", "endpoint": "systemd:domain=UNIX:index=0", "security": "none"}
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        command = [
            twistd.sys.executable,
            "-c",
            LIKE_SYSTEMD,
            str(listening.fileno()),
            twistd.program("twistd"),
        ]
        for _ in range(2):
            running = stack.enter_context(files.run(command=command, pass_fds=[listening.fileno()]))
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                assert client.recv(4) == b"* OK"
            assert path.stat().st_mode & 0o777 == 0o600
            running.stop()
            assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("reactor", ["epoll", "select"])
@pytest.mark.parametrize("workers", [1, 4])
def test_there_are_descriptors_for_many_sockets(files: Files, reactor: str, workers: int) -> None:
    """The limit of open files is raised before the sockets are bound, of which each worker has its own."""
    files.config["workers"] = workers
    [listen] = files.config["listen"]
    files.config["listen"] += [{**listen, "endpoint": f"tcp:0:interface=127.0.0.{n}"} for n in range(2, 62)]
    limited = ["prlimit", "--nofile=64:2000", twistd.program("twistd")]
    with files.run("--reactor", reactor, command=limited) as running:
        running.greeted().socket.close()
        for pid in (running.pid, *running.workers().values()):
            limits = Path(f"/proc/{pid}/limits").read_text()
            raised = {"epoll": 2000, "select": 1024}[reactor]
            assert re.search(rf"^Max open files +{raised} +2000 ", limits, re.M)
        running.stop()


# --- limits ---------------------------------------------------------------------


def fill(running: Running, stack: ExitStack, places: int, source: str = "127.0.0.1") -> dict[int, list]:
    """Take all places, and return the clients by who serves them."""
    clients: dict[int, list] = {pid: [] for pid in running.workers().values()}
    for _ in range(places):
        client = stack.enter_context(running.greeted(source))
        clients[running.serving(client)[0]].append(client)
    return clients


@pytest.mark.parametrize(
    "limits",
    [{"connections": 12, "connections_per_address": 0}, {"connections": 0, "connections_per_address": 12}],
    ids=["in all", "from one address"],
)
def test_limits_hold_for_all_workers_together(files: Files, stack: ExitStack, limits: dict[str, int]) -> None:
    """As many come in as with one process, wherever they land.

    Who leaves makes room, and so does a worker that dies.
    """
    files.config["limits"] |= limits
    running = stack.enter_context(files.run())
    clients = fill(running, stack, 12)
    for _ in range(8):
        assert b"BYE" in running.refused()
    elsewhere = []
    if limits["connections_per_address"]:
        elsewhere = running.serving(stack.enter_context(running.greeted("127.0.0.2")))
    # Somebody leaves.
    somebody = next(client for each in clients.values() for client in each)
    next(each for each in clients.values() if somebody in each).remove(somebody)
    somebody.socket.close()
    until("a place", lambda: _enters(running, stack, clients))
    running.refused()
    # A worker dies, and with it all of its connections; the other's stay.
    victim = max(clients, key=lambda pid: len(clients[pid]))
    lost = clients.pop(victim)
    running.kill(victim)
    running.log.wait_for(rf"connections lost: {len(lost) + elsewhere.count(victim)};")
    assert all(client.socket.recv(1) == b"" for client in lost)
    fill(running, stack, len(lost))
    running.refused()
    for client in clients.popitem()[1]:
        assert client.command("a NOOP").startswith(b"a OK")
    running.stop()


def _enters(running: Running, stack: ExitStack, clients: dict[int, list]) -> bool:
    client = stack.enter_context(running.dial())
    if client.greeting().startswith(b"* OK"):
        clients[running.serving(client)[0]].append(client)
        return True
    return False


# --- the log --------------------------------------------------------------------


def test_the_log_has_each_session_whole(running: Running) -> None:
    """Many sessions at once in all workers leave one line each, complete, in the one log."""
    name = "x" * 480
    threads, each = 8, 25

    def sessions(first: int) -> None:
        for number in range(first, first + each):
            with running.greeted() as client:
                client.command(f"a LOGIN {name}{number:05} secret")
                client.command("b LOGOUT")
                client.rest()

    started = [threading.Thread(target=sessions, args=(number * each,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    line = re.compile(
        rf"(?m)^\S+ \[mailroute\.session#info\] session \S+ ended: user={name}(\d{{5}}) "
        r'client=127\.0\.0\.1:\d+ listener="imap tcp:\d+:interface=127\.0\.0\.1" backend=east tls=none '
        r"lookup=\d\.\d{3}s "
        r"connect=\d\.\d{3}s login=\d\.\d{3}s in=10 out=\d+ duration=\d\.\d{3}s reason=.*$"
    )
    until("all lines", lambda: len(line.findall(running.log.text())) >= threads * each)
    running.stop()
    assert sorted(line.findall(running.log.text())) == [f"{number:05}" for number in range(threads * each)]


def test_whoever_watches_the_log_gets_the_workers_events(files: Files) -> None:
    """`twistd --logger` gets each session's fields, and from which worker they are."""
    (files.folder / "json_log.py").write_text(
        "from twisted.logger import jsonFileLogObserver\n"
        "def observer():\n"
        '    return jsonFileLogObserver(open("events.json", "a", buffering=1), recordSeparator="")\n'
    )
    files.write()
    env = twistd.environment(PYTHONPATH=f"{files.folder}{os.pathsep}{twistd.environment()['PYTHONPATH']}")
    with files.run("--logger", "json_log.observer", env=env) as running:
        for number in range(20):
            with running.greeted() as client:
                client.command(f"a LOGIN user{number} secret")
                client.command("b LOGOUT")
                client.rest()

        def events() -> list[dict]:
            lines = (files.folder / "events.json").read_text().splitlines()
            return [
                event
                for event in map(json.loads, lines)
                if event.get("log_namespace") == "mailroute.session" and event.get("user", "-") != "-"
            ]

        until("all events", lambda: len(events()) == 20)
        assert {event["user"] for event in events()} == {f"user{number}" for number in range(20)}
        assert {event["worker"] for event in events()} == {1, 2}
        assert all(event["bytes_in"] == 10 for event in events())


def test_the_log_can_be_rotated(files: Files) -> None:
    """SIGUSR1 to the process in the pid file begins another log file, and workers go on in that."""
    files.write()
    ended = twistd.run("mailroute", "--config", "mailroute.toml", folder=files.folder)
    assert ended.returncode == 0, ended
    pid = int((files.folder / "twistd.pid").read_text())
    log, old = files.folder / "twistd.log", files.folder / "twistd.log.1"
    try:
        until("twistd's start", lambda: twistd.catches_signals(pid))
        [*workers] = [process for process in strays(files.folder) if process != pid]
        assert len(workers) == 3
        for process in [*workers, pid]:  # as one does who signals the whole group
            os.kill(process, signal.SIGUSR1)
        until("the other log", old.exists)
        with socket.create_connection(("127.0.0.1", files.port), timeout=20) as client:
            client.sendall(b"a LOGIN alice@example.com wonderland\r\nb LOGOUT\r\n")
            while client.recv(4096):
                pass
        until("the session's line", lambda: "user=alice@example.com" in log.read_text())
        assert all(map(alive, workers))
    finally:
        os.kill(pid, signal.SIGTERM)
        until("the daemon's end", lambda: not (files.folder / "twistd.pid").exists())
    until("the workers' end", lambda: not strays(files.folder))


# --- what workers know ----------------------------------------------------------


def served_certificate(running: Running, authority: Authority) -> None:
    with running.dial() as client:
        client.handshake(authority.context())
        assert client.greeting().startswith(b"* OK")


@pytest.fixture
def secure(files: Files) -> Authority:
    """Have the only listener speak TLS, and return who has signed its certificate."""
    authority = Authority(files.folder / "authority")
    issued = authority.issue("localhost")
    issued.key.rename(files.folder / "key.pem")
    issued.chain.rename(files.folder / "cert.pem")
    files.config["listen"][0]["security"] = "tls"
    files.config["certificate"] = [{"chain": "cert.pem", "key": "key.pem"}]
    return authority


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_workers_need_not_be_able_to_read_the_files(files: Files, secure: Authority) -> None:
    """A key and a table that only root may read serve workers that run as nobody, those made later too."""
    for name in ("key.pem", "users.txt"):
        (files.folder / name).chmod(0o400)
    nobody = ("--uid", "65534", "--gid", "65534")
    with files.run(*nobody) as running:
        (files.folder / "mailroute.toml").chmod(0o400)
        for _ in range(2):
            for pid in running.workers().values():
                status = Path(f"/proc/{pid}/status").read_text()
                assert re.search(r"^Uid:\s65534\s65534\s65534\s65534$", status, re.M)
                assert re.search(r"^Gid:\s65534\s65534\s65534\s65534$", status, re.M)
            for _ in range(10):
                served_certificate(running, secure)
            for pid in list(running.workers().values()):
                running.kill(pid)
        running.stop()


def test_a_worker_started_later_has_the_same_settings(files: Files, secure: Authority) -> None:
    """What has changed on disk since mailroute was started changes nothing: no setting, and no key."""
    with files.run() as running:
        for name in ("mailroute.toml", "key.pem", "cert.pem"):
            (files.folder / name).write_text("something else")
        for pid in list(running.workers().values()):
            running.kill(pid)
        for _ in range(10):
            served_certificate(running, secure)
        running.stop()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_tls_session_is_resumed_by_any_worker(
    files: Files, secure: Authority, stack: ExitStack, version: ssl.TLSVersion
) -> None:
    """A ticket that one worker has given resumes at the others, and at one that is made later."""
    context = secure.context()
    context.minimum_version = context.maximum_version = version

    def connect(running: Running, session: ssl.SSLSession | None = None) -> tuple[int, Any]:
        client = stack.enter_context(running.dial())
        client.handshake(context, session=session)
        assert client.greeting().startswith(b"* OK")  # TLS 1.3's tickets come before it
        [worker] = running.serving(client)
        return worker, client.socket

    def resumes(running: Running, session: ssl.SSLSession) -> dict[int, bool]:
        """Offer a ticket until each worker has been met, and return for each whether it took it."""
        found: dict[int, bool] = {}
        while found.keys() != set(running.workers().values()):
            worker, client = connect(running, session)
            assert found.setdefault(worker, client.session_reused) == client.session_reused
        return found

    with files.run() as running:
        given: dict[int, ssl.SSLSession] = {}
        while len(given) < 2:
            worker, client = connect(running)
            assert not client.session_reused
            given[worker] = client.session
        assert all(session.has_ticket for session in given.values())
        for session in given.values():
            assert resumes(running, session) == dict.fromkeys(given, True)
        running.kill(min(given))
        later = resumes(running, given[min(given)])
        assert later.keys() != given.keys()
        assert all(later.values())
        running.stop()


def test_no_secret_is_where_others_can_read_it(files: Files) -> None:
    """Passwords and keys do not reach the workers by a command line, the environment or a file."""
    authority = Authority(files.folder / "authority")
    issued = authority.issue("localhost")
    (files.folder / "master").write_text("hunter2\n")
    files.config["certificate"] = [{"chain": str(issued.chain), "key": str(issued.key)}]
    files.config["listen"][0]["authenticate"] = "memory:alice:wonderland"
    files.config["backend"]["east"] |= {
        "login": "master",
        "master_user": "mailroute",
        "master_password_file": "master",
    }
    secrets = [b"hunter2", b"wonderland", issued.key.read_bytes().split(b"\n")[1]]
    before = set(files.folder.rglob("*"))
    with files.run() as running:
        for pid in (running.pid, running.nursery(), *running.workers().values()):
            for name in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert content
                assert not any(secret in content for secret in secrets)
        assert {path.name for path in files.folder.rglob("*")} - {path.name for path in before} <= {
            "mailroute.toml",
            "output",
        }
        assert not any(secret in running.log.text().encode() for secret in secrets)
        running.stop()


def test_a_plugin_that_the_parent_finds_is_found_by_workers(files: Files) -> None:
    """Workers look for plugins where the parent does: a source of routes from there works."""
    plugins = files.folder / "lib" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "everybody_plugin.py").write_text(PLUGIN)
    files.config["route"] = [{"source": "everybody", "where": "east"}]
    path = f"{files.folder / 'lib'}{os.pathsep}{twistd.environment()['PYTHONPATH']}"
    with files.run(env=twistd.environment(PYTHONPATH=path)) as running:
        with running.greeted() as client:
            assert client.command("a LOGIN alice secret").startswith(b"a OK")
        running.stop()


PLUGIN = """
from twisted.plugin import IPlugin
from zope.interface import implementer
from mailroute.events import Route
from mailroute.interfaces import IRouter, IRouteSource

@implementer(IRouter)
class Everybody:
    def __init__(self, where):
        self.where = where
    def route(self, lookup):
        return Route(self.where)

@implementer(IPlugin, IRouteSource)
class EverybodySource:
    name = "everybody"
    def router(self, options, context):
        return Everybody(context.backend(options, "where"))

everybody = EverybodySource()
"""
