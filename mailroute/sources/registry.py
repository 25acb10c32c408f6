"""What the ``source = …`` of a block may say: ours, and what Twisted plugins add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from twisted.plugin import getPlugins

from mailroute.wording import did_you_mean


class UnknownSource(LookupError):
    """No source has that name; the message lists those that there are."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Source = TypeVar("_Source", bound=_Named)


class Registry(Generic[_Source]):
    """The sources of one kind of block by their names: mailroute's own first, then the plugins'.

    :param kind: what a person calls such a source.
    :param interface: what each of them provides.
    """

    def __init__(self, kind: str, interface: Any, built_in: tuple[_Source, ...]) -> None:
        self.built_in = built_in
        self._kind = kind
        self._interface = interface

    def source(self, name: str) -> _Source:
        """Return the source of that name.

        :raises UnknownSource: there is none.
        """
        for found in self._all():
            if found.name == name:
                return found
        raise UnknownSource(f'there is no {self._kind} "{name}"{did_you_mean(name, self.known())}')

    def known(self) -> tuple[str, ...]:
        """Return the names of all sources, mailroute's own first."""
        return tuple(dict.fromkeys(found.name for found in self._all()))

    def _all(self) -> Iterator[_Source]:
        yield from self.built_in
        yield from getPlugins(self._interface)
