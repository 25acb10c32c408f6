"""A private Dovecot: a mail server of Debian's packages in a folder and on ports of its own.

It knows the configuration of Dovecot 2.3 (Debian 12) and of 2.4 (Debian 13),
and runs as root or as anybody else.
"""

from __future__ import annotations

import base64
import grp
import hmac
import imaplib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from attrs import field, frozen

from servers.accounts import Account
from servers.certificates import Certificate
from servers.processes import Instance, Log, ServerProcess, accepts, free_port, wait_until
from servers.programs import program

PACKAGE = "dovecot-imapd"
LMTP_PACKAGE = "dovecot-lmtpd"
SUBMISSION_PACKAGE = "dovecot-submissiond"
SIEVE_PACKAGE = "dovecot-managesieved"

Settings = dict[str, "str | Settings | list[Settings]"]


@frozen(kw_only=True)
class Terms:
    """How one instance differs from the usual one.

    ``ssl``: Dovecot's own word: yes, no or required.  ``cleartext``: logins
    without TLS are taken.  ``trusted``: the networks whose word on the true
    client is taken, by ID and by PROXY headers.  ``failure_delay``: how long
    Dovecot sits on a failed login.  ``per_user_and_address``: its limit of
    connections, 0 for none.  ``master``: may log in as anybody.  ``tokens``: the
    secret that signs the OAuth tokens it takes, if any.  ``lmtp``: mail is
    delivered to it.  ``pop3``: it serves POP3 too.  ``auth_sockets``: others may
    ask its auth service, at ``auth-client`` and ``auth-master`` in ``run``.
    ``username_format``: ``local`` has it know its users by their local parts.
    ``relay``: the port of the mail server to which it passes on what is
    submitted to it, 0 if nothing is.  ``sieve``: it serves ManageSieve too.
    """

    certificate: Certificate | None = None
    ssl: str = "yes"
    cleartext: bool = True
    trusted: tuple[str, ...] = ("127.0.0.0/8",)
    mechanisms: tuple[str, ...] = ("plain", "login")
    address: str = "127.0.0.1"
    failure_delay: str = "0"
    per_user_and_address: int = 0
    master: Account | None = None
    tokens: bytes = field(default=b"", repr=False)
    lmtp: bool = False
    pop3: bool = False
    auth_sockets: bool = False
    username_format: str = ""
    relay: int = 0
    sieve: bool = False


class Dovecot(Instance):
    """One instance; use it as a context manager, or stop it.

    The ports are ``imap`` (STARTTLS, unless without TLS), ``imaps`` (TLS from
    the first byte) and ``imap_behind_proxy`` and ``imaps_behind_proxy`` (the
    same, and a PROXY header comes first); where mail is delivered, ``lmtp``
    (STARTTLS) and ``lmtp_behind_proxy`` as well, and where there is POP3,
    ``pop3``, ``pop3s`` and ``pop3_behind_proxy``; where mail is submitted,
    ``submission``, ``submissions`` and ``submission_behind_proxy``; where there
    is ManageSieve, ``sieve`` (STARTTLS) and ``sieve_behind_proxy``.  Other mail
    servers may ask it for passwords at the socket ``sasl``.
    """

    def __init__(self, terms: Terms, *accounts: Account) -> None:
        self.terms = terms
        self.host = terms.address
        self.binary = program("dovecot", PACKAGE)
        self.version = _version(self.binary)
        self.folder = _new_folder()
        self.log = Log(self.folder / "log")
        self.imap = self.imaps = self.imap_behind_proxy = self.imaps_behind_proxy = 0
        self.lmtp = self.lmtp_behind_proxy = 0
        self.pop3 = self.pop3s = self.pop3_behind_proxy = 0
        self.submission = self.submissions = self.submission_behind_proxy = 0
        self.sasl = self.folder / "run" / "sasl"
        self.sieve = self.sieve_behind_proxy = 0
        self._process: ServerProcess | None = None
        self._owner = _mail_owner()
        for name in ("run", "state", "home"):
            self._own(self.folder / name)
        self._users = self.folder / "users"
        self._users.touch()
        for account in accounts:
            self.add(account)

    # --- running it ---------------------------------------------------------

    def start(self) -> None:
        """Start, on the ports of the first time if there was one, and wait until it listens."""
        for _ in range(5):
            if not self.imap:
                self._choose_ports()
            self._write_configuration()
            mark = self.log.mark()
            command = [self.binary, "-F", "-c", str(self.folder / "dovecot.conf")]
            self._process = ServerProcess(command, self.folder / "output")
            if wait_until("Dovecot's start", lambda mark=mark: self._started(mark)) == "started":
                return
            self._process.kill()
            if not self.log.find("Address already in use", mark):
                break
            self.imap = 0
        output = Log(self.folder / "output").text()
        raise AssertionError(f"Dovecot {self.version} does not start:\n{self.log.text()}\n{output}")

    def _started(self, mark: int) -> str:
        if not self._process.running():
            return "ended"
        if not self.log.find("starting up for", mark):
            return ""
        return "started" if all(accepts(self.host, port) for port in self.ports) else ""

    @property
    def pid(self) -> int:
        """Its master process, whose children do the work."""
        return self._process.pid

    @property
    def ports(self) -> list[int]:
        """All ports on which it listens."""
        plain, tls = [self.imap, self.imap_behind_proxy], [self.imaps, self.imaps_behind_proxy]
        if self.terms.lmtp:
            plain += [self.lmtp, self.lmtp_behind_proxy]
        if self.terms.pop3:
            plain, tls = [*plain, self.pop3, self.pop3_behind_proxy], [*tls, self.pop3s]
        if self.terms.relay:
            plain += [self.submission, self.submission_behind_proxy]
            tls += [self.submissions]
        if self.terms.sieve:
            plain += [self.sieve, self.sieve_behind_proxy]
        return plain if self.terms.ssl == "no" else [*plain, *tls]

    def kill(self) -> None:
        """End it, and all its sessions, without a word."""
        self._process.kill()

    def stop(self) -> None:
        """End it and remove all it has written."""
        if self._process:
            self._process.stop()
        shutil.rmtree(self.folder)

    def _choose_ports(self) -> None:
        self.imap, self.imaps = free_port(self.host), free_port(self.host)
        self.imap_behind_proxy, self.imaps_behind_proxy = free_port(self.host), free_port(self.host)
        if self.terms.lmtp:
            self.lmtp, self.lmtp_behind_proxy = free_port(self.host), free_port(self.host)
        if self.terms.pop3:
            self.pop3, self.pop3s = free_port(self.host), free_port(self.host)
            self.pop3_behind_proxy = free_port(self.host)
        if self.terms.relay:
            self.submission, self.submissions = free_port(self.host), free_port(self.host)
            self.submission_behind_proxy = free_port(self.host)
        if self.terms.sieve:
            self.sieve, self.sieve_behind_proxy = free_port(self.host), free_port(self.host)

    # --- accounts and mail --------------------------------------------------

    def add(self, account: Account, extra: str = "") -> None:
        """Let an account log in, with extra fields; a running server may take a second to notice."""
        password = base64.b64encode(account.password.encode()).decode()
        with self._users.open("a") as users:
            users.write(f"{account.user}:{{PLAIN.B64}}{password}::::::{extra}\n")
        self._own(self.folder / "home" / account.user)

    def token(self, account: Account) -> str:
        """Return an OAuth token that opens an account."""
        head = _base64url({"alg": "HS256", "typ": "JWT"})
        body = _base64url({"sub": account.user, "iat": 1, "exp": 4102444800})
        signature = hmac.digest(self.terms.tokens, f"{head}.{body}".encode(), "sha256")
        return f"{head}.{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"

    def deliver(self, account: Account, message: bytes, mailbox: str = "INBOX", flags: str = "S") -> None:
        """Put a message into a mailbox, as a mail server would; ``flags`` are Maildir's, S for seen."""
        maildir = self.folder / "home" / account.user / "Maildir"
        box = maildir if mailbox == "INBOX" else maildir / f".{mailbox}"
        for path in (maildir, box, box / "tmp", box / "cur", box / "new"):
            self._own(path)
        if box != maildir:
            (box / "maildirfolder").touch()
        # A clock would do for other servers; counting makes the same names, and so the same UIDs.
        number = sum(1 for _ in (box / "cur").iterdir())
        # The time of arrival is the file's: the same for all, or no two runs would be comparable.
        path = box / "tmp" / f"{1795000000 + number}.M1P1.test"
        path.write_bytes(message)
        os.utime(path, (1795000000 + number, 1795000000 + number))
        os.chown(path, *self._owner)
        path.rename(box / "cur" / f"{path.name}:2,{flags}")
        # What has changed just now, Dovecot does not trust to be the end of it.
        for folder in (box / "cur", box / "new"):
            os.utime(folder, (1700000000, 1700000000))

    def delivered(self, account: Account) -> list[bytes]:
        """Return the messages that have been delivered to an account and not been read."""
        new = self.folder / "home" / account.user / "Maildir" / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.exists() else []

    def settle(self, account: Account) -> None:
        """Open all mailboxes: the next session is then told the same as the one behind it.

        Only the first one hears that a message is recent, for example, and LIST
        says more of a mailbox whose state has been asked for.
        """
        for _ in range(2):
            with imaplib.IMAP4(self.host, self.imap) as session:
                session.login(account.user, account.password)
                for name in [line.split()[-1].decode() for line in session.list()[1]]:
                    session.status(name, "(MESSAGES)")
                    session.select(name)

    def _own(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        if folder.is_relative_to(self.folder / "home"):
            os.chown(folder, *self._owner)

    # --- its configuration --------------------------------------------------

    def _write_configuration(self) -> None:
        if self.terms.master:
            password = base64.b64encode(self.terms.master.password.encode()).decode()
            (self.folder / "masters").write_text(f"{self.terms.master.user}:{{PLAIN.B64}}{password}\n")
        # 2.4 wants its version first.
        settings = (self._for_2_4() if self.version >= (2, 4) else self._for_2_3()) | self._common()
        (self.folder / "dovecot.conf").write_text("\n".join(_lines(settings)) + "\n")

    def _common(self) -> Settings:
        """Return the settings that both versions call the same."""
        terms, user = self.terms, pwd.getpwuid(os.geteuid()).pw_name
        trusted = " ".join(terms.trusted)
        services: Settings = {
            "service imap-login": {
                **self._sessions_per_process(0),  # one process serves any number of logins
                "client_limit": "2000",
                "process_min_avail": "1",
                "inet_listener imap": {"port": str(self.imap)},
                "inet_listener imaps": {"port": str(self.imaps), "ssl": "yes"},
                "inet_listener imap_behind_proxy": {"port": str(self.imap_behind_proxy), "haproxy": "yes"},
                "inet_listener imaps_behind_proxy": {
                    "port": str(self.imaps_behind_proxy),
                    "ssl": "yes",
                    "haproxy": "yes",
                },
            },
            # A process that serves one session after the other.
            "service imap": {"process_limit": "1000", **self._sessions_per_process(1000)},
            # The penalty for failed logins counts by address: one test would slow down the next.
            "service anvil": {"client_limit": "2000", "unix_listener anvil-auth-penalty": {"mode": "0"}},
            "service auth": {"client_limit": "2000", "unix_listener sasl": {"mode": "0666"}},
        }
        if terms.auth_sockets:
            for name in ("auth-client", "auth-master"):
                services["service auth"][f"unix_listener {name}"] = {"mode": "0666"}
        if terms.lmtp:
            services["service lmtp"] = {
                "inet_listener lmtp": {"port": str(self.lmtp)},
                "inet_listener lmtp_behind_proxy": {"port": str(self.lmtp_behind_proxy), "haproxy": "yes"},
            }
        if terms.pop3:
            services["service pop3-login"] = {
                "inet_listener pop3": {"port": str(self.pop3)},
                "inet_listener pop3s": {"port": "0" if terms.ssl == "no" else str(self.pop3s), "ssl": "yes"},
                "inet_listener pop3_behind_proxy": {"port": str(self.pop3_behind_proxy), "haproxy": "yes"},
            }
        if terms.relay:
            services["service submission-login"] = {
                "inet_listener submission": {"port": str(self.submission)},
                "inet_listener submissions": {"port": str(self.submissions), "ssl": "yes"},
                "inet_listener submission_behind_proxy": {
                    "port": str(self.submission_behind_proxy),
                    "haproxy": "yes",
                },
            }
        if terms.sieve:
            services["service managesieve-login"] = {
                "inet_listener sieve": {"port": str(self.sieve)},
                "inet_listener sieve_behind_proxy": {"port": str(self.sieve_behind_proxy), "haproxy": "yes"},
            }
        if terms.ssl == "no":
            del services["service imap-login"]["inet_listener imaps_behind_proxy"]
            services["service imap-login"]["inet_listener imaps"] = {"port": "0"}
        if os.geteuid():
            logins = ("pop3-login", "submission-login", "managesieve-login")
            also = [name for name in logins if f"service {name}" in services]
            for service in ("imap-login", "anvil", "stats", *also):
                services.setdefault(f"service {service}", {})["chroot"] = ""
        return {
            "base_dir": str(self.folder / "run"),
            "log_path": str(self.log.path),
            "auth_verbose": "yes",
            "listen": terms.address,
            "auth_failure_delay": terms.failure_delay,
            "auth_mechanisms": " ".join(terms.mechanisms),
            "mail_max_userip_connections": str(terms.per_user_and_address),
            "login_trusted_networks": trusted,
            "haproxy_trusted_networks": trusted,
            "first_valid_uid": "1",
            "default_client_limit": "2000",
            "ssl": terms.ssl,
            **self._relay(),
            **({"default_internal_user": user, "default_login_user": user} if os.geteuid() else {}),
            **({"default_internal_group": grp.getgrgid(os.getegid()).gr_name} if os.geteuid() else {}),
            **services,
        }

    def _relay(self) -> Settings:
        if not self.terms.relay:
            return {}
        return {
            "submission_relay_host": "127.0.0.1",
            "submission_relay_port": str(self.terms.relay),
            "submission_max_mail_size": "100M",
        }

    def _sessions_per_process(self, count: int) -> Settings:
        if self.version >= (2, 4):
            return {"restart_request_count": str(count or "unlimited")}
        return {"service_count": str(count)}

    def _protocols(self) -> str:
        if self.terms.lmtp:
            program("/usr/lib/dovecot/lmtp", LMTP_PACKAGE)
        if self.terms.relay:
            program("/usr/lib/dovecot/submission", SUBMISSION_PACKAGE)
        if self.terms.sieve:
            program("/usr/lib/dovecot/managesieve", SIEVE_PACKAGE)
        terms = self.terms
        also = {"lmtp": terms.lmtp, "pop3": terms.pop3, "submission": terms.relay, "sieve": terms.sieve}
        return " ".join(["imap", *(name for name, wanted in also.items() if wanted)])

    def _for_2_3(self) -> Settings:
        uid, gid = self._owner
        certificate = self.terms.certificate
        settings: Settings = {
            "protocols": self._protocols(),
            "state_dir": str(self.folder / "state"),
            "disable_plaintext_auth": "no" if self.terms.cleartext else "yes",
            "mail_location": "maildir:~/Maildir",
            "passdb": [{"driver": "passwd-file", "args": str(self._users)}],
            "userdb": {"driver": "static", "args": f"uid={uid} gid={gid} home={self.folder}/home/%u"},
        }
        if certificate:
            settings["ssl_cert"] = f"<{certificate.chain}"
            settings["ssl_key"] = f"<{certificate.key}"
        if self.terms.master:
            settings["auth_master_user_separator"] = "*"
            masters = {"driver": "passwd-file", "args": str(self.folder / "masters"), "master": "yes"}
            settings["passdb"] = [masters, *settings["passdb"]]
        if self.terms.tokens:
            (self.folder / "tokens.conf").write_text(
                "introspection_mode = local\n"
                f"local_validation_key_dict = fs:posix:prefix={self._write_keys()}/\n"
                "username_attribute = sub\n"
            )
            tokens = {"driver": "oauth2", "mechanisms": "xoauth2 oauthbearer"}
            tokens["args"] = str(self.folder / "tokens.conf")
            settings["passdb"] = [tokens, *settings["passdb"]]
        if self.terms.username_format == "local":
            settings["auth_username_format"] = "%Ln"
        return settings

    def _for_2_4(self) -> Settings:
        uid, gid = self._owner
        certificate = self.terms.certificate
        settings: Settings = {
            "protocols": self._protocols(),
            "state_dir": str(self.folder / "state"),
            # Where TLS is required, 2.4 insists on "no".
            "auth_allow_cleartext": "yes" if self.terms.cleartext and self.terms.ssl != "required" else "no",
            "mail_driver": "maildir",
            "mail_path": "~/Maildir",
            "passdb passwd-file": {"passwd_file_path": str(self._users)},
            "userdb static": {
                "fields": {"uid": str(uid), "gid": str(gid), "home": f"{self.folder}/home/%{{user}}"}
            },
        }
        if certificate:
            settings["ssl_server_cert_file"] = str(certificate.chain)
            settings["ssl_server_key_file"] = str(certificate.key)
        if self.terms.sieve:
            settings["sieve_script personal"] = {"path": "~/sieve", "active_path": "~/.dovecot.sieve"}
        if self.terms.master:
            settings["auth_master_user_separator"] = "*"
            masters = {
                "driver": "passwd-file",
                "passwd_file_path": str(self.folder / "masters"),
                "master": "yes",
            }
            settings = {"passdb masters": masters} | settings
        if self.terms.tokens:
            keys = {"dict fs": {"fs posix": {"prefix": f"{self._write_keys()}/"}}}
            settings["oauth2"] = {
                "introspection_mode": "local",
                "username_attribute": "sub",
                "oauth2_local_validation": keys,
            }
            tokens = {"driver": "oauth2", "mechanisms_filter": "xoauth2 oauthbearer"}
            settings = {"passdb tokens": tokens} | settings
        if self.terms.username_format == "local":
            settings["auth_username_format"] = "%{user | username | lower}"
        # These two have to come first.
        version = ".".join(str(part) for part in self.version)
        return {"dovecot_config_version": version, "dovecot_storage_version": version} | settings

    def _write_keys(self) -> Path:
        folder = self.folder / "keys"
        path = folder / "default" / "HS256"
        path.mkdir(parents=True, exist_ok=True)
        (path / "default").write_bytes(base64.b64encode(self.terms.tokens))
        return folder


def _new_folder() -> Path:
    """Make a folder that the users may enter that Dovecot becomes, as they may not enter pytest's.

    Its name is short, for a UNIX socket's path is limited to about 100 bytes.
    """
    usual = Path(tempfile.gettempdir())
    open_to_all = all(folder.stat().st_mode & stat.S_IXOTH for folder in (usual, *usual.parents))
    place = usual if len(str(usual)) < 50 and (open_to_all or os.geteuid()) else Path("/tmp")  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="dovecot-", dir=place))
    folder.chmod(0o755)
    return folder


def _version(binary: str) -> tuple[int, ...]:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", said).groups("0"))


def _mail_owner() -> tuple[int, int]:
    """Return whose the mail is: Dovecot never reads mail as root."""
    if os.geteuid():
        return os.geteuid(), os.getegid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _base64url(claims: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def _lines(settings: Settings, indent: str = "") -> list[str]:
    lines = []
    for key, value in settings.items():
        if isinstance(value, str):
            lines.append(f"{indent}{key} = {value}")
            continue
        for block in value if isinstance(value, list) else [value]:
            lines += [f"{indent}{key} {{", *_lines(block, indent + "  "), f"{indent}}}"]
    return lines
