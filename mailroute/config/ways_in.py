"""Whether a listener's clients have a way in: mechanisms that somebody can check, and a backend can bear."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from mailroute.config.models import Backend, Listener, unshown
from mailroute.proofs import Proof, proof_of

_Found = Iterator[tuple[tuple[str, ...], str]]


def ways_in(
    listener: Listener, can: Collection[Proof], who: str, backends: Mapping[str, Backend] | None
) -> _Found:
    """Yield the keys that leave nobody a way in, or one that fails, and what to do about it.

    :param can: what can be checked.
    :param who: does not check the rest, for a person.
    :param backends: all that there are; None if some of them are not sound.
    """
    for word in listener.mechanisms if "mechanisms" in listener.model_fields_set else ():
        proof = proof_of(word)
        if proof not in can:
            yield ("mechanisms",), f'"{word}" sends a {proof.value}, which {who}'
        elif proof is Proof.CERTIFICATE and listener.client_ca is None:
            yield ("client_ca",), f'missing: "{word}" needs it, a PEM file with those who vouch for clients'
    if "mechanisms" in listener.model_fields_set:
        yield from () if listener.mechanisms else _without_mechanisms(listener, can)
    elif can == {Proof.CERTIFICATE}:
        yield from _certificates_alone(listener, backends)
    if listener.client_ca is not None and Proof.CERTIFICATE not in can:
        message = 'is for nothing: nobody looks at the certificates; add [[authenticate]] source = "external"'
        yield ("client_ca",), message


def _certificates_alone(listener: Listener, backends: Mapping[str, Backend] | None) -> _Found:
    """Find what keeps everybody out where there is no other way in."""
    why = "missing: the [[authenticate]] blocks check certificates alone"
    if listener.client_ca is None:
        message = f"{why}, and nobody could log in without; give a PEM file with those who vouch for clients"
        yield ("client_ca",), message
    elif backends is not None and not any(unshown(listener, backends)):
        message = (
            f'{why}, which backends with login = "replay" cannot be shown: use login = "master", "oauth2" or '
            '"none", or list "EXTERNAL" if routes give passwords'
        )
        yield ("mechanisms",), message


def _without_mechanisms(listener: Listener, can: Collection[Proof]) -> _Found:
    """Find an empty list where it leaves nobody a way in."""
    protocol = listener.protocol
    why = "no password can be checked" if protocol.password_command else f"{protocol.name} has no other login"
    if not protocol.password_command or Proof.PASSWORD not in can:
        yield ("mechanisms",), f"must not be empty: {why}, so nobody could get in; list some, or leave it out"
