"""Real balancers in front of mailroute, and a real mail server behind: who the client is gets through."""

from __future__ import annotations

import base64
import contextlib
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from servers.accounts import ALICE, message
from servers.certificates import Authority, Certificate
from servers.commands import run
from servers.dovecot import Dovecot, Terms
from servers.haproxy import HAProxy
from servers.processes import ServerProcess, accepts, free_port, wait_until
from servers.programs import nginx_module, program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, users

from mailroute.wire.proxy_header import version_2

pytestmark = pytest.mark.integration

SOURCE, OTHER = "127.0.0.77", "127.0.0.78"
"""Addresses of this machine that are nobody's unless somebody binds a socket to them."""

BALANCER = {"proxy_from": ["127.0.0.1"]}
"""Balancers here connect from this address; whoever comes from another one is a client."""

CHECKSUM = "send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl,authority"


_PLAIN = base64.b64encode(f"\0{ALICE.user}\0{ALICE.password}".encode()).decode()

VISITS = {
    "imap": f'a LOGIN "{ALICE.user}" "{ALICE.password}"\r\nb LOGOUT\r\n',
    "pop3": f"USER {ALICE.user}\r\nPASS {ALICE.password}\r\nQUIT\r\n",
    "submission": f"EHLO client.example\r\nAUTH PLAIN {_PLAIN}\r\nQUIT\r\n",
    "managesieve": f'AUTHENTICATE "PLAIN" "{_PLAIN}"\r\nLOGOUT\r\n',
}
"""What a client says that logs in and leaves, by the name of what it speaks."""


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    relay = Controller(Sink(), "127.0.0.1", free_port())
    relay.start()
    terms = Terms(certificate=certificate, lmtp=True, pop3=True, sieve=True, relay=relay.port)
    try:
        with Dovecot(terms, ALICE) as server:
            server.deliver(ALICE, message("for alice"))
            yield server
    finally:
        relay.stop()


@pytest.fixture(params=[1, 2], ids=["alone", "workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


@contextlib.contextmanager
def relayed(
    listen: dict[str, dict[str, object]],
    east: Dovecot,
    authority: Authority,
    certificate: Certificate,
    workers: int = 1,
    **limits: float,
) -> Iterator[Mailroute]:
    """Run mailroute with these listeners."""
    ports = {
        "lmtp": east.lmtp,
        "pop3": east.pop3,
        "submission": east.submission,
        "managesieve": east.sieve,
    }
    keys = {name: f"tcp:127.0.0.1:{port}" for name, port in ports.items()}
    config = configuration(certificate, {"east": backend(east, authority, **keys)}, **limits)
    with Mailroute(listen, {"workers": workers, **config}, users(ALICE)) as proxy:
        if workers > 1:
            proxy.log.wait_for(f"worker {workers} is ready")
        yield proxy


def log_in(session: RawImap) -> None:
    assert b"a OK" in session.command(f'a LOGIN "{ALICE.user}" "{ALICE.password}"')
    assert b" EXISTS" in session.command("b SELECT INBOX")
    session.command("c LOGOUT")


def visit(
    port: int, security: str = "none", authority: Authority | None = None, source: str = SOURCE
) -> None:
    """Log in from an address, look, and leave."""
    with RawImap("127.0.0.1", port, source) as session:
        if security == "tls":
            session.handshake(authority.context())
        session.greeting()
        if security == "starttls":
            session.starttls(authority.context())
        log_in(session)


def test_the_client_of_haproxy(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate, workers: int
) -> None:
    """With every version of the header and kind of TLS, both logs have the client's own address."""
    listen = {word: {"security": word, **BALANCER} for word in ("none", "starttls", "tls")}
    with relayed(listen, east, authority, certificate, workers) as proxy:
        words = {"v1": "send-proxy", "v2": "send-proxy-v2", "checksum": CHECKSUM}
        ways = {
            f"{name}-{security}": f"127.0.0.1:{proxy.ports[security]} {word}"
            for name, word in words.items()
            for security in listen
        }
        with HAProxy(tmp_path / "haproxy", ways) as balancer:
            for way in ways:
                mark, seen = proxy.log.mark(), east.log.mark()
                visit(balancer.ports[way], way.partition("-")[2], authority)
                line = east.log.wait_for(r"imap-login: .*user=<alice@example\.com>.*, rip=(\S+),", seen)
                assert line[1] == SOURCE, way
                line = proxy.log.wait_for(r"session \S+ ended: user=alice@example\.com client=(\S+):", mark)
                assert line[1] == SOURCE, way


@pytest.mark.parametrize("word", ["send-proxy", "send-proxy-v2"])
def test_every_protocol_behind_haproxy(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate, word: str
) -> None:
    """Whatever a client speaks, the server that it logs in to has the client's own address in its log."""
    listen = {name: {"protocol": name, "security": "none", **BALANCER} for name in VISITS}
    with relayed(listen, east, authority, certificate) as proxy:
        ways = {name: f"127.0.0.1:{port} {word}" for name, port in proxy.ports.items()}
        with HAProxy(tmp_path / "haproxy", ways) as balancer:
            for name, visit in VISITS.items():
                mark, seen = proxy.log.mark(), east.log.mark()
                with RawImap("127.0.0.1", balancer.ports[name], SOURCE) as client:
                    client.send(visit.encode())
                    client.rest()
                line = east.log.wait_for(rf"{name}-login: .*: user=<(\S+)>.*, rip=(\S+), lip=", seen)
                assert (line[1], line[2]) == (ALICE.user, SOURCE), name
                proxy.log.wait_for(rf"ended: user={ALICE.user} client={re.escape(SOURCE)}:", mark)


def test_a_client_whose_port_is_not_known(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """A balancer that has the client's address from elsewhere (HAProxy's set-src) has 0 for its port."""
    listen = {name: {"protocol": name, "security": "none", **BALANCER} for name in (*VISITS, "lmtp")}
    visits = VISITS | {"lmtp": f"LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<{ALICE.user}>\r\nQUIT\r\n"}
    with relayed(listen, east, authority, certificate) as proxy:
        for name, visit in visits.items():
            seen = east.log.mark()
            with RawImap("127.0.0.1", proxy.ports[name]) as client:
                client.send(version_2(("192.0.2.9", 0), ("198.51.100.1", 0)) + visit.encode())
                client.rest()
            east.log.wait_for(r"lmtp.* from 192\.0\.2\.9" if name == "lmtp" else r"rip=192\.0\.2\.9,", seen)


def test_a_unix_socket_behind_haproxy(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate, workers: int
) -> None:
    """HAProxy on the same machine may come over a UNIX socket, and tell of clients that came by TCP."""
    path = tmp_path / "imap"
    listen = {"imap": {"endpoint": f"unix:{path}", "security": "none", "proxy_from": ["unix"]}}
    with relayed(listen, east, authority, certificate, workers) as proxy:
        # Without a port of its own it may be said to have started before it listens.
        wait_until("the socket", path.exists)
        with HAProxy(tmp_path / "haproxy", {"imap": f"unix@{path} send-proxy-v2"}) as balancer:
            visit(balancer.ports["imap"])
            proxy.log.wait_for(rf"session \S+ ended: user=alice@example\.com client={re.escape(SOURCE)}:")


def test_health_checks_are_not_heard_of(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """Checks of every kind find mailroute well, and leave no line in its log."""
    with relayed({"imap": {"security": "none", **BALANCER}}, east, authority, certificate) as proxy:
        where = f"127.0.0.1:{proxy.ports['imap']}"
        often = "check inter 50ms"
        greeting = ("option tcp-check", "tcp-check expect string ready", "tcp-check send a\\ LOGOUT\\r\\n")
        ways = {
            "bare": f"{where} send-proxy-v2 {often} port {proxy.ports['imap']}",
            "v1": f"{where} send-proxy {often}",
            "v2": f"{where} send-proxy-v2 {often}",
            "greeting1": f"{where} send-proxy {often} check-send-proxy",
            "greeting2": f"{where} send-proxy-v2 {often} check-send-proxy",
        }
        proxy.log.wait_for("listening: ")
        mark = proxy.log.mark()
        options = {"greeting1": greeting, "greeting2": greeting}
        with HAProxy(tmp_path / "haproxy", ways, options) as balancer:
            wanted = {"bare": "L4OK", "v1": "L4OK", "v2": "L4OK", "greeting1": "L7OK", "greeting2": "L7OK"}
            wait_until("the checks", lambda: balancer.checked() == wanted)
            # Those who come between the checks are heard of as ever.
            visit(balancer.ports["v2"])
            proxy.log.wait_for("ended: user=alice@example.com", mark)
            assert balancer.checked() == wanted
        lines = proxy.log.text(mark).splitlines()
        assert len(lines) == 1, lines
        assert "user=alice@example.com" in lines[0]


@pytest.mark.parametrize("word", ["send-proxy", "send-proxy-v2"])
def test_limits_are_those_of_the_clients(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate, workers: int, word: str
) -> None:
    """Behind one balancer each address has its own share, in all workers together."""
    listen = {"imap": {"security": "none", **BALANCER}}
    with relayed(listen, east, authority, certificate, workers, connections_per_address=2) as proxy:
        ways = {"imap": f"127.0.0.1:{proxy.ports['imap']} {word}"}
        with HAProxy(tmp_path / "haproxy", ways) as balancer, contextlib.ExitStack() as crowd:

            def come(source: str) -> RawImap:
                return crowd.enter_context(RawImap("127.0.0.1", balancer.ports["imap"], source))

            for source in (SOURCE, OTHER):
                for _ in range(2):
                    assert b"* OK" in come(source).greeting()
                assert come(source).rest().startswith(b"* BYE [LIMIT] Too many connections from your address")


def test_whoever_passes_the_balancer_by_is_a_client(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """From another address the listener serves clients as ever, and takes no header from them."""
    with relayed({"imap": {"security": "none", **BALANCER}}, east, authority, certificate) as proxy:
        visit(proxy.ports["imap"])
        with RawImap("127.0.0.1", proxy.ports["imap"], SOURCE) as liar:
            liar.greeting()
            liar.send(b"PROXY TCP4 192.0.2.66 192.0.2.1 1 2\r\n")
            assert liar.rest() == b"* BYE No PROXY header is taken from your address.\r\n"
        proxy.log.wait_for("ended: .*a PROXY header, and its address is not in this listener's proxy_from")
        assert b"192.0.2.66" not in proxy.log.path.read_bytes()
        with RawImap("127.0.0.1", proxy.ports["imap"]) as balancer:
            balancer.send(b"a NOOP\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert balancer.rest() == b""
        proxy.log.wait_for(
            r'no PROXY header from 127\.0\.0\.1:\d+ on "imap tcp:.*": it begins with something'
        )


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_mailroute_in_front_of_mailroute(
    east: Dovecot, authority: Authority, certificate: Certificate, workers: int, identity: str
) -> None:
    """One that forwards TCP hands the client's address to one that speaks IMAP, and that to the server."""
    listen = {"imaps": {"security": "tls", **BALANCER}}
    with relayed(listen, east, authority, certificate, workers) as inner:
        config = {
            "workers": workers,
            "backend": {"inner": {"tcp": f"tcp:127.0.0.1:{inner.ports['imaps']}", "identity": identity}},
        }
        forward = {"protocol": "tcp", "security": "none", "backend": "inner"}
        with Mailroute({"outer": forward}, config) as outer:
            seen = east.log.mark()
            visit(outer.ports["outer"], "tls", authority)
            line = east.log.wait_for(r"imap-login: .*user=<alice@example\.com>.*, rip=(\S+),", seen)
            assert line[1] == SOURCE
            inner.log.wait_for(rf"ended: user=alice@example\.com client={re.escape(SOURCE)}:.* tls=TLSv1\.3 ")


def test_mail_is_delivered_behind_a_balancer(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """Where mail is delivered the sender's address gets through as well."""
    listen = {"lmtp": {"protocol": "lmtp", "security": "none", **BALANCER}}
    with relayed(listen, east, authority, certificate) as proxy:
        ways = {"lmtp": f"127.0.0.1:{proxy.ports['lmtp']} send-proxy-v2"}
        with HAProxy(tmp_path / "haproxy", ways) as balancer:
            mark = proxy.log.mark()
            with smtplib.LMTP("127.0.0.1", balancer.ports["lmtp"], source_address=(SOURCE, 0)) as sender:
                assert sender.sendmail("author@example.net", [ALICE.user], message("by lmtp")) == {}
            proxy.log.wait_for(rf"session \S+ ended: user=- client={re.escape(SOURCE)}:", mark)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_swaks_stands_for_a_client(
    tmp_path: Path,
    east: Dovecot,
    authority: Authority,
    certificate: Certificate,
    security: str,
    version: str,
) -> None:
    """The tool that operators test with says in either version that somebody else sends the message."""
    client = "192.0.2.55"
    listen = {name: {"protocol": name, "security": security, **BALANCER} for name in ("submission", "lmtp")}
    with relayed(listen, east, authority, certificate) as proxy:
        said = ["--proxy-version", version, "--proxy-source", client, "--proxy-source-port", "40000"]
        said += ["--proxy-dest", "198.51.100.1", "--proxy-dest-port", "25"]
        v1, v2 = ["--proxy-family", "TCP4"], ["--proxy-family", "AF_INET", "--proxy-command", "PROXY"]
        said += v1 if version == "1" else [*v2, "--proxy-protocol", "STREAM"]
        tls = {"none": [], "starttls": ["--tls"], "tls": ["--tls-on-connect"]}[security]
        tls += ["--tls-verify", "--tls-ca-path", str(authority.file)] if tls else []
        login = ["--auth", "PLAIN", "--auth-user", ALICE.user, "--auth-password", ALICE.password]
        for name, more in (("submission", login), ("lmtp", ["--protocol", "LMTP"])):
            mark, seen = proxy.log.mark(), east.log.mark()
            where = ["--server", f"localhost:{proxy.ports[name]}", "--local-interface", "127.0.0.1"]
            letter = ["--from", "author@example.net", "--to", ALICE.user]
            run([program("swaks", "swaks"), *where, *said, *tls, *more, *letter], tmp_path)
            proxy.log.wait_for(rf"ended: user=\S+ client={re.escape(client)}:40000 ", mark)
            told = {"submission": rf"rip={re.escape(client)},", "lmtp": rf"from {re.escape(client)}\b"}
            east.log.wait_for(told[name], seen)


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_curl_brings_a_header(
    tmp_path: Path,
    east: Dovecot,
    authority: Authority,
    certificate: Certificate,
    protocol: str,
    security: str,
) -> None:
    """A listener that wants a header of curl gives it its mail, and nothing without one."""
    with relayed(
        {"in": {"protocol": protocol, "security": security, **BALANCER}}, east, authority, certificate
    ) as proxy:
        scheme = f"{protocol}s" if security == "tls" else protocol
        url = f"{scheme}://localhost:{proxy.ports['in']}/" + ("INBOX;UID=1" if protocol == "imap" else "1")
        command = [program("curl", "curl"), "--silent", "--show-error", "--interface", "127.0.0.1"]
        command += [] if security == "none" else ["--ssl-reqd", "--cacert", str(authority.file)]
        command += ["--user", f"{ALICE.user}:{ALICE.password}", url]
        mark = proxy.log.mark()
        assert b"\nSubject: " in run([*command, "--haproxy-protocol"], tmp_path).stdout
        proxy.log.wait_for(rf"ended: user={ALICE.user} client=127\.0\.0\.1:", mark)
        assert run(command, tmp_path, check=False).returncode
        proxy.log.wait_for(r"no PROXY header from 127\.0\.0\.1:", mark)


_NGINX = """\
load_module {module};
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 64; }}
stream {{
    server {{
        listen 127.0.0.1:{port};
        proxy_pass 127.0.0.1:{to};
        proxy_protocol on;
    }}
}}
"""


def test_the_client_of_nginx(
    tmp_path: Path, east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """The stream proxy of nginx says who its clients are by a header of version 1."""
    with relayed({"imap": {"security": "starttls", **BALANCER}}, east, authority, certificate) as proxy:
        port = free_port()
        module = nginx_module("stream", "libnginx-mod-stream")
        text = _NGINX.format(module=module, folder=tmp_path, port=port, to=proxy.ports["imap"])
        (tmp_path / "nginx.conf").write_text(text)
        command = [program("nginx", "nginx-light"), "-p", str(tmp_path)]
        nginx = ServerProcess(
            [*command, "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "start.log")],
            tmp_path / "output",
        )
        try:
            wait_until("nginx's start", lambda: not nginx.running() or accepts("127.0.0.1", port))
            assert nginx.running(), (tmp_path / "output").read_text()
            visit(port, "starttls", authority)
            proxy.log.wait_for(rf"ended: user=alice@example\.com client={re.escape(SOURCE)}:")
        finally:
            nginx.stop()
