"""HAProxy in TCP mode."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.base import Leg, Peer, said


class HAProxy(Peer):
    """HAProxy, which opens a connection to the backend and knows nothing of logins.

    It lets the kernel move the bytes where it thinks that this pays, which it
    does not for the loads here.  With ``splice`` it always does, through pipes
    of 1 MiB; that is possible only where both connections are in plain.
    """

    name = "haproxy"
    title = "HAProxy TCP"
    binary = "haproxy"
    template = "haproxy.cfg"

    def __init__(self, splice: bool = False) -> None:
        self._splice = splice
        if splice:
            self.name = "haproxy-splice"
            self.title = "HAProxy TCP, splicing"
            self.legs = (Leg.PLAIN,)
            self.loads = ("login", "bulk", "noop")

    def version(self) -> str:  # noqa: D102
        return said(r"version (\d+\.\d+\.\d+)", self.path(), "-v")

    def values(self, leg: Leg) -> dict[str, object]:  # noqa: D102
        verify = "ssl verify required ca-file backend-ca.pem verifyhost localhost"
        always = "option splice-request\n    option splice-response"
        return {
            "SPLICE": always if self._splice else "option splice-auto",
            "PIPES": "tune.pipesize 1048576" if self._splice else "",
            "SSL_IN": "ssl crt both.pem" if leg.in_front else "",
            "SSL_OUT": verify if leg.behind else "",
        }

    def command(self, folder: Path) -> list[str]:  # noqa: D102
        # It wants the certificate and its key in one file.
        certificate = (folder / "cert.pem").read_text()
        (folder / "both.pem").write_text(certificate + (folder / "key.pem").read_text())
        (folder / "backend-ca.pem").write_text(certificate)
        return [self.path(), "-db", "-f", str(folder / self.template)]
