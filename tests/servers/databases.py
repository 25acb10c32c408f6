"""A private PostgreSQL and a private MariaDB, of Debian's packages, in folders and on ports of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from servers.certificates import Certificate
from servers.processes import PATIENCE, Instance, Log, ServerProcess, accepts, free_port, wait_until
from servers.programs import lacking, program

PASSWORD = "s3cret/'\"\\%:@ ü"
"""The password of the databases' users."""


class Database(Instance):
    """One server; use it as a context manager, or stop it.

    It listens on ``port`` of the loopback and on a UNIX socket in ``folder``.
    """

    kind = ""
    owner = ""
    """The user that it runs as, for it refuses root."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.port = free_port()
        # Not in pytest's: a socket's path has to be short, and the server's user has to get there.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.log = Log(self.folder / "log")
        self._process: ServerProcess | None = None
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam(self.owner)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.certificate: Certificate | None = None
        if certificate is not None:
            self.certificate = Certificate(self._own(certificate.chain), self._own(certificate.key))

    def _own(self, file: Path) -> Path:
        """Return a copy that nobody but the server's user may read."""
        copy = self.folder / file.name
        copy.touch(0o600)
        copy.write_bytes(file.read_bytes())
        if self._as:
            os.chown(copy, self._as["user"], self._as["group"])
        return copy

    def set_up(self) -> None:
        """Start it for the first time, with all that it is to have."""
        self.make()
        self.start()
        self.furnish()

    def make(self) -> None:
        """Make its files."""

    def furnish(self) -> None:
        """Make its database and its user."""

    def command(self) -> list[str]:
        """Return what starts it."""
        raise NotImplementedError

    def run(self, command: list[str], text: str = "") -> str:
        """Run a program as the server's user."""
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, cwd=self.folder, **self._as
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        """Start it, or start it again, and wait until it listens."""
        self._process = ServerProcess(self.command(), self.log.path, cwd=self.folder, **self._as)
        wait_until(f"{self.kind}'s start", self._ready)

    def _ready(self) -> bool:
        assert self._process.running(), self.log.text()
        return accepts("127.0.0.1", self.port) and self.answers()

    def answers(self) -> bool:
        """Tell whether it takes questions."""
        return True

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes, those that have gone into sessions of their own too."""
        for pid in [self.pid, *_children(self.pid)]:
            os.kill(pid, number)

    def kill(self) -> None:
        """End it without a word."""
        children = _children(self.pid)
        self._process.kill()
        # PostgreSQL's are in sessions of their own, and end when they see that the first one is gone.
        wait_until("the end of its children", lambda: not any(map(_is_there, children)))

    def stop(self) -> None:
        """End it and remove all it has written."""
        try:
            if self._process:
                self.end()
                self._process.stop()
        finally:
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """Ask it to end, where SIGTERM would have it wait for its clients."""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Postgresql(Database):
    """A PostgreSQL with a database ``mail`` and a user ``mailroute`` who needs a password."""

    kind = "postgresql"
    owner = "postgres"

    def make(self) -> None:
        """Make the cluster; everybody but its owner needs a password, also at the UNIX socket."""
        self._programs = _newest_postgresql()
        self.data = self.folder / "data"
        self.run(
            [
                str(self._programs / "initdb"),
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
                "--username=postgres",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "-D",
                str(self.data),
            ]
        )
        (self.data / "pg_hba.conf").write_text(
            "local all postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )

    def command(self) -> list[str]:
        """Return what starts it."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
        }
        if self.certificate is not None:
            chain, key = str(self.certificate.chain), str(self.certificate.key)
            settings |= {"ssl": "on", "ssl_cert_file": chain, "ssl_key_file": key}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.data), *options]

    def answers(self) -> bool:
        """Tell whether it has recovered from its last end."""
        asked = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        return not subprocess.run(asked, check=False).returncode

    def end(self) -> None:
        """Ask it to end without waiting for its clients."""
        if self._process.running():
            self._process.popen.send_signal(signal.SIGINT)
            self._process.popen.wait(PATIENCE)

    def furnish(self) -> None:
        """Make its database and its user."""
        quoted = PASSWORD.replace("'", "''")
        self.execute(f"create role mailroute login password '{quoted}'", "postgres")
        self.execute("create database mail owner mailroute", "postgres")

    def execute(self, statements: str, database: str = "mail") -> str:
        """Do something as the administrator."""
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-d", database]
        client = str(self._programs / "psql")
        return self.run([client, *where, "-v", "ON_ERROR_STOP=1", "-qAt", "-f", "-"], statements)


def _newest_postgresql() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        lacking("PostgreSQL (Debian package postgresql)", "tools/install-debian-packages postgresql")
    return found[-1].parent


class Mariadb(Database):
    """A MariaDB with a database ``mail`` and a user ``mailroute`` who needs a password."""

    kind = "mariadb"
    owner = "mysql"

    def make(self) -> None:
        """Make its files."""
        install = program("mariadb-install-db", "mariadb-server")
        self.data = self.folder / "data"
        self.run(
            [
                install,
                "--no-defaults",
                f"--datadir={self.data}",
                # One that starts removes the temporary tables that it finds there, others' as well.
                f"--tmpdir={self.folder}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ]
        )

    def command(self) -> list[str]:
        """Return what starts it."""
        tls = []
        if self.certificate is not None:
            tls = [f"--ssl-cert={self.certificate.chain}", f"--ssl-key={self.certificate.key}"]
        return [
            program("mariadbd", "mariadb-server"),
            "--no-defaults",
            f"--datadir={self.data}",
            f"--tmpdir={self.folder}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            f"--socket={self.folder / 'socket'}",
            "--innodb-flush-method=nosync",
            *tls,
        ]

    def furnish(self) -> None:
        """Make its database and its user."""
        quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        self.execute(
            "create database mail character set utf8mb4;"
            f"create user mailroute@localhost identified by '{quoted}';"
            "grant all on mail.* to mailroute@localhost",
            "mysql",
        )

    def execute(self, statements: str, database: str = "mail") -> str:
        """Do something as the administrator."""
        client = program("mariadb", "mariadb-server")
        where = [f"--socket={self.folder / 'socket'}", "--user=root", "--default-character-set=utf8mb4"]
        # Its socket is in a folder of ours: newer clients would check a certificate even so.
        return self.run([client, "--no-defaults", "--skip-ssl", *where, database], statements)


SERVERS: Mapping[str, type[Database]] = {"postgresql": Postgresql, "mariadb": Mariadb}
