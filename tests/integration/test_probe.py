"""``mailroute probe`` and real servers: sound ones, and all that can be wrong with them."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from probing import as_json, of_backend, only, probe, said
from servers.accounts import ALICE, BOB
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.postfix import Postfix
from servers.raw import RawImap

pytestmark = pytest.mark.integration

LONG = datetime.timedelta(days=90)


@pytest.fixture(scope="module")
def sound(authority: Authority) -> Certificate:
    return authority.issue("east.example.com", "127.0.0.1", lasts=LONG)


@pytest.fixture(scope="module")
def east(sound: Certificate) -> Iterator[Dovecot]:
    with Dovecot(Terms(certificate=sound, pop3=True, lmtp=True, sieve=True, ssl="required"), ALICE) as server:
        yield server


@pytest.fixture(scope="module")
def west(authority: Authority) -> Iterator[Dovecot]:
    """Return a server that trusts nobody's word on the client, and has a certificate for another name."""
    issued = authority.issue("west.example.com", lasts=LONG)
    terms = Terms(certificate=issued, pop3=True, lmtp=True, sieve=True, trusted=("192.0.2.0/24",))
    with Dovecot(terms, BOB) as server:
        yield server


@pytest.fixture
def trust(authority: Authority) -> dict[str, object]:
    """Return the keys of a block for a server with a sound certificate."""
    return {"verify": "east.example.com", "ca": str(authority.file)}


def accepted(folder: Path, report: dict[str, object], expected: int = 0) -> dict[str, object]:
    """Take what is to be written for the configuration, and return what comes of it."""
    text = str(report["configuration"]).replace("[backend.NAME", "[backend.east")
    (folder / "mailroute.toml").write_text(text)
    status, again = as_json(folder, "east")
    assert status == expected, said(again)
    return again


def test_a_server_that_is_as_configured(tmp_path: Path, east: Dovecot, trust: dict[str, object]) -> None:
    """Of each protocol everything is seen, and the status is 0."""
    places = {"imap": east.imap, "pop3": east.pop3, "lmtp": east.lmtp, "managesieve": east.sieve}
    keys = {name: f"tcp:127.0.0.1:{port}" for name, port in places.items()}
    status, report = of_backend(tmp_path, security="starttls", **keys, **trust)
    assert (status, said(report)) == (0, [])
    services = {service["protocol"]: service for service in report["services"]}
    assert list(services) == ["imap", "pop3", "lmtp", "managesieve"]
    for service in services.values():
        assert 0 <= service["connected_in"] < 10
        assert "ovecot" in service["greeting"]
        assert service["security"] == service["tls"]["begun_by"] == "starttls"
        assert service["tls"]["version"] == "TLSv1.3"
        shown = service["tls"]["certificate"]
        assert (shown["subject"], shown["issuer"]) == ("CN=east.example.com", "CN=mailroute test authority")
        assert shown["names"] == ["east.example.com", "127.0.0.1"]
        assert (shown["chain_faults"], shown["name_fault"], shown["days_left"]) == ([], "", 89)
    imap, pop3, lmtp, sieve = services.values()
    assert "STARTTLS" in imap["capabilities_in_clear"]
    assert "AUTH=PLAIN" in imap["capabilities_in_tls"]
    assert "STARTTLS" not in imap["capabilities_in_tls"]
    assert imap["mechanisms"] == ["PLAIN", "LOGIN"]
    assert "STLS" in pop3["capabilities_in_clear"]
    assert pop3["mechanisms"] == ["LOGIN", "PLAIN"]
    assert imap["password_command"]
    assert pop3["password_command"]
    assert [one["identity"]["taken"] for one in (pop3, lmtp, sieve)] == [True, True, True]
    assert "STARTTLS" in sieve["capabilities_in_clear"]
    assert any(word.startswith("SIEVE fileinto") for word in sieve["capabilities_in_tls"])
    assert sieve["mechanisms"] == ["LOGIN", "PLAIN"]
    assert "ADDR" in lmtp["identity"]["attributes"]
    accepted(tmp_path, report)


def test_the_servers_log_tells_whether_it_believed_the_id(
    tmp_path: Path, east: Dovecot, west: Dovecot, trust: dict[str, object]
) -> None:
    """IMAP's ID is answered alike by all: only the log has the session that is named, with its address."""
    for server, address in ((east, r"192\.0\.2\.1"), (west, r"127\.0\.0\.1")):
        mark = server.log.mark()
        keys = {**trust, "verify": "west.example.com"} if server is west else trust
        status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{server.imap}", **keys)
        assert status == 0, said(report)
        identity = only(report)["identity"]
        assert identity["taken"] is None
        session = identity["remedy"].partition("session ")[2].partition(":")[0]
        assert session.startswith("probe-")
        line = server.log.wait_for(rf"imap-login: .*rip={address}, .*$", mark)
        assert (session in line[0]) is (server is east)


def test_no_login_is_tried(tmp_path: Path, east: Dovecot, trust: dict[str, object]) -> None:
    """The server sees somebody come and go who never tried to log in."""
    mark = east.log.mark()
    places = {"imap": east.imap, "pop3": east.pop3, "managesieve": east.sieve}
    keys = {name: f"tcp:127.0.0.1:{port}" for name, port in places.items()}
    of_backend(tmp_path, **keys, **trust)
    for name in places:
        east.log.wait_for(rf"{name}-login: .*no auth attempts", mark)
    assert "auth failed" not in east.log.text(mark)


def test_tls_from_the_first_byte(tmp_path: Path, east: Dovecot, trust: dict[str, object]) -> None:
    """There is no list of capabilities in the clear then, and everything else is the same."""
    keys = {"imap": f"tcp:127.0.0.1:{east.imaps}", "pop3": f"tcp:127.0.0.1:{east.pop3s}"}
    status, report = of_backend(tmp_path, security="tls", **keys, **trust)
    assert (status, said(report)) == (0, [])
    for service in report["services"]:
        assert service["tls"]["begun_by"] == "tls"
        assert service["capabilities_in_clear"] is None
        assert service["capabilities_in_tls"]


def test_one_protocol_alone(tmp_path: Path, east: Dovecot, trust: dict[str, object]) -> None:
    """--protocol leaves the others alone."""
    keys = {"imap": f"tcp:127.0.0.1:{east.imap}", "pop3": "tcp:127.0.0.1:1"}
    status, report = of_backend(tmp_path, "--protocol", "imap", **keys, **trust)
    assert status == 0
    assert only(report)["protocol"] == "imap"


def test_a_host_that_is_not_configured(tmp_path: Path, east: Dovecot, authority: Authority) -> None:
    """HOST:PORT will do: what is found becomes a block, which lacks only the authority's file."""
    status, report = as_json(tmp_path, f"127.0.0.1:{east.imap}", "--protocol", "imap")
    assert (status, report["configured"]) == (1, False)
    (finding,) = said(report)
    assert finding.startswith(
        "its certificate: its issuer is not among the authorities: save the certificate"
    )
    assert "CN=mailroute test authority" in finding
    block = tomllib.loads(report["configuration"])["backend"]["NAME"]
    assert block == {
        "imap": f"tcp:127.0.0.1:{east.imap}",
        "security": "starttls",
        "verify": "127.0.0.1",
        "login": "replay",
        "identity": "native",
    }
    pasted = report["configuration"].replace('# ca = "authority.pem"', f'ca = "{authority.file}"')
    accepted(tmp_path, {"configuration": pasted})


def test_a_certificate_that_has_expired(tmp_path: Path, authority: Authority) -> None:
    """The certificate's problem is told, with the remedy; the rest is seen all the same."""
    old = authority.issue("old.example.com", lasts=datetime.timedelta(hours=-3))
    keys = {"verify": "old.example.com", "ca": str(authority.file)}
    with Dovecot(Terms(certificate=old), ALICE) as server:
        status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{server.imap}", **keys)
    assert status == 1
    assert said(report) == ["its certificate: it has expired: renew it on the backend"]
    assert only(report)["tls"]["certificate"]["days_left"] == -1
    assert "# they do not vouch for it: it has expired\n" in report["configuration"]
    assert only(report)["capabilities_in_tls"]


def test_a_certificate_for_another_name(tmp_path: Path, west: Dovecot, trust: dict[str, object]) -> None:
    """The names that it is for are told, and the block that is to be written has one of them."""
    status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{west.imap}", **trust)
    assert status == 1
    assert said(report) == [
        "its certificate: it does not carry the name east.example.com: "
        'if this is the right server, write verify = "west.example.com"'
    ]
    accepted(tmp_path, report)


def test_a_certificate_by_a_stranger(
    tmp_path: Path, east: Dovecot, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An authority that does not vouch for it is told, and who has issued it."""
    stranger = Authority(tmp_path_factory.mktemp("stranger"), "a stranger")
    keys = {"verify": "east.example.com", "ca": str(stranger.file)}
    status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{east.imap}", **keys)
    assert status == 1
    assert "its issuer is not among the authorities" in said(report)[0]
    assert "CN=mailroute test authority" in said(report)[0]


def test_a_port_with_tls_spoken_to_in_the_clear(
    tmp_path: Path, east: Dovecot, trust: dict[str, object]
) -> None:
    """The wrong kind of port is recognised, either way, and the block that is to be written is right."""
    keys = {"imap": f"tcp:127.0.0.1:{east.imaps}", "security": "starttls", **trust}
    status, report = of_backend(tmp_path, "--timeout", "2", **keys)
    assert status == 1
    assert said(report) == [
        'security = "starttls": on this port TLS begins with the first byte, and nothing is said in the '
        'clear: write security = "tls", or name the port where it greets in the clear'
    ]
    assert accepted(tmp_path, report)["services"][0]["security"] == "tls"
    keys = {"imap": f"tcp:127.0.0.1:{east.imap}", "security": "tls", **trust}
    status, report = of_backend(tmp_path, "--timeout", "2", **keys)
    assert status == 1
    assert said(report)[0].startswith(
        'security = "tls": on this port it greets in the clear: write security = "starttls"'
    )
    assert accepted(tmp_path, report)["services"][0]["security"] == "starttls"


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_a_port_behind_a_proxy_header(
    tmp_path: Path, east: Dovecot, trust: dict[str, object], identity: str
) -> None:
    """A header that is configured is sent, in the clear and before TLS, and it is seen that it is taken."""
    for port, security in ((east.imap_behind_proxy, "starttls"), (east.imaps_behind_proxy, "tls")):
        keys = {"imap": f"tcp:127.0.0.1:{port}", "security": security, "identity": identity, **trust}
        mark = east.log.mark()
        status, report = of_backend(tmp_path, **keys)
        assert (status, said(report)) == (0, [])
        assert only(report)["identity"]["how"] == identity
        assert only(report)["identity"]["taken"]
        east.log.wait_for(r"imap-login: .*rip=192\.0\.2\.1, lip=192\.0\.2\.2,", mark)
        accepted(tmp_path, report)


def test_a_port_that_waits_for_a_header(tmp_path: Path, east: Dovecot, trust: dict[str, object]) -> None:
    """A port that says nothing before it has a header is recognised."""
    keys = {"imap": f"tcp:127.0.0.1:{east.imap_behind_proxy}", **trust}
    status, report = of_backend(tmp_path, **keys)
    assert status == 1
    assert said(report) == [
        'identity = "native": on this port it says nothing before it has a PROXY header: '
        'write identity = "proxy-v2", or name the port where it takes none'
    ]
    accepted(tmp_path, report)


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
@pytest.mark.parametrize("protocol", ["imap", "pop3", "lmtp", "managesieve"])
def test_a_port_that_does_not_expect_a_header(
    tmp_path: Path, east: Dovecot, trust: dict[str, object], protocol: str, identity: str
) -> None:
    """A server that takes the header for a command is recognised, whatever it makes of it."""
    port = getattr(east, "sieve" if protocol == "managesieve" else protocol)
    keys = {protocol: f"tcp:127.0.0.1:{port}", "identity": identity, **trust}
    status, report = of_backend(tmp_path, "--timeout", "2", **keys)
    assert status == 1
    assert said(report)[0].startswith(
        f'identity = "{identity}": on this port it does not expect a PROXY header'
    )
    accepted(tmp_path, report)


def test_a_server_that_is_not_to_be_told(tmp_path: Path, west: Dovecot, authority: Authority) -> None:
    """A server that does not trust this host offers no XCLIENT: that is a finding, with both remedies."""
    places = {"pop3": west.pop3, "lmtp": west.lmtp, "managesieve": west.sieve}
    keys = {name: f"tcp:127.0.0.1:{port}" for name, port in places.items()}
    trust = {"verify": "west.example.com", "ca": str(authority.file)}
    status, report = of_backend(tmp_path, **keys, **trust)
    assert status == 1
    for finding in said(report):
        assert finding.startswith('identity = "native": ')
        assert "login_trusted_networks" in finding
        assert finding.endswith('or write identity = "none"')
    assert accepted(tmp_path, report)["services"][0]["identity"]["taken"] is False


def test_a_server_without_tls(tmp_path: Path) -> None:
    """STARTTLS that is configured and not offered is a finding; security = "none" is as configured then."""
    with Dovecot(Terms(ssl="no"), ALICE) as server:
        endpoint = f"tcp:127.0.0.1:{server.imap}"
        status, report = of_backend(tmp_path, imap=endpoint)
        assert status == 1
        assert said(report)[0].startswith('security = "starttls": the backend does not offer STARTTLS')
        status, report = of_backend(tmp_path, imap=endpoint, security="none")
        assert (status, said(report)) == (0, [])
        assert 'security = "none"  # there is no TLS to be had' in report["configuration"]


def test_tls_that_is_not_used(tmp_path: Path, west: Dovecot) -> None:
    """With security = "none" TLS is looked at if it is offered, and its faults are no findings."""
    status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{west.imap}", security="none")
    assert (status, said(report)) == (0, [])
    assert 'it offers TLS, which security = "none" does not use' in only(report)["notes"]
    assert only(report)["tls"]["version"] == "TLSv1.3"
    assert accepted(tmp_path, report)["ok"]


def test_protocols_that_need_blocks_of_their_own(
    tmp_path: Path, east: Dovecot, trust: dict[str, object]
) -> None:
    """Where one block cannot hold for all protocols, there are several to write."""
    keys = {"imap": f"tcp:127.0.0.1:{east.imap}", "pop3": f"tcp:127.0.0.1:{east.pop3s}", **trust}
    _, report = of_backend(tmp_path, "--timeout", "2", **keys)
    blocks = tomllib.loads(report["configuration"])["backend"]
    assert {name: block["security"] for name, block in blocks.items()} == {
        "east": "starttls",
        "east-pop3": "tls",
    }
    assert "pop3" not in blocks["east"]


def test_postfix(tmp_path: Path, sound: Certificate, trust: dict[str, object]) -> None:
    """Postfix says which attributes it wants, and takes them from those that it is told to trust."""
    tls = {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(sound.chain),
        "smtpd_tls_key_file": str(sound.key),
    }
    with Postfix(**tls, smtpd_authorized_xclient_hosts="127.0.0.0/8") as server:
        status, report = of_backend(tmp_path, smtp=f"tcp:127.0.0.1:{server.port}", **trust)
        assert (status, said(report)) == (0, [])
        service = only(report)
        assert service["greeting"].startswith("220 mx.example.net ESMTP")
        assert "STARTTLS" in service["capabilities_in_clear"]
        assert "PIPELINING" in service["capabilities_in_tls"]
        assert service["identity"]["taken"]
        assert set(service["identity"]["attributes"]) > {"NAME", "ADDR", "PROTO", "HELO"}
        assert "login" not in tomllib.loads(report["configuration"])["backend"]["east"]
        accepted(tmp_path, report)
        status, report = of_backend(
            tmp_path, "--timeout", "2", smtp=f"tcp:127.0.0.1:{server.port}", identity="proxy-v1", **trust
        )
        assert said(report)[0].startswith('identity = "proxy-v1": on this port it does not expect')
    with Postfix() as server:
        status, report = of_backend(tmp_path, smtp=f"tcp:127.0.0.1:{server.port}", security="none")
        assert status == 1
        assert "smtpd_authorized_xclient_hosts" in said(report)[0]


def test_a_server_that_stops_in_between(tmp_path: Path, sound: Certificate) -> None:
    """A server that is gone is told as such, and the block stays as it was."""
    with Dovecot(Terms(certificate=sound), ALICE) as server:
        endpoint = f"tcp:127.0.0.1:{server.imap}"
        with RawImap("127.0.0.1", server.imap) as session:
            session.greeting()
        server.kill()
        status, report = of_backend(tmp_path, imap=endpoint, verify="east.example.com", ca=str(sound.chain))
    assert status == 1
    assert "connection refused" in said(report)[0]
    assert f'\nca = "{sound.chain}"\n' in report["configuration"]  # which nobody can tell anything about
    block = tomllib.loads(report["configuration"])["backend"]["east"]
    assert (block["security"], block["verify"], block["ca"]) == (
        "starttls",
        "east.example.com",
        str(sound.chain),
    )


def test_as_people_read_it(tmp_path: Path, east: Dovecot, trust: dict[str, object]) -> None:
    """Without --json the same is told in lines."""
    of_backend(tmp_path, imap=f"tcp:127.0.0.1:{east.imap}", **trust)
    shown = probe(tmp_path, "east")
    assert (shown.returncode, shown.stderr) == (0, "")
    for words in (
        f"imap at tcp:127.0.0.1:{east.imap}\n",
        "  connected    in ",
        "  greeting     * OK ",
        "  TLS          on request (STARTTLS): TLSv1.3, ",
        "  certificate  CN=east.example.com, by CN=mailroute test authority\n",
        "  name         it carries east.example.com, as it must\n",
        "  chain        verified by the authorities in",
        " UTC, in 89 days\n",
        "  inside TLS   IMAP4rev1 · ",
        "  SASL         PLAIN, LOGIN\n",
        "  identity     native: cannot be told: ",
        "Everything is as configured.\n",
        "\n[backend.east]\n",
    ):
        assert words in shown.stdout
