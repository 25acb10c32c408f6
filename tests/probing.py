"""Running ``mailroute probe`` as a user does, and backends that nobody would want."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
from servers.proxy import toml
from twistd import environment

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "probe.schema.json").read_text(encoding="utf-8"))


def probe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with warnings for errors; whatever comes of it, it shows no control character."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mailroute.cli", "probe", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert all(letter.isprintable() for letter in (ended.stdout + ended.stderr).replace("\n", ""))
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def as_json(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the report, which is as its schema has it."""
    ended = probe(folder, *arguments, "--json")
    assert not ended.stderr, ended.stderr
    report = json.loads(ended.stdout)
    jsonschema.validate(report, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert ended.returncode == (0 if report["ok"] else 1)
    return ended.returncode, report


def of_backend(folder: Path, *arguments: str, **keys: object) -> tuple[int, dict[str, Any]]:
    """Probe a backend, named east, that a configuration of nothing else describes."""
    (folder / "mailroute.toml").write_text(toml({"backend": {"east": keys}}))
    return as_json(folder, "east", *arguments)


def only(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was found out about the only protocol."""
    (service,) = report["services"]
    return service


def said(report: Mapping[str, Any]) -> list[str]:
    """Return the findings as they are shown."""
    return [
        f"{finding['what']}: {finding['reason']}: {finding['remedy']}"
        for service in report["services"]
        for finding in service["findings"]
    ]


Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(serve: Serve) -> Iterator[int]:
    """Serve each connection in a thread of its own, and yield the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    open_now: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            serve(connection)

    def run() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            open_now.append(connection)
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=run)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def resetting(connection: socket.socket) -> None:
    """Answer with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(connection: socket.socket) -> None:
    """Take everything, and say nothing."""
    while connection.recv(65536):
        pass


def saying(data: bytes) -> Serve:
    """Say this, and then nothing."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(data)
        silent(connection)

    return serve


def endless(start: bytes, unit: bytes) -> Serve:
    """Say something that has no end."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(unit * 1000)

    return serve
