"""Passwords and tokens are not in the log, in answers, in what commands write, or in the process list."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote

import jwt
import pytest
from attrs import frozen
from servers.accounts import Account
from servers.auth_http import AuthServer
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.redis import PASSWORD as REDIS_SECRET
from servers.redis import Redis
from servers.site import backend, configuration, listeners, users
from servers.slapd import BASE, SEARCHER, Slapd
from servers.slapd import SECRET as SEARCH_SECRET
from twistd import environment

pytestmark = pytest.mark.integration

RIGHT, WRONG = "r1ght-m4rker", "wr0ng-m4rker"
ALICE = Account("alice@example.com", RIGHT, "east")
MASTER = Account("master", "m4ster-m4rker", "east")
CLIENT_SECRET = "cl1ent-m4rker"
KEY = b"the secret that signs the tokens"

PROGRAM = """\
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    said = asked["password"]
    answer = {"backend": "-", "proven": True} if said == "%s" else {"refuse": "not " + said}
    print(json.dumps({"id": asked["id"], **answer}), flush=True)
"""


def forms(secret: str) -> set[bytes]:
    """Return how a secret may look: as it is, in a URL, in JSON, in hexadecimal, and within base64."""
    raw = secret.encode()
    found = {raw, quote(secret).encode(), json.dumps(secret)[1:-1].encode(), raw.hex().encode()}
    for before in range(3):
        encoded = base64.b64encode(b"." * before + raw)
        # What the bytes around it have no part in.
        found.add(encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6])
    return found


def shown(text: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Return the names of those secrets that a text shows."""
    return [name for name, secret in secrets.items() if any(form in text for form in forms(secret))]


def test_a_secret_is_found_however_it_is_written() -> None:
    """The search below finds what it looks for."""
    for around in ("", "x", "xy", "xyz"):
        for text in (RIGHT, base64.b64encode(f"{around}{RIGHT}{around}".encode()).decode()):
            assert shown(f"log: {text}".encode(), {"it": RIGHT}) == ["it"]
    assert not shown(base64.b64encode(WRONG.encode()), {"it": RIGHT})


def token(good: bool) -> str:
    said = {
        "iss": "https://login.example.org",
        "aud": "mail",
        "sub": ALICE.user,
        "exp": int(time.time()) + 600,
    }
    return jwt.encode(said, KEY if good else b"another secret of thirty-two bytes", algorithm="HS256")


@frozen
class World:
    """The servers that are asked, and mailroute's configuration but for who checks."""

    mail: Dovecot
    redis: Redis
    directory: Slapd
    web: AuthServer
    authority: Authority
    certificate: Certificate


def _web(headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
    if "Auth-Pass" in headers:  # nginx's dialect
        right = headers["Auth-Pass"] == RIGHT
        if right:
            return 200, {"Auth-Status": "OK", "Auth-Server": "127.0.0.1", "Auth-Port": "1"}, b""
        # One that says back what it was sent.
        return 200, {"Auth-Status": f"no, not {headers['Auth-Pass']}"}, b""
    if headers.get("Content-Type") == "application/json":
        asked = json.loads(body)
        right = asked["password"] == RIGHT
        answer = {"backend": "-", "proven": True} if right else {"refuse": f"not {asked['password']}"}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
    asked_for = parse_qs(body.decode())["token"][0]
    try:
        claims = jwt.decode(asked_for, KEY, algorithms=["HS256"], options={"verify_aud": False})
    except jwt.InvalidTokenError:
        return 200, {}, json.dumps({"active": False, "error": asked_for}).encode()
    return 200, {}, json.dumps({"active": True, **claims}).encode()


@pytest.fixture(scope="module")
def world(authority: Authority, certificate: Certificate) -> Iterator[World]:
    terms = Terms(
        certificate=certificate,
        master=MASTER,
        auth_sockets=True,
        tokens=KEY,
        mechanisms=("plain", "login", "xoauth2", "oauthbearer"),
    )
    directory = Slapd(certificate)
    directory.add(ALICE.user, RIGHT)
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(Redis(certificate, REDIS_SECRET))
        mail = stack.enter_context(Dovecot(terms, ALICE))
        with contextlib.closing(sqlite3.connect(mail.folder / "accounts.db")) as database:
            database.execute("create table users (name text, hash text)")
            database.execute("insert into users values (?, ?)", (ALICE.user, f"{{PLAIN}}{RIGHT}"))
            database.commit()
        redis("HSET", f"mailroute:{ALICE.user}", "password", f"{{PLAIN}}{RIGHT}")
        yield World(
            mail,
            redis,
            stack.enter_context(directory),
            stack.enter_context(AuthServer(_web)),
            authority,
            certificate,
        )


Block = dict[str, object]

CHECKS: dict[str, Callable[[World], Block | None]] = {
    "nobody": lambda _: None,
    "passwd-file": lambda _: {"source": "passwd-file", "file": "hashes"},
    "checker": lambda _: {"source": "checker", "checker": "file:passwd"},
    "memory": lambda _: {"source": "checker", "checker": f"memory:{ALICE.user}:{RIGHT}"},
    "sql": lambda world: {
        "source": "sql",
        "database": f"sqlite:{world.mail.folder}/accounts.db",
        "query": "select hash as password from users where name = :user",
    },
    "redis": lambda world: {
        "source": "redis",
        "url": f"redis://127.0.0.1:{world.redis.port}",
        "password_file": "redis-secret",
    },
    "dovecot-auth": lambda world: {
        "source": "dovecot-auth",
        "socket": str(world.mail.folder / "run" / "auth-client"),
    },
    "command": lambda _: {
        "source": "command",
        "command": [sys.executable, "program.py"],
        "send_password": True,
    },
    "http-nginx": lambda world: {"source": "http", "url": world.web.url, "dialect": "nginx"},
    "http-json": lambda world: {
        "source": "http",
        "url": world.web.url,
        "dialect": "json",
        "send_password": True,
    },
    "ldap": lambda world: {
        "source": "ldap",
        "urls": [f"ldap://localhost:{world.directory.port}"],
        "base": f"ou=people,{BASE}",
        "filter": "(cn={user})",
        "bind": True,
        "bind_dn": SEARCHER,
        "bind_password_file": "search-secret",
        "ca": str(world.authority.file),
    },
    "backend": lambda _: {"source": "backend", "backend": "tried"},
    "jwks": lambda _: {
        "source": "oauth2",
        "jwks": "keys.json",
        "issuer": "https://login.example.org",
        "audience": "mail",
        "claim": "sub",
        "algorithms": ["HS256"],
    },
    "introspection": lambda world: {
        "source": "oauth2",
        "introspection": world.web.url,
        "client_id": "mailroute",
        "client_secret_file": "client-secret",
        "claim": "sub",
    },
}
"""Who checks, by a name for it."""

OPENS: dict[str, dict[str, object]] = {
    "master": {"login": "master", "master_user": MASTER.user, "master_password_file": "master-password"},
    "replay": {"login": "replay"},
    "route": {"login": "replay"},
}
"""How mailroute logs in at the backend, by a name for it: ``route`` is a password in a route's answer."""

WAYS = [
    *((check, "master") for check in CHECKS if check != "nobody"),
    *((check, "replay") for check in ("nobody", "passwd-file", "jwks", "introspection")),
    ("passwd-file", "route"),
]


def made(world: World, check: str, opens: str) -> Mailroute:
    key = {"kty": "oct", "k": base64.urlsafe_b64encode(KEY).decode().rstrip("=")}
    files = {
        "hashes": f"{ALICE.user}:{{PLAIN}}{RIGHT}\n",
        "passwd": f"{ALICE.user}:{RIGHT}\n",
        "program.py": PROGRAM % RIGHT,
        "redis-secret": f"{REDIS_SECRET}\n",
        "search-secret": f"{SEARCH_SECRET}\n",
        "client-secret": f"{CLIENT_SECRET}\n",
        "keys.json": json.dumps({"keys": [key]}),
        "master-password": f"{MASTER.password}\n",
        "users.passwd": f"{ALICE.user}::::::: host=east pass={RIGHT}\n",
        **users(ALICE),
    }
    at = backend(world.mail, world.authority, **OPENS[opens])
    config = configuration(
        world.certificate, {"east": at, "tried": backend(world.mail, world.authority, login="replay")}
    )
    if opens == "route":
        config["route"] = [{"source": "passwd-file", "file": "users.passwd"}]
    block = CHECKS[check](world)
    if block is not None:
        config["authenticate"] = [block]
    return Mailroute(listeners(), config, files)


def log_in(here: Mailroute, secret: str, *, tokens: bool) -> tuple[bool, bytes]:
    """Try every way to show a secret; return whether all succeeded (or none did), and all answers."""
    plain = base64.b64encode(f"\0{ALICE.user}\0{secret}".encode())
    bearer = base64.b64encode(f"user={ALICE.user}\1auth=Bearer {secret}\1\1".encode())
    ours = base64.b64encode(f"n,a={ALICE.user},\1auth=Bearer {secret}\1\1".encode())
    lines = [b"a AUTHENTICATE XOAUTH2 " + bearer, b"a AUTHENTICATE OAUTHBEARER " + ours]
    if not tokens:
        lines = [f'a LOGIN {ALICE.user} "{secret}"'.encode(), b"a AUTHENTICATE PLAIN " + plain]
    answers, let_in = b"", set()
    for line in lines:
        with RawImap("127.0.0.1", here.ports["plain"]) as session:
            session.greeting()
            session.send(line + b"\r\n")
            said = session.read(rb"(a|\+) ")
            if said.startswith(b"+"):
                answers += said + base64.b64decode(said[2:])
                session.send(b"AQ==\r\n")
                said = session.read(b"a ")
            answers += said
            let_in.add(said.splitlines()[-1].startswith(b"a OK"))
    (whether,) = let_in
    return whether, answers


def process_list() -> bytes:
    """Return the command lines and environments of all processes that can be seen."""
    found = b""
    for name in ("cmdline", "environ"):
        for path in Path("/proc").glob(f"[0-9]*/{name}"):
            with contextlib.suppress(OSError):
                found += path.read_bytes()
    return found


def output(here: Mailroute, *arguments: str, typed: str = "") -> bytes:
    """Return what a command writes, in mailroute's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "mailroute.cli", *arguments],
        cwd=here.folder,
        env=environment(),
        input=typed.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("check", "opens"), WAYS)
def test_no_secret_is_shown(world: World, check: str, opens: str) -> None:
    """Whoever checks and however the account is opened: no try, right or wrong, leaves a secret anywhere."""
    tokens = check in ("jwks", "introspection")
    right, wrong = (token(True), token(False)) if tokens else (RIGHT, WRONG)
    secrets = {
        "the right one": right,
        "the wrong one": wrong,
        "the account's password": RIGHT,
        "the master's": MASTER.password,
        "the client's secret": CLIENT_SECRET,
        "the searcher's": SEARCH_SECRET,
        "Redis's": REDIS_SECRET,
        "the key of tokens": KEY.decode(),
    }
    with made(world, check, opens) as here:
        refused = log_in(here, wrong, tokens=tokens)
        let_in = log_in(here, right, tokens=tokens)
        assert (refused[0], let_in[0]) == (False, True), here.log.text()
        assert shown(refused[1] + let_in[1], secrets) == []
        assert shown(process_list(), secrets) == []
        said = output(here, "check", "mailroute.toml")
        said += output(here, "route", ALICE.user, "--password-file", "-", typed=f"{right}\n")
        said += output(here, "route", ALICE.user, "--json", "--password-file", "-", typed=f"{wrong}\n")
        said += output(here, "probe", "east")
        assert b"east" in said
        assert shown(said, secrets) == []
        assert shown(here.log.path.read_bytes(), secrets) == []
