"""An auth server that was written for nginx, beside the real nginx; and one that speaks JSON."""

from __future__ import annotations

import contextlib
import json
import time
import tomllib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from attrs import evolve, frozen
from cryptography import x509
from readme import TEXT, blocks
from servers.accounts import Account, message
from servers.auth_http import AuthServer
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.nginx import NginxMail
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import configuration

from mailroute.wire.proxy_header import version_2

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

    @contextlib.contextmanager
    def greeted(
        self, way: str, port: str, shown: Certificate | None = None, first: bytes = b""
    ) -> Iterator[RawImap]:
        """Connect to one of the two, begin with a PROXY header, and show a certificate, if there is one."""
        with RawImap("127.0.0.1", getattr(self, way).ports[port]) as session:
            session.send(first)
            if port in ("tls", "certified"):
                context = self.authority.context()
                if shown is not None:
                    context.load_cert_chain(shown.chain, shown.key)
                session.handshake(context)
            session.read(b"220 " if port in ("smtp", "mail") else b"\\* OK")
            yield session

    def login(self, way: str, port: str, user: bytes, password: bytes) -> tuple[bool, dict[str, str]]:
        """Log in; return whether that succeeded, and what the auth server was asked."""
        before = len(self.server.asked)
        plain = b64encode(b"\0" + user + b"\0" + password)
        with self.greeted(way, port) as session:
            if port == "smtp":
                session.send(b"EHLO client.example.org\r\n")
                session.read(b"250 ")
                session.send(b"AUTH PLAIN " + plain + b"\r\n")
                let_in = session.read(b"\\d\\d\\d ").startswith(b"2")
            else:
                let_in = b"a OK" in authenticated(session, plain)
        return let_in, self.asked(before)

    def asked(self, before: int) -> dict[str, str]:
        """Return what the auth server was asked, once, since it had been asked so often."""
        (asked,) = self.server.asked[before:]
        return {name: value for name, value in asked.items() if name != "Host"}


def authenticated(session: RawImap, response: bytes, mechanism: bytes = b"PLAIN") -> bytes:
    """Do a login of IMAP, and return how it ended."""
    session.send(b"a AUTHENTICATE " + mechanism + b"\r\n")
    session.read(b"\\+")
    session.send(response + b"\r\n")
    return session.read(b"a ")


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate, authority: Authority
) -> Iterator[Both]:
    def answer(headers, _body):
        user, password = (
            unquote(headers[name].encode("latin-1").decode("utf-8", "replace"))
            for name in ("Auth-User", "Auth-Pass")
        )
        if user.startswith("later") or "<later" in headers.get("Auth-SMTP-To", ""):
            return 200, {"Auth-Status": "Invalid login or password", "Auth-Wait": "1"}, b""
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
        nowhere = {"imap": "tcp:192.0.2.1:143", "submission": "tcp:192.0.2.1:587", "security": "none"}
        nowhere["smtp"] = "tcp:192.0.2.1:25"
        config = configuration(certificate, {"shards": nowhere})
        config["route"] = [route | {"url": server.url}]
        listen: dict[str, dict[str, object]] = {
            "plain": {"security": "none"},
            "tls": {"security": "tls"},
            "smtp": {"protocol": "submission", "security": "none"},
            "relayed": {"security": "none", "proxy_from": ["127.0.0.1"]},
            "mail": {"protocol": "smtp", "security": "none"},
        }
        with (
            NginxMail(folder / "nginx", certificate, server.port, authority) as nginx,
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
        assert both.login("mailroute", port, user.encode(), password) == through_nginx
        assert not through_nginx[0]


def test_nor_where_mail_is_submitted(both: Both) -> None:
    """The only protocol for that is SMTP, where nginx tells the client's host besides."""
    through_nginx = both.login("nginx", "smtp", b"bob", b"wrong")
    assert both.login("mailroute", "smtp", b"bob", b"wrong") == through_nginx
    assert through_nginx[1]["Client-Host"] == "[UNAVAILABLE]"


FOUR = version_2(("192.0.2.7", 40000), ("10.0.0.1", 993))
SIX = version_2(("2001:db8::7", 40000), ("2001:db8::1", 993), server_name="mail.example.org")
HEADERS = {
    "v1": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 993\r\n",
    "v1-six": b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 993\r\n",
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v2": FOUR,
    "v2-six": SIX,
    "v2-local": FOUR.replace(b"QUIT\n\x21", b"QUIT\n\x20"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_nor_behind_a_proxy(both: Both, kind: str) -> None:
    """What a PROXY header says of the client is told as nginx tells it, if it says anything."""
    told = []
    for way in ("nginx", "mailroute"):
        before = len(both.server.asked)
        with both.greeted(way, "relayed", first=HEADERS[kind]) as session:
            authenticated(session, b64encode(b"\0bob\0wrong"))
        told.append(both.asked(before))
    assert told[0] == told[1]
    assert ("Proxy-Protocol-Addr" in told[0]) is (kind not in ("v1-unknown", "v2-local"))


MAIL = [
    (b"EHLO client.example.org", b"MAIL FROM:<s@example.net>", b"RCPT TO:<bob@example.org>"),
    (b"HELO [192.0.2.7]", b"MAIL FROM:<>", b"RCPT TO:<bob>"),
    (b"EHLO c_%20 ", b"MAIL FROM:<a+b=c%d@example.net> SIZE=500 BODY=8BITMIME", b"RCPT TO:<%42@example.org>"),
    (b"EHLO c", b'MAIL FROM:<"a b"@example.net>', b'RCPT TO:<"b c"@example.org>'),
    (b"EHLO c", "MAIL FROM:<ü@example.net> SMTPUTF8".encode(), "RCPT TO:<ö@example.org>".encode()),
]


@pytest.mark.parametrize("said", MAIL)
def test_nor_where_mail_is_delivered(both: Both, said: tuple[bytes, ...]) -> None:
    """Without a password the server is told of the client's name, the sender and the recipient."""
    told = []
    for way in ("nginx", "mailroute"):
        before = len(both.server.asked)
        with both.greeted(way, "mail") as session:
            for line in said:
                session.send(line + b"\r\n")
                session.read(b"\\d\\d\\d ")
        told.append(both.asked(before))
    assert told[0] == told[1]
    assert told[0]["Auth-SMTP-From"].encode("latin-1") == said[1]


@pytest.mark.parametrize("way", ["nginx", "mailroute"])
def test_how_long_a_recipient_is_waited_with(both: Both, way: str) -> None:
    """Auth-Wait holds up the answer to a recipient as well."""
    with both.greeted(way, "mail") as session:
        for line in (b"EHLO c", b"MAIL FROM:<>"):
            session.send(line + b"\r\n")
            session.read(b"250 ")
        began = time.monotonic()
        session.send(b"RCPT TO:<later@example.org>\r\n")
        session.read(b"5\\d\\d ")
        assert time.monotonic() - began >= 1
        session.send(b"RSET\r\n")
        session.read(b"250 ")


@pytest.mark.parametrize("name", ["bob", "Bö b", '#a+b,c=d;e<f>"g\\h', " x ", "tab\tend", "€😀"])
def test_nor_with_a_certificate(both: Both, certificate: Certificate, name: str) -> None:
    """What is in a client's certificate is told as nginx tells it, whatever is in it."""
    shown = both.authority.issue(name, client=True, more=[x509.RFC822Name("bob@example.org")])
    config = configuration(certificate, {"shards": {"imap": "tcp:192.0.2.1:143", "security": "none"}})
    config["authenticate"] = [{"source": "external"}]
    config["backend"]["shards"]["login"] = "none"
    config["route"] = [readme("X-Auth-Key") | {"url": both.server.url, "pass_client_cert": True}]
    listen = {"certified": {"security": "tls", "client_ca": str(both.authority.file)}}
    told = []
    with Mailroute(listen, config) as proxy:
        for way in (both, evolve(both, nginx=proxy)):
            before = len(both.server.asked)
            with way.greeted("nginx", "certified", shown) as session:
                assert b"a NO" in authenticated(session, b64encode(b"bob@example.org"), b"EXTERNAL")
            told.append(both.asked(before))
    assert told[0] == told[1]
    assert (told[0]["Auth-Method"], told[0]["Auth-SSL-Verify"]) == ("external", "SUCCESS")
    assert unquote(told[0]["Auth-SSL-Cert"]) == Path(shown.chain).read_text()


def test_nor_without_a_certificate_where_one_is_asked_for(both: Both, certificate: Certificate) -> None:
    """A client that has none and logs in with a password is told apart."""
    config = configuration(certificate, {"shards": {"imap": "tcp:192.0.2.1:143", "security": "none"}})
    block = {key: value for key, value in readme("X-Auth-Key").items() if key != "backend"}
    config["authenticate"] = [{"source": "external"}, block | {"url": both.server.url}]
    config["backend"]["shards"]["login"] = "none"
    config["route"] = [{"source": "default", "backend": "shards"}]
    listen = {"certified": {"security": "tls", "client_ca": str(both.authority.file)}}
    with Mailroute(listen, config) as proxy:
        through_nginx = both.login("nginx", "certified", b"bob", b"wrong")
        assert evolve(both, nginx=proxy).login("nginx", "certified", b"bob", b"wrong") == through_nginx
    assert through_nginx[1]["Auth-SSL-Verify"] == "NONE"


@pytest.mark.parametrize("way", ["nginx", "mailroute"])
def test_who_may_try_again_and_when(both: Both, way: str) -> None:
    """With Auth-Wait the client waits so long for its answer, and may try again; else it is sent away."""
    before = len(both.server.asked)
    wrong = [b64encode(b"\0%s\0wrong" % user) for user in (b"later", b"now")]
    with both.greeted(way, "plain") as session:
        began = time.monotonic()
        assert b"a NO" in authenticated(session, wrong[0])
        assert time.monotonic() - began >= 1
        assert b"a NO" in authenticated(session, wrong[1])
        with pytest.raises(EOFError):
            session.read(b"b ")
    assert [asked["Auth-Login-Attempt"] for asked in both.server.asked[before:]] == ["1", "2"]


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
                    session.send(b64encode(f"\0{user}\0{PASSWORD}".encode()) + b"\r\n")
                    session.read(answered)
            assert len(server.asked) == 2
            assert "localhost:1 fails (ConnectionRefusedError: Connection refused; start " in proxy.log.text()
