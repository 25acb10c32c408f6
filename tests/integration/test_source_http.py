"""An auth server that was written for nginx, beside the real nginx; and one that speaks JSON."""

from __future__ import annotations

import base64
import json
import ssl
import tomllib
from collections.abc import Iterator
from urllib.parse import unquote

import pytest
from attrs import frozen
from readme import TEXT, blocks
from servers.accounts import Account, message
from servers.auth_http import AuthServer
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.nginx import NginxMail
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import configuration

pytestmark = pytest.mark.integration

PASSWORD = "se cret'\"%:*ü"
CLAIRE = Account("claire@east.example.org", PASSWORD, "east")


@frozen
class Both:
    """nginx and mailroute, which ask the same auth server, in front of the same Dovecot."""

    server: AuthServer
    nginx: NginxMail
    mailroute: Mailroute
    mail: Dovecot
    authority: Authority

    def login(self, way: str, port: str, user: bytes, password: bytes) -> tuple[bool, dict[str, str]]:
        """Log in; return whether that succeeded, and what the auth server was asked."""
        before = len(self.server.asked)
        with RawImap("127.0.0.1", getattr(self, way).ports[port]) as session:
            if port == "tls":
                trusted = ssl.create_default_context(cafile=str(self.authority.file))
                session.socket = trusted.wrap_socket(session.socket, server_hostname="localhost")
            session.greeting()
            session.send(b"a AUTHENTICATE PLAIN\r\n")
            session.read(b"\\+")
            session.send(base64.b64encode(b"\0" + user + b"\0" + password) + b"\r\n")
            let_in = session.read(b"a ").rpartition(b"a ")[2].startswith(b"OK")
        (asked,) = self.server.asked[before:]
        return let_in, {name: value for name, value in asked.items() if name != "Host"}


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, authority: Authority
) -> Iterator[Both]:
    def answer(headers, _body):
        user, password = (
            unquote(headers[name].encode("latin-1").decode("utf-8", "replace"))
            for name in ("Auth-User", "Auth-Pass")
        )
        if password != PASSWORD:
            return 200, {"Auth-Status": "Invalid login or password"}, b""
        place = {"Auth-Status": "OK", "Auth-Server": "127.0.0.1", "Auth-Port": str(mail.imap)}
        if user == "moved@example.org":
            place |= {"Auth-User": CLAIRE.user, "Auth-Pass": PASSWORD.encode().decode("latin-1")}
        return 200, place, b""

    folder = tmp_path_factory.mktemp("nginx")
    route = readme("X-Auth-Key")
    with Dovecot(Terms(ssl="no"), CLAIRE) as mail, AuthServer(answer) as server:
        mail.deliver(CLAIRE, message("for claire"))
        config = configuration(certificate, {"shards": {"imap": "tcp:192.0.2.1:143", "security": "none"}})
        config["route"] = [route | {"url": server.url}]
        listen = {"plain": {"security": "none"}, "tls": {"security": "tls"}}
        with (
            NginxMail(folder / "nginx", certificate, server.port) as nginx,
            Mailroute(listen, config) as proxy,
        ):
            yield Both(server, nginx, proxy, mail, authority)
            assert PASSWORD not in proxy.log.text()


def readme(word: str) -> dict[str, object]:
    """Return the route of the README's example with this word in it."""
    (text,) = [block.text for block in blocks(TEXT, "toml") if word in block.text]
    (route,) = tomllib.loads(text)["route"]
    return route


NAMES = [
    "claire@east.example.org",
    "a b",
    "a%20b",
    "a\"b'\\c",
    "*()\\",
    "ü€😀",
    "/../..",
    "x" * 480,
    "a:b&c=d+e?f",
]


@pytest.mark.parametrize("port", ["plain", "tls"])
@pytest.mark.parametrize("user", NAMES)
def test_the_auth_server_sees_no_difference(both: Both, user: str, port: str) -> None:
    """Whatever the name and the password hold, it is asked as nginx asks it, header by header."""
    every = bytes(range(1, 256))
    for password in (
        b"wrong",
        every,
        f"{user}\r\nAuth-Status: OK\r\n\r\n%0D%0A".encode(),
        b" x ",
        b"\x7f\x80\xff",
    ):
        through_nginx = both.login("nginx", port, user.encode(), password)
        through_mailroute = both.login("mailroute", port, user.encode(), password)
        # Later releases of nginx tell the cipher, which a session's client does not have here.
        through_nginx[1].pop("Auth-SSL-Cipher", None)
        assert through_mailroute == through_nginx
        assert not through_nginx[0]


@pytest.mark.parametrize("user", ["claire@east.example.org", "moved@example.org"])
def test_logins_end_where_nginxs_do(both: Both, user: str) -> None:
    """Who is let in arrives at the address in the answer, as whom the answer says."""
    let_in, asked = both.login("nginx", "plain", user.encode(), PASSWORD.encode())
    assert let_in
    assert both.login("mailroute", "plain", user.encode(), PASSWORD.encode()) == (True, asked)
    with RawImap("127.0.0.1", both.mailroute.ports["plain"]) as session:
        session.greeting()
        session.send(f'a LOGIN "{user}" {{{len(PASSWORD.encode())}}}\r\n'.encode())
        session.read(b"\\+")
        session.send(PASSWORD.encode() + b"\r\n")
        session.read(b"a OK")
        assert b"1 EXISTS" in session.command("b SELECT INBOX")


def test_a_login_with_json(certificate: Certificate, authority: Authority) -> None:
    """The README's example, with a server of JSON over https, and one before it that is down."""

    def answer(_headers, body):
        known = json.loads(body)["user"] == CLAIRE.user
        content = json.dumps({"backend": "east"} if known else None)
        return 200, {"Content-Type": "application/json"}, content.encode()

    with Dovecot(Terms(ssl="no"), CLAIRE) as mail, AuthServer(answer, certificate=certificate) as server:
        config = configuration(
            certificate, {"east": {"imap": f"tcp:127.0.0.1:{mail.imap}", "security": "none"}}
        )
        urls = ["https://localhost:1/where", server.url]
        config["route"] = [readme('dialect = "json"') | {"urls": urls, "ca": str(authority.file)}]
        with Mailroute({"plain": {"security": "none"}}, config) as proxy:
            for user, answered in ((CLAIRE.user, b"a OK"), ("nobody", b"a NO \\[AUTHENTICATIONFAILED\\]")):
                with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
                    session.greeting()
                    session.send(b"a AUTHENTICATE PLAIN\r\n")
                    session.read(b"\\+")
                    session.send(base64.b64encode(f"\0{user}\0{PASSWORD}".encode()) + b"\r\n")
                    session.read(answered)
            assert len(server.asked) == 2
            assert "localhost:1 fails (ConnectionRefusedError)" in proxy.log.text()
