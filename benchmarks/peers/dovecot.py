"""Dovecot as an IMAP proxy."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from benchmarks.peers.base import Leg, NotHere, Peer, said


class Dovecot(Peer):
    """Dovecot, in its high-performance login mode."""

    name = "dovecot"
    title = "Dovecot proxy"
    binary = "dovecot"
    template = "dovecot.conf"

    def version(self) -> str:  # noqa: D102
        version = said(r"^(\d+\.\d+\.\d+)", self.path(), "--version")
        if not version.startswith("2.3."):
            raise NotHere(f"this is Dovecot {version}, and the configuration here is for 2.3")
        return version

    def values(self, leg: Leg) -> dict[str, object]:  # noqa: D102
        root = os.geteuid() == 0
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        # Who is not root cannot become anybody else.
        own = f"default_internal_user = {user}\ndefault_internal_group = {group}\ndefault_login_user = {user}"
        return {
            "SSL_IN": "yes" if leg.in_front else "no",
            # The backend's name is what its certificate is for.
            "SSL_OUT": "ssl=yes host=localhost hostip=127.0.0.1" if leg.behind else "host=127.0.0.1",
            "USERS": "" if root else own,
            "CHROOT": "" if root else "chroot =",
            # What verifies the backend's certificate would be out of sight.
            "LOGIN_CHROOT": "chroot =" if leg.behind or not root else "",
        }

    def command(self, folder: Path) -> list[str]:  # noqa: D102
        return [self.path(), "-F", "-c", str(folder / self.template)]
