"""Tokens that are signed: JWTs (RFC 7519), checked here."""

from __future__ import annotations

from collections.abc import Sequence

import jwt
from jwt.exceptions import PyJWTError

from mailroute.authenticators.oauth2.authenticator import BadToken, Claims
from mailroute.authenticators.oauth2.keys import Keys, SigningKey

_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"}
"""The kinds of keys that make signatures: a public key is no shared secret (RFC 8725 section 3.1)."""


class SignedTokens:
    """Checks signature, issuer, audience and times of tokens.

    :param algorithms: the signatures that are taken.
    :param leeway: seconds that clocks may differ.
    """

    def __init__(
        self, keys: Keys, issuer: str, audience: Sequence[str], algorithms: Sequence[str], leeway: float
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = list(audience)
        self._algorithms = tuple(algorithms)
        self._leeway = leeway

    async def claims(self, token: str) -> Claims | None:
        """Return what a good token says, ``None`` for one of another issuer's (`Validator.claims`)."""
        try:
            header = jwt.get_unverified_header(token)
            unverified = jwt.decode(token, options={"verify_signature": False})
        except (PyJWTError, ValueError, RecursionError):
            return None  # whatever it is, it is not our issuer's
        if unverified.get("iss") != self._issuer:
            return None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms:
            raise BadToken("the token's signature is of a kind that is not taken")
        named, weak = key_id if isinstance(key_id, str) else None, False
        for ask in (self._keys.of, self._keys.newer):
            for key in await ask(named):
                if not key.makes(_KINDS[algorithm[:2]], algorithm):
                    continue
                try:
                    return self._checked(token, key, algorithm)
                except jwt.InvalidKeyError:
                    weak = True
                except jwt.InvalidSignatureError:
                    continue
        also = ", of which one is too weak to count" if weak else ""
        raise BadToken(f"the token is not signed with any of the keys{also}")

    def _checked(self, token: str, key: SigningKey, algorithm: str) -> Claims:
        try:
            claims: Claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
            raise
        except (PyJWTError, ValueError, TypeError) as error:
            raise BadToken(f"the token is not good: {type(error).__name__}") from None
        return claims

    def __str__(self) -> str:
        return f"the keys in {self._keys}, for those of {self._issuer}"
