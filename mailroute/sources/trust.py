"""Whom a source trusts that asks over TLS."""

from __future__ import annotations

from collections.abc import Callable

from OpenSSL import SSL

from mailroute.sources.context import BadOption, SourceContext
from mailroute.tls import ClientTLS, authorities, client_context

TLSByName = Callable[[str], ClientTLS]
"""Makes the client's side of TLS for a server, by the name that its certificate must carry."""


def tls_for(context: SourceContext, ca: str | None, key: str = "ca") -> TLSByName:
    """Return what makes the client's side of TLS for servers.

    :param ca: the PEM file with the authorities that may vouch for them; None: the system's.
    :raises BadOption: the file cannot be read, or holds no certificates.
    """
    roots = None
    if ca is not None:
        path = context.folder / ca
        try:
            roots = authorities(context.copies.read(path))
        except OSError as error:
            raise BadOption(key, f"cannot read {path}: {error.strerror or error}") from None
        except ValueError:
            fault = f"{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
            raise BadOption(key, fault) from None
    return trusting(roots)


def trusting(roots: object | None) -> TLSByName:
    """Return what makes the client's side of TLS for servers for which a trust root vouches.

    :param roots: Twisted's trust root; None for the system's authorities.
    """
    made: list[SSL.Context] = []

    def make(name: str) -> ClientTLS:
        # Only when it is needed: the system's authorities are hundreds.
        if not made:
            made.append(client_context(roots))
        return ClientTLS(name, made[0])

    return make
