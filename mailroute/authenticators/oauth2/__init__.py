"""The ``oauth2`` source: bearer tokens, signed with keys that are known, or known to a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from zope.interface import implementer

from mailroute.authenticators.oauth2.authenticator import TokenAuthenticator, Validator
from mailroute.authenticators.oauth2.introspection import Introspection
from mailroute.interfaces import IAuthenticateSource
from mailroute.sources import BadOption, GuardOptions, SourceContext, read_options, secret, web_address
from mailroute.sources.trust import tls_for
from mailroute.web import Web

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by key pairs: whoever can check one cannot make one."""

_SHARED = ("HS256", "HS384", "HS512")
"""Signatures by a shared secret, for who asks for them by name."""


def _list(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _algorithms(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in (*ALGORITHMS, *_SHARED):
            raise ValueError(f'"{name}" is no signature that can be checked here: write for example "RS256"')
    return names


_Strings = Annotated[tuple[str, ...], BeforeValidator(_list)]
_Url = Annotated[str, AfterValidator(web_address)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OAuth2Options(GuardOptions):
    """The keys of a block; the caches and the breaker are those of introspection."""

    jwks: str | None = None
    """The keys that sign tokens (RFC 7517), a file or an https address; tokens are JWTs, checked here."""

    issuer: str | None = None
    """Who must have issued a token: its claim ``iss``; required with ``jwks``."""

    audience: _Strings = ()
    """For whom a token must be, one of these: its claim ``aud``; required with ``jwks``."""

    algorithms: Annotated[_Strings, AfterValidator(_algorithms)] = ALGORITHMS
    """The signatures that are taken; all by key pairs unless given."""

    leeway: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 30
    """Seconds that clocks may differ; 30 unless given."""

    jwks_ttl: _Positive = 3600
    """Seconds after which the keys are fetched again; 3600 unless given."""

    jwks_interval: _Positive = 30
    """Seconds at least between two fetches, however many tokens name an unknown key; 30 unless given."""

    introspection: _Url | None = None
    """The address of a server that knows its tokens (RFC 7662), which is asked instead."""

    client_id: str | None = None
    """Our name there; required with ``introspection``."""

    client_secret_file: str | None = None
    """File whose first line is our password there; required with ``introspection``."""

    ca: str | None = None
    """PEM file with the authorities that may vouch for these servers; the system's unless given."""

    timeout: _Positive = 5
    """Seconds for one answer of theirs; 5 unless given."""

    cache_ttl: _Seconds = 10
    """Seconds for which a token is taken without asking again, 0 for none; 10 unless given.  One that is
    withdrawn opens accounts for so long."""

    negative_ttl: _Seconds = 10
    """Seconds for which a token is known not to be good, 0 for none; 10 unless given."""

    stale_if_error: _Seconds = 0
    """Seconds beyond ``cache_ttl`` for which a token is taken when the server fails; 0 unless given."""

    claim: Annotated[str, Field(min_length=1)] = "email"
    """Which claim is the user's name; ``email`` unless given."""

    scope: _Strings = ()
    """What a token must be good for, all of these; nothing unless given."""

    openid_configuration: _Url | None = None
    """The address where clients find out how to get a token, which they are told with a refusal."""


_NEEDS = {
    "jwks": ("issuer", "audience"),
    "introspection": ("client_id", "client_secret_file"),
}

_ONLY = {
    "jwks": ("algorithms", "jwks_ttl", "jwks_interval"),
    "introspection": ("client_id", "client_secret_file", *(GuardOptions.model_fields.keys() - {"timeout"})),
}


def _check(options: OAuth2Options) -> None:
    """Refuse keys that do not go together.

    :raises BadOption: names the first of them.
    """
    ways = [way for way in _NEEDS if getattr(options, way)]
    if len(ways) != 1:
        missing = "missing: write jwks, the keys that sign tokens, or introspection, the server to ask"
        raise BadOption("jwks", missing if not ways else "cannot go with introspection: remove one")
    (way,) = ways
    for key in _NEEDS[way]:
        if not getattr(options, key):
            raise BadOption(key, f"missing: {way} needs it")
    for other, keys in _ONLY.items():
        for key in keys:
            if other != way and key in options.model_fields_set:
                raise BadOption(key, f"means nothing without {other}: remove it")


@implementer(IAuthenticateSource)
class OAuth2Source:
    """Makes a `TokenAuthenticator` from the keys of `OAuth2Options`."""

    name = "oauth2"

    def authenticator(self, options: Mapping[str, object], context: object) -> TokenAuthenticator:
        """Make the authenticator; see `IAuthenticateSource.authenticator`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(OAuth2Options, options, context)
        _check(read)
        try:
            validator = _validator(read, context)
        except ImportError as error:
            missing = f'needs the package {error.name}: pip install "mailroute[oauth2]"'
            raise BadOption("source", missing) from None
        return TokenAuthenticator(
            validator,
            context.normalise,
            claim=read.claim,
            scope=read.scope,
            openid_configuration=read.openid_configuration,
        )


def _validator(options: OAuth2Options, context: SourceContext) -> Validator:
    trusted = tls_for(context, options.ca)
    if options.introspection:
        password = secret(context, "client_secret_file", options.client_secret_file or "")
        client = ((options.client_id or "").encode("utf-8"), password)
        return Introspection(
            Web(context.clock, trusted, None),
            options.introspection,
            client,
            options,
            context,
            issuer=options.issuer,
            audience=options.audience,
            leeway=options.leeway,
        )
    # Here, and not above: who has no use for signed tokens need not have the library.
    from mailroute.authenticators.oauth2.keys import FILE_TTL, FileKeys, Keys, WebKeys
    from mailroute.authenticators.oauth2.signed import SignedTokens

    where = options.jwks or ""
    if "://" not in where:
        file = FileKeys(context.folder / where, context)
        keys = Keys(file, context, FILE_TTL, FILE_TTL / 10, file.first)
    else:
        try:
            fetcher = WebKeys(Web(context.clock, trusted, options.timeout), web_address(where))
        except ValueError as error:
            raise BadOption("jwks", str(error)) from None
        keys = Keys(fetcher, context, options.jwks_ttl, options.jwks_interval)
    return SignedTokens(keys, options.issuer or "", options.audience, options.algorithms, options.leeway)
