"""Certificates that say who a client is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from authenticating import Thread, answer, lookup, refusal
from zope.interface.verify import verifyObject

from mailroute.authenticators import source
from mailroute.events import Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticator
from mailroute.names import UserNames
from mailroute.proofs import ClientCertificate, Proof
from mailroute.sources import BadOption, SourceContext
from mailroute.testing import CLIENT


def made(**options: object) -> Any:
    normalise = UserNames(lowercase_local_part=True).normalise
    context = SourceContext(Path(), frozenset(), normalise, None, Thread())
    return source("external").authenticator(options, context)


def ask(user: str, *emails: str, names: tuple[str, ...] = ()) -> Lookup:
    asked = lookup(user, b"", Proof.CERTIFICATE, "EXTERNAL")
    return evolve(asked, client=evolve(CLIENT, certificate=ClientCertificate(emails, names)))


async def later(external: Any, asked: Lookup) -> str | None:
    return external.authenticate(asked)


def refused(external: Any, asked: Lookup) -> Refusal:
    return refusal(later(external, asked))


def test_a_certificate_says_who_it_is() -> None:
    """The address in it is the user's name, in its one form, whether or not the client asks for it."""
    external = made()
    verifyObject(IAuthenticator, external)
    assert external.proofs == {Proof.CERTIFICATE}
    for user in ("", "alice@example.org"):
        assert answer(external.authenticate(ask(user, "Alice@EXAMPLE.org"))) == "alice@example.org"
    assert str(external) == "certificates say by their addresses who calls"


def test_the_common_name_may_be_the_name() -> None:
    """Where the operator says so, the subject's common name counts, and no address does."""
    by_name = made(name="cn")
    assert answer(by_name.authenticate(ask("", "x@example.org", names=("bob",)))) == "bob"
    assert answer(by_name.authenticate(ask("", "x@example.org"))) is None
    assert answer(made().authenticate(ask("", names=("bob",)))) is None


def test_of_several_names_the_client_chooses() -> None:
    """A certificate with two addresses opens either account, the one that is asked for."""
    external = made()
    both = ("alice@example.org", "info@example.org")
    for name in both:
        assert answer(external.authenticate(ask(name, *both))) == name
    assert refused(external, ask("", *both)).reason is Reason.AUTHENTICATION_FAILED


def test_nobody_else_is_opened() -> None:
    """A client that asks for an account that its certificate does not name is turned away."""
    no = refused(made(), ask("bob@example.org", "alice@example.org"))
    assert no.reason is Reason.AUTHORIZATION_FAILED


def test_without_a_certificate_nobody_gets_in() -> None:
    """EXTERNAL from a client that has shown nothing is a failed login, whatever it asks for."""
    for user in ("", "alice@example.org"):
        asked = lookup(user, b"", Proof.CERTIFICATE, "EXTERNAL")
        assert refused(made(), asked).reason is Reason.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "uid"}, 'name: must be "email" or "cn", not "uid"'),
        ({"name": 1}, 'name: must be "email" or "cn", not 1'),
        ({"nam": "cn"}, 'nam: unknown key; did you mean "name"'),
    ],
)
def test_a_bad_block_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    """A block that cannot work is told with the key and the reason."""
    with pytest.raises(BadOption, match=message):
        made(**options)
