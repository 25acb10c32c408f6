"""HAProxy in TCP mode."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.base import Leg, Peer, said


class HAProxy(Peer):
    """HAProxy, which opens a pipe to the backend and knows nothing of logins."""

    name = "haproxy"
    title = "HAProxy TCP"
    binary = "haproxy"
    template = "haproxy.cfg"

    def version(self) -> str:  # noqa: D102
        return said(r"version (\d+\.\d+\.\d+)", self.path(), "-v")

    def values(self, leg: Leg) -> dict[str, object]:  # noqa: D102
        verify = "ssl verify required ca-file backend-ca.pem verifyhost localhost"
        return {
            "SSL_IN": "ssl crt both.pem" if leg.in_front else "",
            "SSL_OUT": verify if leg.behind else "",
        }

    def command(self, folder: Path) -> list[str]:  # noqa: D102
        # It wants the certificate and its key in one file.
        certificate = (folder / "cert.pem").read_text()
        (folder / "both.pem").write_text(certificate + (folder / "key.pem").read_text())
        (folder / "backend-ca.pem").write_text(certificate)
        return [self.path(), "-db", "-f", str(folder / self.template)]
