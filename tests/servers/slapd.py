"""OpenLDAP's server, with a directory of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from servers.certificates import Certificate
from servers.processes import Log, ServerProcess, accepts, free_port, wait_until
from servers.programs import program

BASE = "dc=example,dc=org"
SEARCHER = f"cn=searcher,{BASE}"
SECRET = "se4rch secret"

_CONFIGURATION = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/misc.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/pid
TLSCertificateFile {chain}
TLSCertificateKeyFile {key}
{more}
database mdb
suffix "{base}"
directory {folder}/data
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{searcher}" read by anonymous auth by * none
"""

_ENTRIES = f"""\
dn: {BASE}
objectClass: dcObject
objectClass: organization
o: example
dc: example

dn: {SEARCHER}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: searcher
userPassword: {SECRET}

dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: ou=elsewhere,ou=people,{BASE}
objectClass: referral
objectClass: extensibleObject
ou: elsewhere
ref: ldap://192.0.2.1/ou=elsewhere,{BASE}
"""


class Slapd:
    """One server: in the clear, and with STARTTLS, on ``port``, with TLS from the first byte on ``tls``."""

    def __init__(self, certificate: Certificate, more: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slapd-"))
        self._command = program("slapd", "slapd")
        self.port, self.tls = free_port(), free_port()
        (self.folder / "data").mkdir()
        self._conf = self.folder / "slapd.conf"
        self._conf.write_text(
            _CONFIGURATION.format(
                folder=self.folder,
                chain=certificate.chain,
                key=certificate.key,
                base=BASE,
                searcher=SEARCHER,
                more=more,
            )
        )
        self._load(_ENTRIES)

    def _load(self, ldif: str) -> None:
        command = [program("slapadd", "slapd"), "-f", str(self._conf)]
        done = subprocess.run(command, input=ldif.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def add(self, name: str, password: str = "", *, entry: str = "", **attributes: str) -> None:
        """Add a person by that name, before the start."""
        attributes = {"cn": name, "userPassword": password} | attributes
        if "@" in name:
            attributes["mail"] = name
        lines = [f"dn: uid={entry or name},ou=people,{BASE}", "objectClass: inetOrgPerson"]
        lines += ["objectClass: inetLocalMailRecipient", "sn: x"]
        for key, value in attributes.items():
            lines += [f"{key}:: {_base64(each)}" for each in value.split("\n") if each]
        self._load("\n".join(lines) + "\n")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start it, on the ports that it had."""
        # The second address is one that the certificate is not for.
        hosts = ("127.0.0.1", "127.0.0.2")
        listeners = " ".join(f"ldap://{host}:{self.port}/ ldaps://{host}:{self.tls}/" for host in hosts)
        command = [self._command, "-d", "256", "-h", listeners, "-f", str(self._conf)]
        self.log = Log(self.folder / "log")
        self._process = ServerProcess(command, self.folder / "log")
        wait_until("slapd's start", self._runs)

    def stop(self) -> None:
        """End it."""
        self._process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()

    def hang(self, hangs: bool = True) -> None:
        """Let it not answer any more, or answer again."""
        os.kill(int((self.folder / "pid").read_text()), signal.SIGSTOP if hangs else signal.SIGCONT)

    def _runs(self) -> bool:
        assert self._process.running(), Log(self.folder / "log").text()
        return all(accepts("127.0.0.1", port) for port in (self.port, self.tls))


def _base64(value: str) -> str:
    import base64

    return base64.b64encode(value.encode()).decode("ascii")
