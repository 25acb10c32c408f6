"""Clients with passwords, in front of a real Dovecot that mailroute logs in at with tokens of its own."""

from __future__ import annotations

import base64
import json
import poplib
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from servers.accounts import ALICE, BOB, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.processes import free_port, wait_until
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners, users

pytestmark = pytest.mark.integration

CHECKED = {ALICE.user: "an old client's own", BOB.user: "another's own"}
"""The passwords that mailroute checks: the server knows others."""

MECHANISMS = ["xoauth2", "oauthbearer"]


class TokenServer:
    """Gives Dovecot's tokens for refresh tokens that are good for one time; keeps what it is asked.

    ``pause``: unless it is set, answers are ready and not sent.
    """

    def __init__(self, east: Dovecot) -> None:
        self.asked: list[dict[str, str]] = []
        self.refused: list[str] = []
        self.expires_in = 3600
        self.tokens = {user.user: east.token(user) for user in (ALICE, BOB)}
        self.refresh: dict[str, str] = {}
        self.pause = threading.Event()
        self.pause.set()
        self.port = free_port()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    def __enter__(self) -> Self:
        ours = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                status, answer = ours.answer({name: value for name, (value,) in form.items()})
                ours.pause.wait()
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    def answer(self, form: dict[str, str]) -> tuple[int, dict[str, object]]:
        with self._lock:
            self.asked.append(form)
            if form["grant_type"] == "client_credentials":
                return 200, self._token(ALICE.user)
            user = self.refresh.pop(form["refresh_token"], None)
            if user is None:
                return 400, {"error": "invalid_grant"}
            rotated = f"refresh-{len(self.asked)}-of-{user}"
            self.refresh[rotated] = user
            return 200, {**self._token(user), "refresh_token": rotated}

    def _token(self, user: str) -> dict[str, object]:
        return {"access_token": self.tokens[user], "token_type": "Bearer", "expires_in": self.expires_in}


@pytest.fixture(scope="module", params=MECHANISMS)
def east(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Dovecot]:
    relay = Controller(Sink(), "127.0.0.1", free_port())
    relay.start()
    terms = Terms(
        certificate=certificate,
        tokens=b"k" * 32,
        mechanisms=(request.param,),
        pop3=True,
        relay=relay.port,
    )
    with Dovecot(terms, ALICE, BOB) as server:
        for account in (ALICE, BOB):
            server.deliver(account, message("for you"))
        yield server
    relay.stop()


@pytest.fixture
def server(east: Dovecot) -> Iterator[TokenServer]:
    with TokenServer(east) as server:
        yield server


KEY = base64.b64encode(b"t" * 32).decode()


def proxy(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate, **keys: object
) -> Mailroute:
    """Return mailroute, with refresh tokens unless the keys say otherwise."""
    oauth2 = {"token_url": server.url, "client_id": "mailroute", "client_secret_file": "secret"}
    if "grant" not in keys:
        oauth2 |= {"grant": "refresh_token", "token_folder": "tokens", "token_key_file": "key"}
    block = backend(
        east,
        authority,
        login="oauth2",
        warm=keys.pop("warm", 0),
        pop3=f"tcp:127.0.0.1:{east.pop3}",
        submission=f"tcp:127.0.0.1:{east.submission}",
    )
    workers = keys.pop("workers", 1)
    block["oauth2"] = oauth2 | keys
    config = configuration(certificate, {"east": block})
    config["authenticate"] = [{"source": "passwd-file", "file": "hashes"}]
    config["route"] = [{"source": "default", "backend": "east"}]
    config["workers"] = workers
    files = {
        "secret": "the client's own\n",
        "key": f"{KEY}\n",
        "hashes": "".join(f"{user}:{{PLAIN}}{password}\n" for user, password in CHECKED.items()),
    }
    listen: dict[str, dict[str, object]] = {
        **listeners(),
        "pop3": {"protocol": "pop3", "security": "none"},
        "submission": {"protocol": "submission", "security": "none"},
    }
    here = Mailroute(listen, config, {**users(), **files})
    (here.folder / "tokens").mkdir(mode=0o700)
    return here


def put(here: Mailroute, server: TokenServer, user: str, token: str = "") -> subprocess.CompletedProcess[str]:
    """Keep a refresh token with the command, as an operator does."""
    first = token or f"first-of-{user}"
    if not token:
        server.refresh[first] = user
    command = [sys.executable, "-m", "mailroute.cli", "token", user]
    return subprocess.run(
        command, cwd=here.folder, input=f"{first}\n", capture_output=True, text=True, check=False
    )


def log_in(here: Mailroute, user: str = ALICE.user) -> bytes:
    with RawImap("127.0.0.1", here.ports["plain"]) as session:
        session.greeting()
        answer = session.command(b'a LOGIN "%s" "%s"' % (user.encode(), CHECKED[user].encode()))
        if b"a OK" in answer:
            assert b"1 EXISTS" in session.command(b"b SELECT INBOX")
        return answer


def test_a_password_opens_an_account_by_a_token(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate
) -> None:
    """Each user reaches its own mailbox by IMAP, POP3 and submission, with one request for a token."""
    mark = east.log.mark()
    with proxy(east, server, authority, certificate) as here:
        for user in CHECKED:
            assert put(here, server, user).returncode == 0
            assert b"a OK" in log_in(here, user)
        ports = here.ports
        pop3 = poplib.POP3("127.0.0.1", ports["pop3"])
        pop3.user(ALICE.user)
        pop3.pass_(CHECKED[ALICE.user])
        assert pop3.stat()[0] == 1
        pop3.quit()
        with smtplib.SMTP("127.0.0.1", ports["submission"]) as smtp:
            assert smtp.login(ALICE.user, CHECKED[ALICE.user])[0] == 235
        with RawImap("127.0.0.1", ports["plain"]) as session:
            session.greeting()
            assert b"a NO [AUTHENTICATIONFAILED]" in session.command(
                b"a LOGIN %s %s" % (ALICE.user.encode(), ALICE.password.encode())
            )
        assert len(server.asked) == 2
        method = {"xoauth2": "XOAUTH2", "oauthbearer": "OAUTHBEARER"}[east.terms.mechanisms[0]]
        assert east.log.find(f"user=<{ALICE.user}>, method={method}", mark)
        text = here.log.text()
        assert not [secret for secret in secrets(server) if secret in text]


def secrets(server: TokenServer) -> list[str]:
    return [*server.tokens.values(), *server.refresh, *CHECKED.values(), "the client's own", KEY]


def test_tokens_outlive_a_restart(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate
) -> None:
    """Rotated tokens are read back from files, in which nothing is in the clear."""
    with proxy(east, server, authority, certificate) as here:
        put(here, server, ALICE.user)
        server.expires_in = 0
        for _ in range(3):
            assert b"a OK" in log_in(here)
        server.expires_in = 3600
        assert b"a OK" in log_in(here)
        assert len(server.asked) == 4
        assert len({form["refresh_token"] for form in server.asked}) == 4
        here._process.stop()
        for path in (here.folder / "tokens").iterdir():
            assert not [secret for secret in secrets(server) if secret.encode() in path.read_bytes()]
        here.start()
        assert b"a OK" in log_in(here)
        assert len(server.asked) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_token_outlives_a_restart_while_it_is_asked_for(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate, workers: int
) -> None:
    """Who stops mailroute while a server replaces a refresh token loses neither the old nor the new one."""
    with proxy(east, server, authority, certificate, workers=workers) as here:
        put(here, server, ALICE.user)
        server.pause.clear()
        with RawImap("127.0.0.1", here.ports["plain"]) as session:
            session.greeting()
            session.send(b'a LOGIN "%s" "%s"\r\n' % (ALICE.user.encode(), CHECKED[ALICE.user].encode()))
            wait_until("the question for a token", lambda: server.asked)
            stopping = threading.Thread(target=here._process.stop)
            stopping.start()
            assert b"BYE" in session.rest()
        server.pause.set()
        stopping.join()
        server.expires_in = 0
        here.start()
        assert b"a OK" in log_in(here)
        assert len({form["refresh_token"] for form in server.asked}) == len(server.asked)


def test_a_revoked_token_is_replaced(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate
) -> None:
    """A token that the server takes no more is thrown away, and the login succeeds with a new one."""
    good = server.tokens[ALICE.user]
    with proxy(east, server, authority, certificate) as here:
        put(here, server, ALICE.user)
        server.tokens[ALICE.user] = f"{good[:-4]}AAAA"
        answer = log_in(here)
        assert b"a OK" not in answer
        assert b"AUTHENTICATIONFAILED" not in answer
        server.tokens[ALICE.user] = good
        assert b"a OK" in log_in(here)
        assert len(server.asked) == 2


def test_what_keeps_tokens_away_is_told(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate
) -> None:
    """Without a token, with a dead one, without the server: nobody is told that a password is wrong.

    A dead one is shown to the server once.
    """
    with proxy(east, server, authority, certificate) as here:
        assert b"AUTHENTICATIONFAILED" not in log_in(here)
        assert here.log.find("there is no refresh token of 'alice@example.com'")
        put(here, server, ALICE.user, "a-dead-one")
        assert b"a NO [SERVERBUG]" in log_in(here) or b"a NO [CONTACTADMIN]" in log_in(here)
        assert here.log.find("invalid_grant")
        assert "a-dead-one" not in here.log.text()
        asked = len(server.asked)
        assert b"a NO [SERVERBUG]" in log_in(here) or b"a NO [CONTACTADMIN]" in log_in(here)
        assert len(server.asked) == asked
        put(here, server, ALICE.user, "one-that-nobody-has-tried")
        server.__exit__()
        assert b"a NO [UNAVAILABLE]" in log_in(here)
        server.__enter__()
        assert put(here, server, ALICE.user).returncode == 0
        assert b"a OK" in log_in(here)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hundred_logins_ask_once(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate, workers: int
) -> None:
    """Logins at once share one request, also over connections kept ready, and in several processes."""
    with proxy(east, server, authority, certificate, warm=4, workers=workers) as here:
        put(here, server, ALICE.user)
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: log_in(here), range(100)))
        assert all(b"a OK" in answer for answer in answers)
        assert len(server.asked) == 1


def test_client_credentials_need_no_file(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate
) -> None:
    """Mailroute's own token opens the accounts that it is for."""
    with proxy(east, server, authority, certificate, grant="client_credentials") as here:
        for _ in range(2):
            assert b"a OK" in log_in(here)
        assert server.asked == [{"grant_type": "client_credentials"}]


def test_the_command_says_what_it_has_done(
    east: Dovecot, server: TokenServer, authority: Authority, certificate: Certificate
) -> None:
    """It names the file; nonsense is an error that does not repeat what was typed."""
    with proxy(east, server, authority, certificate) as here:
        done = put(here, server, ALICE.user)
        assert "Backend east: the refresh token of alice@example.com is kept in" in done.stdout
        [path] = (here.folder / "tokens").glob("*.token")
        assert str(path) in done.stdout
        assert path.stat().st_mode & 0o777 == 0o600
        for text in ("", "tök€n\n"):
            command = [sys.executable, "-m", "mailroute.cli", "token", "alice", "--backend", "east"]
            wrong = subprocess.run(
                command, cwd=here.folder, input=text, capture_output=True, text=True, check=False
            )
            assert (wrong.returncode, wrong.stdout) == (1, "")
            assert "standard input holds no refresh token" in wrong.stderr
            assert "Traceback" not in wrong.stderr
            assert "tök" not in wrong.stderr
