"""``twistd mailroute``: its command line, and what it says when it cannot start."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import twistd
from servers.processes import accepts, free_port, wait_until
from twisted.python.usage import UsageError

from mailroute.demo.certificate import self_signed
from mailroute.events import Identity
from mailroute.tap import Options

# twistd in the foreground, and as a daemon.
WAYS = pytest.mark.parametrize("way", [["--nodaemon"], []], ids=["nodaemon", "daemon"])


class Files:
    """A folder with all that mailroute needs, to be spoilt by a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        chain, key = self_signed()
        (folder / "cert.pem").write_bytes(chain)
        (folder / "key.pem").write_bytes(key)
        (folder / "users.txt").write_text("alice@example.com east\n")
        self.write()

    def write(self, **changes: str) -> None:
        """Write the configuration with other values for some of its keys."""
        values = {"key": "key.pem", "file": "users.txt", "security": "tls", **changes}
        (self.folder / "mailroute.toml").write_text(
            f"""\
[[certificate]]
chain = "cert.pem"
key = "{values["key"]}"

[[listen]]
protocol = "imap"
endpoint = "tcp:{self.port}:interface=127.0.0.1"
security = "{values["security"]}"

[backend.east]
imap = "tcp:127.0.0.1:1"
security = "none"

[[route]]
source = "table"
file = "{values["file"]}"
"""
        )

    def run(self, way: list[str]) -> str:
        """Run twistd, insist that it does not start as it should not, and return what it says."""
        ended = twistd.run(*way, "mailroute", "--config", "mailroute.toml", folder=self.folder)
        assert ended.returncode == 1, ended
        assert "Traceback" not in ended.stdout + ended.stderr
        assert "Usage:" not in ended.stdout + ended.stderr
        # A daemon tells why it ends before it has removed the file.
        wait_until("the removal of the pid file", lambda: not (self.folder / "twistd.pid").exists())
        return ended.stdout + ended.stderr


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def occupied(files: Files) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", files.port)):
        yield files.port


# --- the command line -------------------------------------------------------


@pytest.mark.parametrize("line", [[], ["--demo", "--config", "x.toml"]], ids=["neither", "both"])
def test_one_of_config_and_demo_is_needed(line: list[str]) -> None:
    """Neither or both of --config and --demo is a mistake in the command line."""
    with pytest.raises(UsageError, match="--config FILE and --demo, or --listen with --to"):
        Options().parseOptions(line)


@pytest.mark.parametrize("line", [["--demo", "--demo-tls-port", "many"], ["--demo", "more"], ["--verbose"]])
def test_what_is_not_an_option_is_refused(line: list[str]) -> None:
    """Unknown options, arguments and ports that are no numbers are mistakes in the command line."""
    with pytest.raises(UsageError):
        Options().parseOptions(line)


@pytest.mark.parametrize("number", ["0", "65536", "-1", "two", "", "99999"])
def test_a_port_of_the_demo_that_cannot_be_is_a_mistake(number: str) -> None:
    """The option is named, before anything is started."""
    with pytest.raises(
        UsageError, match=f'^--demo-tls-port must be a number from 1 to 65535, not "{number}"$'
    ):
        Options().parseOptions(["--demo", "--demo-tls-port", number])


def test_the_demos_ports_are_apart() -> None:
    """Two options with one port are told by their names."""
    with pytest.raises(
        UsageError, match=r"^--demo-tls-port 1143 is --demo-starttls-port as well: give another$"
    ):
        Options().parseOptions(["--demo", "--demo-tls-port", "1143"])


@pytest.mark.parametrize("number", ["0", "65", "-1", "two", "1.5", ""])
def test_a_number_of_workers_that_cannot_be_is_a_mistake(number: str) -> None:
    """--workers takes what the file may say, and names it."""
    with pytest.raises(UsageError, match='--workers must be a number from 1 to 64, or "auto", not'):
        Options().parseOptions(["--config", "x.toml", "--workers", number])


def test_the_demo_is_one_process() -> None:
    """The demo has no workers, and does not pretend to."""
    with pytest.raises(UsageError, match="the demo is one process"):
        Options().parseOptions(["--demo", "--workers", "2"])


def test_the_command_line_overrules_the_file(files: Files) -> None:
    """--workers counts, whatever the file says."""
    for line, workers in (([], 1), (["--workers", "3"], 3), (["-w", "auto"], "auto")):
        options = Options()
        options.parseOptions(["--config", str(files.folder / "mailroute.toml"), *line])
        assert options.settings.workers == workers


FORWARD = ["--listen", "tcp:8080", "--to", "tcp:127.0.0.1:80"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (FORWARD[:2], "--listen and --to go together: give both"),
        (FORWARD[2:], "--listen and --to go together: give both"),
        ([*FORWARD, "--demo"], "give one of"),
        ([*FORWARD, "--config", "x.toml"], "give one of"),
        (["--demo", "--identity", "proxy-v1"], "--identity goes with --to"),
        (["--listen", "tcp:http", *FORWARD[2:]], '--listen: "tcp:http" is no endpoint'),
        (["--listen", "", *FORWARD[2:]], '--listen: "" is no endpoint'),
        ([*FORWARD[:2], "--to", "tcp:127.0.0.1"], '--to: "tcp:127.0.0.1" is no endpoint'),
        ([*FORWARD[:2], "--to", ""], '--to: "" is no endpoint'),
        ([*FORWARD, "--identity", "proxy"], '--identity: must be "native", "proxy-v1", "proxy-v2" or "none"'),
        ([*FORWARD, "--workers", "0"], "--workers must be a number"),
        (
            [*FORWARD, *FORWARD],
            "--listen is there twice: for several listeners, write a file, and give that with",
        ),
        ([*FORWARD, "--to", "tcp:127.0.0.1:81"], "--to is there twice: for several listeners, write a file"),
        (["--config", "a.toml", "-c", "b.toml"], "--config is there twice: give one"),
        (["a.toml"], '"a.toml" is no option: write --config a.toml to run a file, or --listen ENDPOINT --to'),
        (["check", "a.toml"], '"check" is no option of twistd\'s: that command is "mailroute check"'),
        (
            ["--listen", "fd:0:domain=INET", *FORWARD[2:], "--workers", "2"],
            '--listen: "fd:0:domain=INET" is no endpoint',
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_forwarder_is_asked_for_in_full(line: list[str], said: str) -> None:
    """Each mistake in a forwarder's options is told with the option's name."""
    with pytest.raises(UsageError) as error:
        Options().parseOptions(line)
    assert str(error.value).startswith(said)


def test_a_forwarder_needs_no_file() -> None:
    """The options make the settings that a file would: no routes, and no limit for a single address."""
    options = Options()
    options.parseOptions([*FORWARD, "--identity", "proxy-v2", "--workers", "2"])
    settings = options.settings
    (listener,) = settings.listeners
    assert (listener.name, listener.backend) == ("tcp tcp:8080", "to")
    backend = settings.backends["to"]
    assert (backend.endpoints["tcp"], backend.identity) == ("tcp:127.0.0.1:80", Identity.PROXY_V2)
    assert (settings.workers, settings.routes) == (2, ())
    assert (settings.limits.connections, settings.limits.connections_per_address) == (10000, 0)


def test_twistd_shows_how_to_use_it_after_a_bad_command_line(tmp_path: Path) -> None:
    """Twistd says what is wrong with the command line and what could be on it, and exits with status 1."""
    ended = twistd.run("--nodaemon", "mailroute", folder=tmp_path)
    assert ended.returncode == 1
    assert "--demo-tls-port" in ended.stdout
    assert "give one of --config FILE and --demo" in ended.stdout


def test_twistd_knows_mailroute(tmp_path: Path) -> None:
    """The plugin is found, and its help names every option."""
    assert re.search(
        r"^ +mailroute +A mail routing proxy", twistd.run("--help", folder=tmp_path).stdout, re.M
    )
    shown = twistd.run("mailroute", "--help", folder=tmp_path).stdout
    options = ("config", "listen", "to", "identity", "workers", "demo", "demo-starttls-port", "demo-tls-port")
    assert all(f"--{option}" in shown for option in options)


# --- what cannot be started -------------------------------------------------


@WAYS
def test_every_error_of_the_configuration_is_shown(files: Files, way: list[str]) -> None:
    """A bad configuration file is refused with all that is wrong with it, before anything is started."""
    files.write(security="maybe", file="missing.txt")
    said = files.run(way)
    assert "mailroute.toml" in said
    assert "maybe" in said
    assert "missing.txt" in said


@WAYS
def test_a_missing_configuration_is_named(files: Files, way: list[str]) -> None:
    """A file that is not there is named."""
    (files.folder / "mailroute.toml").unlink()
    assert re.search(r"mailroute\.toml.*No such file", files.run(way))


@WAYS
def test_a_missing_table_is_named(files: Files, way: list[str]) -> None:
    """A table that is not there is named."""
    (files.folder / "users.txt").unlink()
    assert "users.txt" in files.run(way)


@WAYS
def test_an_unreadable_key_is_named(files: Files, way: list[str]) -> None:
    """A key that may not be read, or is none, is named; nothing of its content is shown."""
    key = files.folder / "key.pem"
    key.chmod(0)
    if os.access(key, os.R_OK):  # root may read everything
        key.write_text("no key at all")
    said = files.run(way)
    assert "key.pem" in said
    assert "no key at all" not in said


@WAYS
def test_a_busy_port_is_named(files: Files, occupied: int, way: list[str]) -> None:
    """A port that somebody else listens on is named, and no pid file stays."""
    assert str(occupied) in files.run(way)


def cannot_listen(folder: Path, *line: str) -> str:
    """Run twistd, insist that it cannot listen, and return its reason without the listener's name."""
    ended = twistd.run("--nodaemon", "mailroute", *line, folder=folder)
    assert ended.returncode == 1, ended
    said = ended.stdout + ended.stderr
    assert "Traceback" not in said
    return re.search(r"mailroute: cannot listen on \S+ \S+: (.*)", said)[1].strip()


def test_a_busy_port_is_told_by_what_was_typed(files: Files, occupied: int) -> None:
    """Who has written no file is told the option to change, who has one of the listener's endpoint."""
    busy = "[Errno 98] Address already in use: stop what uses it, or change"
    line = ["--listen", f"tcp:{occupied}:interface=127.0.0.1", "--to", "tcp:127.0.0.1:1"]
    for workers in ("1", "2"):
        assert cannot_listen(files.folder, *line, "--workers", workers) == f"{busy} --listen"
    assert cannot_listen(files.folder, "--config", "mailroute.toml") == f"{busy} the listener's endpoint"
    others = [f"--demo-{name}-port={free_port()}" for name in ("starttls", "pop3", "submission", "smtp")]
    demo = cannot_listen(files.folder, "--demo", f"--demo-tls-port={occupied}", *others)
    assert demo == f"{busy} --demo-tls-port"


def test_a_socket_that_cannot_be_made_is_told_by_its_folder(tmp_path: Path) -> None:
    """A UNIX socket's folder that is missing is named, and whatever is in the socket's place."""
    (tmp_path / "file").touch()
    to = ["--to", "tcp:127.0.0.1:1"]
    missing = (
        f"there is no folder {tmp_path}/none: make it, for the user that runs mailroute, or change --listen"
    )
    for lockfile in ("", ":lockfile=0"):
        assert cannot_listen(tmp_path, "--listen", f"unix:{tmp_path}/none/x{lockfile}", *to) == missing
    taken = f"{tmp_path}/file is there already, and is no socket: remove it, or change --listen"
    assert cannot_listen(tmp_path, "--listen", f"unix:{tmp_path}/file", *to) == taken


def test_a_socket_that_somebody_has_is_told(tmp_path: Path) -> None:
    """A UNIX socket of a program that runs is not taken away, and the message says whose turn it is."""
    line = ["--listen", f"unix:{tmp_path}/x", "--to", "tcp:127.0.0.1:1"]
    with twistd.Twistd("mailroute", *line, folder=tmp_path, ports=[]) as running:
        wait_until("the socket", (tmp_path / "x").is_socket)
        elsewhere = tmp_path / "elsewhere"  # a folder has one pid file
        elsewhere.mkdir()
        said = cannot_listen(elsewhere, *line)
        running.stop()
    assert said == "another program listens there: stop it, or change --listen"


def test_a_socket_that_systemd_has_not_given_is_told(tmp_path: Path) -> None:
    """It can be missed only when mailroute starts, and then the message says who has to start it."""
    said = cannot_listen(tmp_path, "--listen", "systemd:domain=INET:index=0", "--to", "tcp:127.0.0.1:1")
    assert said.endswith("have systemd start mailroute, with a .socket unit beside its service")


def test_the_log_of_a_daemon_tells_of_a_busy_port(files: Files, occupied: int) -> None:
    """What a daemon cannot say to a terminal in full is in its log."""
    files.run([])
    log = files.folder / "twistd.log"
    # A busy machine may write the last line after the pid file is gone.
    reason = re.compile(rf"{occupied}.*in use")
    wait_until("the reason in the log", lambda: reason.search(log.read_text()) is not None)


# --- what can ---------------------------------------------------------------


def test_it_runs_as_a_daemon(files: Files) -> None:
    """Twistd returns once mailroute listens; a signal to the process in twistd.pid ends it."""
    ended = twistd.run("mailroute", "--config", "mailroute.toml", folder=files.folder)
    assert ended.returncode == 0, ended
    pid_file = files.folder / "twistd.pid"
    pid = int(pid_file.read_text())
    try:
        assert accepts("127.0.0.1", files.port)
        wait_until("twistd's start", lambda: twistd.catches_signals(pid))
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until("the daemon's end", lambda: not pid_file.exists())
    wait_until("the port to be free", lambda: not accepts("127.0.0.1", files.port))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_files_are_read_before_privileges_are_given_up(files: Files) -> None:
    """A key that only root may read serves a mailroute that runs as another user."""
    (files.folder / "key.pem").chmod(stat.S_IRUSR)
    nobody = ["--uid", "65534", "--gid", "65534", "--pidfile="]
    with twistd.Twistd(
        *nobody, "mailroute", "--config", "mailroute.toml", folder=files.folder, ports=[files.port]
    ) as running:
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert re.search(r"^Uid:\s65534\s65534\s65534", status, re.M)
        running.stop()
