"""A first figure: CPU time of mailroute's processes for a login and logout.

    python3 -m benchmarks [TWISTD]

TWISTD runs the mailroute to measure; without it the one on the PATH does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / ".build"

CONFIGURATION = """
[[certificate]]
chain = "cert.pem"
key = "key.pem"

[[listen]]
protocol = "imap"
endpoint = "tcp:{plain}:interface=127.0.0.1"
security = "none"

[[listen]]
protocol = "imap"
endpoint = "tcp:{tls}:interface=127.0.0.1"
security = "tls"

[backend.mock]
imap = "tcp:127.0.0.1:{backend}"
security = "none"

[[route]]
source = "default"
backend = "mock"
"""


def build() -> None:
    """Compile the two programs and make a certificate."""
    BUILD.mkdir(exist_ok=True)
    for name in ("backend", "load"):
        source, target = HERE / "c" / f"{name}.c", BUILD / name
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-std=gnu11", "-o", target, source, "-lssl", "-lcrypto"]
        subprocess.run(command, check=True)
    if not (BUILD / "key.pem").exists():
        request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        files = ["-keyout", "key.pem", "-out", "cert.pem"]
        subprocess.run([*request.split(), *names, *files], cwd=BUILD, check=True, stderr=subprocess.DEVNULL)


def cpu(pid: int) -> int:
    """Nanoseconds of CPU that a process has used, by its CPU clock."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    build()
    twistd = sys.argv[1] if len(sys.argv) > 1 else "twistd"
    backend = subprocess.Popen([BUILD / "backend"], stdout=subprocess.PIPE, text=True)
    port = int(backend.stdout.readline().split()[1])
    with tempfile.TemporaryDirectory() as folder:
        ports = {"plain": free_port(), "tls": free_port()}
        Path(folder, "mailroute.toml").write_text(CONFIGURATION.format(backend=port, **ports))
        for name in ("cert.pem", "key.pem"):
            Path(folder, name).write_bytes((BUILD / name).read_bytes())
        command = [twistd, "-n", "--pidfile=", "--logfile=log", "mailroute", "--config", "mailroute.toml"]
        proxy = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
        try:
            while "listening: imap tcp:%d" % ports["tls"] not in read(Path(folder, "log")):
                time.sleep(0.05)
            for name, options in (("plain", []), ("tls", ["--tls"])):
                generator = [BUILD / "load", *options, str(ports[name])]
                subprocess.run([*generator, "login 8 500"], check=True, stdout=subprocess.DEVNULL)
                before = cpu(proxy.pid)
                result = subprocess.run([*generator, "login 8 2000"], check=True, stdout=subprocess.PIPE)
                units = json.loads(result.stdout)["units"]
                print(f"login and logout, {name}: {(cpu(proxy.pid) - before) / units / 1000:.0f} µs of CPU")
        finally:
            for process in (proxy, backend):
                process.send_signal(signal.SIGTERM)
                process.wait()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


main()
