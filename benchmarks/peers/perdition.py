"""Perdition."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from benchmarks.peers.base import Leg, Peer, said


class Perdition(Peer):
    """Perdition, which forks for each session."""

    name = "perdition"
    title = "Perdition"
    binary = "perdition"
    template = "perdition.conf"
    share = 0.1  # a login takes it milliseconds
    most_sessions = 500  # each is a process

    def version(self) -> str:  # noqa: D102
        return said(r"version ([\d.]+)", self.path(), "--help")

    def values(self, leg: Leg) -> dict[str, object]:  # noqa: D102
        modes = [*(["ssl_listen"] if leg.in_front else []), *(["ssl_outgoing"] if leg.behind else [])]
        return {
            "PROTOCOL": "IMAP4S" if leg.in_front else "IMAP4",
            "SSL_MODE": ",".join(modes) or "none",
            "USER": pwd.getpwuid(os.geteuid()).pw_name,
            "GROUP": grp.getgrgid(os.getegid()).gr_name,
        }

    def command(self, folder: Path) -> list[str]:  # noqa: D102
        return [self.path(), "--no_daemon", "--config_file", str(folder / self.template)]
