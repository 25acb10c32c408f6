"""The registry of route sources: what ``[[route]] source = …`` may say."""

from __future__ import annotations

from mailroute.interfaces import IRouteSource
from mailroute.routers.chain import Chain, Forgiving
from mailroute.routers.command import CommandSource
from mailroute.routers.default import DefaultSource
from mailroute.routers.dovecot_auth import DovecotSource
from mailroute.routers.hashing import HashSource
from mailroute.routers.ldap import LdapSource
from mailroute.routers.passwd_file import PasswdFileSource
from mailroute.routers.pattern import PatternSource
from mailroute.routers.redis import RedisSource
from mailroute.routers.sql import SqlSource
from mailroute.routers.table import TableSource
from mailroute.routers.web import HttpSource
from mailroute.sources import BadAnswer, BadOption, Copies, InThread, Registry, SourceContext, UnknownSource

__all__ = [
    "BadAnswer",
    "BadOption",
    "Chain",
    "Copies",
    "Forgiving",
    "InThread",
    "SourceContext",
    "UnknownSource",
    "known",
    "source",
]

_BUILT_IN: tuple[IRouteSource, ...] = (
    TableSource(),
    PatternSource(),
    DefaultSource(),
    HashSource(),
    PasswdFileSource(),
    DovecotSource(),
    CommandSource(),
    SqlSource(),
    HttpSource(),
    LdapSource(),
    RedisSource(),
)

_registry: Registry[IRouteSource] = Registry("route source", IRouteSource, _BUILT_IN)
source = _registry.source
known = _registry.known
