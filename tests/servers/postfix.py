"""A private Postfix: a mail server of Debian's package with a queue, a configuration and a port of its own.

Its master has to be root, which the mail that it carries never is.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from pathlib import Path

from servers.certificates import Certificate
from servers.processes import (
    Instance,
    Log,
    ServerProcess,
    Watchdog,
    accepts,
    free_port,
    group_is_gone,
    wait_until,
)
from servers.programs import lacking, program

PACKAGE = "postfix"

_SERVICES = """\
{services}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def asking(socket: Path) -> dict[str, str]:
    """Return the settings that let users log in whose passwords a Dovecot knows, at its socket."""
    return {
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": str(socket),
    }


class Postfix(Instance):
    """One instance, which takes mail on ``port``; use it as a context manager.

    ``settings`` are of main.cf, beside those that keep it to itself.  With a
    ``certificate`` it offers STARTTLS on ``port``, and there are ``tls_port``
    (TLS from the first byte) and ``port_behind_proxy`` (a PROXY header comes
    first) as well.
    """

    def __init__(self, certificate: Certificate | None = None, **settings: str) -> None:
        if os.geteuid():
            lacking("the root user, whom Postfix needs,", "sudo make test")
        self.binary = program("postfix", PACKAGE)
        self.folder = Path(tempfile.mkdtemp(prefix="postfix-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.log = Log(self.folder / "log" / "log")
        self.port = free_port()
        self.tls_port = self.port_behind_proxy = 0
        self._services = {self.port: ""}
        self._settings = settings
        if certificate is not None:
            self.tls_port, self.port_behind_proxy = free_port(), free_port()
            self._services[self.tls_port] = " -o smtpd_tls_wrappermode=yes"
            self._services[self.port_behind_proxy] = " -o smtpd_upstream_proxy_protocol=haproxy"
            self._settings |= {
                "smtpd_tls_cert_file": str(certificate.chain),
                "smtpd_tls_key_file": str(certificate.key),
                "smtpd_tls_security_level": "may",
            }
        self._process: ServerProcess | None = None
        self._watchdog: Watchdog | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        for name in ("queue", "data", "log"):
            (self.folder / name).mkdir()
        owner = pwd.getpwnam("postfix")
        os.chown(self.folder / "data", owner.pw_uid, owner.pw_gid)
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.folder / "queue"),
            "data_directory": str(self.folder / "data"),
            "maillog_file": str(self.log.path),
            "maillog_file_prefixes": str(self.folder),
            "myhostname": "mx.example.net",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "alias_maps": "",
            "alias_database": "",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            **self._settings,
        }
        config = self.folder / "config"
        config.mkdir()
        (config / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        services = "\n".join(
            f"127.0.0.1:{port} inet n - n - - smtpd{options}" for port, options in self._services.items()
        )
        (config / "master.cf").write_text(_SERVICES.format(services=services))
        # The master is in a session of its own, and no child of the command that the kernel would end.
        self._watchdog = Watchdog(self._pid_file)
        self._process = ServerProcess([self.binary, "-c", str(config), "start-fg"], self.folder / "output")
        if wait_until("Postfix's start", self._state) != "listens":
            output = Log(self.folder / "output").text()
            raise AssertionError(f"Postfix does not start:\n{output}\n{self.log.text()}")

    def _state(self) -> str:
        if not self._process.running():
            return "ended"
        return "listens" if all(accepts("127.0.0.1", port) for port in self._services) else ""

    @property
    def pid(self) -> int:
        """Its master, whose process group all belong to that do its work.

        It is not the group of the command that has started it: the master makes one of its own.
        """
        return int(self._pid_file.read_text())

    @property
    def _pid_file(self) -> Path:
        return self.folder / "queue" / "pid" / "master.pid"

    def kill(self) -> None:
        """End it, and all its sessions, without a word."""
        self._signal(signal.SIGKILL)
        self._process.kill()

    def _signal(self, number: signal.Signals) -> None:
        master = self.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(master, number)
        wait_until("the end of Postfix's processes", lambda: group_is_gone(master))

    def stop(self) -> None:
        """End it, and remove all that it has written."""
        if self._watchdog:
            self._watchdog.stop()
        if self._process:
            if self._process.running():
                self._signal(signal.SIGTERM)
            self._process.stop()
        shutil.rmtree(self.folder)
