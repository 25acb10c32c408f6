"""nginx with its mail module."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from benchmarks.peers.base import Leg, NotHere, Peer, fill_in, said
from benchmarks.processes import Program, free_port

MODULES = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"))
"""Where the mail module may be."""


class Nginx(Peer):
    """nginx, and another one that answers its questions and is not counted.

    ``buffers``: the size of the buffer for each direction, in nginx's words; "" for its default.
    ``workers``: how many processes carry the mail.
    """

    name = "nginx"
    title = "nginx mail"
    binary = "nginx"
    template = "nginx.conf"
    legs = (Leg.PLAIN, Leg.TLS)  # it cannot speak TLS with a mail server

    def __init__(self, buffers: str = "", workers: int = 1) -> None:
        self._buffers = buffers
        self.workers = workers
        self.loads = ("workers",) if workers > 1 else (*Peer.loads, "workers")
        if workers > 1:
            self.name = f"nginx-{workers}"
            self.title = f"nginx mail, {workers} workers"
        if buffers:
            self.name = f"nginx-{buffers}"
            self.title = f"nginx mail, {buffers} buffers"
            self.loads = ("bulk", "noop")

    def version(self) -> str:  # noqa: D102
        self._modules()
        return said(r"nginx/([\d.]+)", self.path(), "-v")

    def values(self, leg: Leg) -> dict[str, object]:  # noqa: D102
        return {
            "MODULES": self._modules(),
            "WORKERS": self.workers,
            "AUTH_PORT": free_port(),
            "SSL": " ssl" if leg.in_front else "",
            "BUFFERS": f"proxy_buffer {self._buffers}; imap_client_buffer {self._buffers};"
            if self._buffers
            else "",
        }

    def command(self, folder: Path) -> list[str]:  # noqa: D102
        return _command(self.path(), folder, self.template)

    @contextlib.contextmanager
    def helpers(  # noqa: D102
        self, folder: Path, values: Mapping[str, object], cores: Collection[int]
    ) -> Iterator[None]:
        fill_in("nginx-auth.conf", folder, values)
        command = _command(self.path(), folder, "nginx-auth.conf")
        with Program(command, folder, "auth-output", cores) as auth:
            auth.wait_for(int(str(values["AUTH_PORT"])))
            yield

    def _modules(self) -> Path:
        for folder in MODULES:
            if (folder / "ngx_mail_module.so").exists():
                return folder
        raise NotHere("nginx has no mail module: benchmarks/debian-packages.txt says what to install")


def _command(binary: str, folder: Path, configuration: str) -> list[str]:
    return [
        binary,
        "-p",
        str(folder),
        "-e",
        str(folder / "start.log"),
        "-c",
        str(folder / configuration),
    ]
