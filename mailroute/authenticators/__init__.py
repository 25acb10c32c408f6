"""The registry of authenticators: what ``[[authenticate]] source = …`` may say."""

from __future__ import annotations

from mailroute.authenticators.asked import AskedSource
from mailroute.authenticators.at_backend import BackendAuthenticator, BackendSource
from mailroute.authenticators.chain import AuthenticatorChain, Link
from mailroute.authenticators.checker import (
    CheckerAuthenticator,
    CheckerSource,
    checks_passwords,
    make_checker,
)
from mailroute.authenticators.external import ExternalSource
from mailroute.authenticators.oauth2 import OAuth2Source
from mailroute.authenticators.passwd_file import PasswdFileSource
from mailroute.interfaces import IAuthenticateSource
from mailroute.sources import Registry

__all__ = [
    "AuthenticatorChain",
    "BackendAuthenticator",
    "CheckerAuthenticator",
    "Link",
    "checks_passwords",
    "known",
    "make_checker",
    "source",
]

_BUILT_IN: tuple[IAuthenticateSource, ...] = (
    PasswdFileSource(),
    OAuth2Source(),
    ExternalSource(),
    BackendSource(),
    AskedSource("sql"),
    AskedSource("redis"),
    AskedSource("dovecot-auth", "socket"),
    AskedSource("command", "send_password"),
    AskedSource("http", "send_password"),
    AskedSource("ldap", "bind"),
    CheckerSource(),
)

_registry: Registry[IAuthenticateSource] = Registry("authenticator", IAuthenticateSource, _BUILT_IN)
source = _registry.source
known = _registry.known
