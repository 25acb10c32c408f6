"""``[[authenticate]]`` blocks: what may stand there, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config.texts import SMALL
from twisted.application.service import IService
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from mailroute import config, service
from mailroute.config import ConfigError, Settings, build, describe
from mailroute.interfaces import IAuthenticator
from mailroute.proofs import Proof
from mailroute.service import server_contexts

Load = Callable[[str], Settings]
Errors = Callable[[str], list[str]]

FILE = '[[authenticate]]\nsource = "passwd-file"\nfile = "hashes"\n'
CHECKER = '[[authenticate]]\nsource = "checker"\nchecker = "file:passwd"\n'
MASTER = 'login = "master"\nmaster_user = "root"\nmaster_password_file = "master.txt"\n'


@pytest.fixture(autouse=True)
def hashes(folder: Path) -> None:
    (folder / "hashes").write_text("alice@example.org:{PLAIN}wonderland\n")


@implementer(IAuthenticator)
class Tokens:
    """Checks tokens."""

    proofs = frozenset({Proof.TOKEN})

    def authenticate(self, lookup: object) -> None:
        """Know nobody."""


def test_blocks_make_a_chain(load: Load) -> None:
    """The blocks are asked in order, each with its label, and what runs is started with the rest."""
    settings = load(f"{FILE}{CHECKER}on_error = 'next'\n{SMALL}")
    assert [(link.label, link.lenient) for link in settings.authenticators] == [
        ("authenticate[1] (passwd-file)", False),
        ("authenticate[2] (checker)", True),
    ]
    made = service(settings, MemoryReactorClock())
    assert settings.authenticators[0].authenticator in list(made)
    assert not IService.providedBy(settings.authenticators[1].authenticator)


def test_what_will_happen_is_told(load: Load, folder: Path) -> None:
    """The check of a configuration says who checks whom, and no password."""
    told = "\n".join(describe(load(f"{FILE}{CHECKER}on_error = 'next'\n{SMALL}")))
    assert (
        "takes logins in the clear, without TLS; the authenticators check who calls; offers PLAIN, " in told
    )
    assert f"Authenticator 1: passwords are checked by {folder}/hashes, which has 1 users now.\n" in told
    assert (
        f"2: passwords are checked by {folder}/passwd; if it cannot answer, the next one is asked.\n" in told
    )
    assert "A user whom no authenticator knows is turned away as if the password were wrong." in told
    assert "wonderland" not in told


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[[authenticate]]\nfile = "x"\n', '1: authenticate[1].source: missing: write one of "passwd-file"'),
        (
            '[[authenticate]]\nsource = "passwd-fil"\n',
            '2: authenticate[1].source: there is no authenticator "passwd-fil"; did you mean "passwd-file"?',
        ),
        ('[[authenticate]]\nsource = "passwd-file"\n', "1: authenticate[1].file: missing"),
        (f"{FILE}key = 1\n", "4: authenticate[1].key: unknown key; known: file"),
        (f"{FILE}on_error = 1\n", '4: authenticate[1].on_error: must be "refuse" or "next", not 1'),
        (f"{FILE}on_error = 'no'\n", '4: authenticate[1].on_error: must be "refuse" or "next", not "no"'),
        ('[authenticate]\nsource = "checker"\n', "1: authenticate: must be written with two brackets"),
    ],
)
def test_what_is_wrong_is_told(errors: Errors, text: str, error: str) -> None:
    """An error in a block is told with its line, its key and what to do, and makes no other look wrong."""
    (told,) = errors(text + SMALL.replace('imap = "tcp:10.0.0.1:143"\n', f'imap = "tcp:1.2.3.4:1"\n{MASTER}'))
    assert told.startswith(f"mailroute.toml:{error}")


def test_somebody_checks_passwords(load: Load, errors: Errors) -> None:
    """With a chain a backend may let in whoever mailroute says; without one nobody would check."""
    text = SMALL.replace('imap = "tcp:10.0.0.1:143"\n', f'imap = "tcp:10.0.0.1:143"\n{MASTER}')
    assert "anybody would get in unchecked; add an [[authenticate]] block" in errors(text)[0]
    assert load(FILE + text)


def test_a_listener_may_have_its_own(load: Load) -> None:
    """Where a listener names a checker, that one alone is asked."""
    settings = load(FILE + SMALL.replace("[backend", 'authenticate = "file:passwd"\n[backend'))
    (listener,) = settings.listeners
    assert settings.proofs(listener) == {Proof.PASSWORD}
    assert "passwd checks passwords" in describe(settings)[0]


def tree(**changes: Any) -> dict[str, Any]:
    listen = {"protocol": "imap", "endpoint": "tcp:143", "security": "none", **changes.pop("listen", {})}
    backend = {"imap": "tcp:127.0.0.1:143", "security": "none"}
    return {
        "listen": [listen],
        "backend": {"east": backend},
        "route": [{"source": "default", "backend": "east"}],
        **changes,
    }


@pytest.mark.parametrize(
    ("authenticate", "listen", "offered"),
    [
        ([], {}, ("PLAIN", "LOGIN")),
        ([], {"mechanisms": ["XOAUTH2"]}, ("XOAUTH2",)),
        (["memory"], {}, ("PLAIN", "LOGIN")),
        (["memory"], {"mechanisms": ["LOGIN"]}, ("LOGIN",)),
        ([Tokens()], {}, ("XOAUTH2", "OAUTHBEARER")),
        (["memory", Tokens()], {}, ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER")),
        ([Tokens()], {"authenticate": "memory:a:b"}, ("PLAIN", "LOGIN")),
    ],
)
def test_only_what_can_succeed_is_offered(
    authenticate: list[Any], listen: dict[str, Any], offered: tuple[str, ...]
) -> None:
    """A listener offers the mechanisms that the chain can check, or of them those that it lists."""
    memory = {"source": "checker", "checker": "memory:a:b"}
    chain = [memory if each == "memory" else each for each in authenticate]
    settings = build(MemoryReactorClock(), **tree(authenticate=chain, listen=listen))
    assert settings.mechanisms(settings.listeners[0]) == offered


@pytest.mark.parametrize(
    ("mechanism", "proof"), [("PLAIN", "password"), ("LOGIN", "password"), ("OAUTHBEARER", "token")]
)
def test_what_nobody_can_check_is_not_offered(mechanism: str, proof: str) -> None:
    """To list a mechanism that could never succeed is an error."""
    memory = {"source": "checker", "checker": "memory:a:b"}
    chain = [memory if proof == "token" else Tokens()]
    with pytest.raises(ConfigError) as error:
        build(MemoryReactorClock(), **tree(authenticate=chain, listen={"mechanisms": [mechanism]}))
    told = f'"{mechanism}" sends a {proof}, which no [[authenticate]] block can check: remove it'
    assert str(error.value) == f"listen[1].mechanisms: {told}"


@pytest.mark.parametrize("chain", [[], ["memory"], [Tokens()]], ids=["backend", "password", "token"])
@pytest.mark.parametrize("protocol", ["imap", "pop3", "managesieve", "submission"])
def test_no_mechanism_at_all_needs_another_way_in(protocol: str, chain: list[Any]) -> None:
    """An empty list is an error where nobody could log in: no command for it, or no password is checked."""
    memory = {"source": "checker", "checker": "memory:a:b"}
    listen = {"protocol": protocol, "mechanisms": []}
    backend = {protocol: "tcp:127.0.0.1:143", "security": "none"}
    chain = [memory if each == "memory" else each for each in chain]
    made = tree(authenticate=chain, listen=listen, backend={"east": backend})
    if protocol in ("imap", "pop3") and not any(isinstance(each, Tokens) for each in chain):
        assert build(MemoryReactorClock(), **made)
        return
    with pytest.raises(ConfigError) as error:
        build(MemoryReactorClock(), **made)
    why = "no password can be checked" if protocol in ("imap", "pop3") else f"{protocol} has no other login"
    assert str(error.value).startswith(f"listen[1].mechanisms: must not be empty: {why}")
    assert "leave it out" in str(error.value)


def test_another_process_makes_the_same(load: Load, folder: Path) -> None:
    """Workers have the chain from copies of the files, as they were when the configuration was read."""
    settings = load(f"workers = 2\n{FILE}{SMALL}")
    assert settings.source is not None
    assert folder / "hashes" in settings.source.files
    (folder / "hashes").unlink()
    (link,) = config.reread(settings.source, MemoryReactorClock()).authenticators
    assert str(link.authenticator).endswith("which has 1 users now")


def test_an_object_may_stand_for_a_block() -> None:
    """From Python an authenticator of one's own goes into the chain, and anything else does not."""
    mine = Tokens()
    settings = build(MemoryReactorClock(), **tree(authenticate=[mine]))
    assert settings.authenticators[0].authenticator is mine
    assert settings.authenticators[0].label == "authenticate[1] (Tokens)"
    with pytest.raises(ConfigError, match="must be a table or an IAuthenticator, not a object"):
        build(MemoryReactorClock(), **tree(authenticate=[object()]))


EXTERNAL = {"source": "external"}
WORD = {"imap": "tcp:127.0.0.1:143", "security": "none", "login": "none"}


def certified(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a tree in which clients' certificates are checked, but for the changes."""
    listen = {"security": "tls", "client_ca": "ca.pem", **changes.pop("listen", {})}
    listen = {key: value for key, value in listen.items() if value is not None}
    certificate = [{"chain": str(folder / "cert.pem"), "key": str(folder / "key.pem")}]
    usual = {"certificate": certificate, "authenticate": [EXTERNAL], "backend": {"east": WORD}}
    return tree(listen=listen, **{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({}, ("EXTERNAL",)),
        ({"listen": {"security": "starttls"}}, ("EXTERNAL",)),
        ({"backend": {"east": WORD, "west": {**WORD, "login": "replay"}}}, ("EXTERNAL",)),
        (
            {"backend": {"east": {**WORD, "login": "replay"}}, "listen": {"mechanisms": ["EXTERNAL"]}},
            ("EXTERNAL",),
        ),
        (
            {
                "authenticate": [EXTERNAL, Tokens()],
                "backend": {"east": {**WORD, "login": "replay"}, "west": {**WORD}},
                "listen": {"backend": "east"},
            },
            ("XOAUTH2", "OAUTHBEARER"),
        ),
    ],
)
def test_external_is_offered_where_it_can_succeed(
    folder: Path, changes: dict[str, Any], offered: tuple[str, ...]
) -> None:
    """Clients have to be asked for certificates, and there has to be a backend that need not see them."""
    settings = build(MemoryReactorClock(), folder=folder, **certified(folder, **changes))
    assert settings.mechanisms(settings.listeners[0]) == offered
    if offered:
        assert f"asks for certificates of the authorities in {folder}/ca.pem" in describe(settings)[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"listen": {"client_ca": None, "mechanisms": ["EXTERNAL"]}},
            'client_ca: missing: "EXTERNAL" needs it',
        ),
        (
            {"listen": {"client_ca": None}},
            "client_ca: missing: the [[authenticate]] blocks check certificates alone",
        ),
        ({"authenticate": ["memory"]}, "client_ca: is for nothing: nobody looks at the certificates"),
        (
            {"authenticate": ["memory"], "listen": {"client_ca": None, "mechanisms": ["EXTERNAL"]}},
            'mechanisms: "EXTERNAL" sends a certificate, which no [[authenticate]] block can check',
        ),
        (
            {
                "authenticate": [],
                "backend": {"east": {**WORD, "login": "replay"}},
                "listen": {"client_ca": None, "mechanisms": ["EXTERNAL"]},
            },
            'mechanisms: "EXTERNAL" sends a certificate, which a backend cannot be shown: remove it, or add',
        ),
        (
            {"backend": {"east": {**WORD, "login": "replay"}}},
            "mechanisms: missing: the [[authenticate]] blocks check certificates alone, which backends with "
            'login = "replay" cannot be shown: use login = "master"',
        ),
        (
            {
                "backend": {"east": {**WORD, "login": "replay"}, "west": {**WORD}},
                "listen": {"backend": "east"},
            },
            "mechanisms: missing: the [[authenticate]] blocks check certificates alone",
        ),
        ({"listen": {"security": "none"}}, 'client_ca: means nothing with security = "none"'),
        ({"listen": {"client_ca": "hashes"}}, "client_ca: "),
        ({"listen": {"client_ca": "none.pem"}}, "client_ca: cannot read "),
    ],
)
def test_certificates_that_nobody_checks_are_told(folder: Path, changes: dict[str, Any], error: str) -> None:
    """What is missing for EXTERNAL, or is there for nothing, is an error with its key."""
    memory = {"source": "checker", "checker": "memory:a:b"}
    if "authenticate" in changes:
        changes = {**changes, "authenticate": [memory for _ in changes["authenticate"]]}
    with pytest.raises(ConfigError) as found:
        build(MemoryReactorClock(), folder=folder, **certified(folder, **changes))
    (line,) = str(found.value).split("\n")
    assert line.startswith(f"listen[1].{error}")


KEYS = (
    "bob:{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,"
    "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)
BOTH = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")


@pytest.mark.parametrize(
    ("lines", "changes", "offered"),
    [
        (KEYS, {}, ("PLAIN", "LOGIN", *BOTH)),
        (KEYS, {"security": "none", "client_ca": None}, ("PLAIN", "LOGIN", "SCRAM-SHA-256")),
        (f"{KEYS}\neve:{{PLAIN}}x", {}, ("PLAIN", "LOGIN")),
        (KEYS, {"mechanisms": ["SCRAM-SHA-256"]}, ("SCRAM-SHA-256",)),
        (KEYS, {"west": "replay"}, ("PLAIN", "LOGIN")),
        (KEYS, {"west": "replay", "backend": "west"}, ("PLAIN", "LOGIN")),
        (KEYS, {"west": "replay", "backend": "east"}, ("PLAIN", "LOGIN", *BOTH)),
        (KEYS, {"west": "none"}, ("PLAIN", "LOGIN", *BOTH)),
        (KEYS, {"west": "replay", "mechanisms": ["SCRAM-SHA-256"]}, ("SCRAM-SHA-256",)),
    ],
)
def test_scram_is_offered_where_it_can_succeed(
    folder: Path, lines: str, changes: dict[str, Any], offered: tuple[str, ...]
) -> None:
    """All users have to have keys, no backend may need their passwords, and channel binding needs TLS."""
    (folder / "hashes").write_text(f"{lines}\n")
    chain = [{"source": "passwd-file", "file": "hashes"}]
    west = {"west": {**WORD, "login": changes["west"]}} if "west" in changes else {}
    listen = {"client_ca": None, **{key: each for key, each in changes.items() if key != "west"}}
    made = certified(folder, authenticate=chain, listen=listen, backend={"east": WORD, **west})
    settings = build(MemoryReactorClock(), folder=folder, **made)
    assert settings.mechanisms(settings.listeners[0]) == offered


def test_scram_that_fails_some_may_be_listed(folder: Path) -> None:
    """SCRAM is offered where it is listed, though some users have no keys; if none can, it is an error."""
    (folder / "hashes").write_text(f"{KEYS}\neve:{{PLAIN}}x\n")
    chain = [{"source": "passwd-file", "file": "hashes"}]
    listen = {"client_ca": None, "mechanisms": ["PLAIN", "SCRAM-SHA-256"]}
    made = certified(folder, authenticate=chain, listen=listen)
    settings = build(MemoryReactorClock(), folder=folder, **made)
    assert settings.mechanisms(settings.listeners[0]) == ("PLAIN", "SCRAM-SHA-256")
    memory = [{"source": "checker", "checker": "memory:a:b"}]
    with pytest.raises(ConfigError, match='"SCRAM-SHA-256" sends a SCRAM-SHA-256 exchange, which no'):
        build(MemoryReactorClock(), folder=folder, **{**made, "authenticate": memory})


def test_only_who_wants_certificates_asks_for_them(folder: Path) -> None:
    """Of several listeners with one certificate, those with ``client_ca`` alone ask their clients."""
    asking = certified(folder, authenticate=[EXTERNAL, Tokens()])
    (first,) = asking["listen"]
    silent = {**first, "endpoint": "tcp:2"}
    del silent["client_ca"]
    listeners = [first, silent, {**first, "endpoint": "tcp:3"}]
    settings = build(MemoryReactorClock(), folder=folder, **{**asking, "listen": listeners})
    made = [each.serverConnectionForTLS(None) for each in server_contexts(settings)]  # type: ignore[union-attr,arg-type]
    assert [each.asks for each in made] == [True, False, True]  # type: ignore[attr-defined]
