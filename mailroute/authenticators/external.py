"""The ``external`` source: the certificate that a client has shown in its TLS handshake says who it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticateSource, IAuthenticator
from mailroute.proofs import ClientCertificate, Proof
from mailroute.sources import BadOption, SourceContext, only
from mailroute.wording import listed, shown

_NAMES: Mapping[str, Callable[[ClientCertificate], tuple[str, ...]]] = {
    "email": lambda certificate: certificate.emails,
    "cn": lambda certificate: certificate.common_names,
}

_SAID = {"email": "addresses", "cn": "common name"}


@implementer(IAuthenticator)
class CertificateAuthenticator:
    """Takes users' names from certificates (SASL EXTERNAL, RFC 4422 appendix A).

    That they are good, the listener has seen to: it has checked them in the handshake.

    :param normalise: brings a name into its one form.
    :param name: which part of a certificate has the name: ``email`` or ``cn``.
    """

    proofs = frozenset({Proof.CERTIFICATE})

    def __init__(self, normalise: Callable[[str], str], name: str) -> None:
        self._normalise = normalise
        self._name = name

    def authenticate(self, lookup: Lookup) -> str | None:
        """Return the name in the certificate; of several, the one that the client asks for.

        A certificate without any is left to the next authenticator.
        """
        if lookup.client.certificate is None:
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "the client has no certificate"))
        names = {self._normalise(name) for name in _NAMES[self._name](lookup.client.certificate)}
        if not names:
            return None
        if not lookup.user:
            if len(names) > 1:
                detail = "the certificate has several names, and the client asks for none of them"
                raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
            return names.pop()
        if lookup.user not in names:
            detail = f"the certificate is {' and '.join(sorted(names))}'s"
            raise LoginRefused(Refusal(Reason.AUTHORIZATION_FAILED, detail))
        return lookup.user

    def __str__(self) -> str:
        return f"certificates say by their {_SAID[self._name]} who calls"


@implementer(IAuthenticateSource)
class ExternalSource:
    """Makes a `CertificateAuthenticator` from the key ``name``."""

    name = "external"

    def authenticator(self, options: Mapping[str, object], context: object) -> CertificateAuthenticator:
        """Make the authenticator; see `IAuthenticateSource.authenticator`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("name",))
        name = options.get("name", "email")
        if not isinstance(name, str) or name not in _NAMES:
            raise BadOption("name", f"must be {listed(_NAMES)}, not {shown(name)}")
        return CertificateAuthenticator(context.normalise, name)
