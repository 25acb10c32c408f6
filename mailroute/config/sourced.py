"""Blocks whose keys are those of their source: ``[[route]]`` and ``[[authenticate]]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from attrs import evolve, frozen

from mailroute import authenticators, routers
from mailroute.authenticators import Link
from mailroute.config.errors import written
from mailroute.interfaces import IAuthenticator, IRouter
from mailroute.sources import BadOption, SourceContext, UnknownSource
from mailroute.toml_lines import KeyPath
from mailroute.wording import listed, shown

_Made = TypeVar("_Made")

TellFault = Callable[[KeyPath, str], None]


@frozen
class Kind(Generic[_Made]):
    """A kind of block: the table's name, what a block stands for, and how that is made.

    ``make`` takes the source's name, the options and the context.
    """

    table: str
    interface: Any
    known: Callable[[], tuple[str, ...]]
    make: Callable[[str, Mapping[str, object], SourceContext], _Made]

    def read(
        self, position: int, block: Any, context: SourceContext, fault: TellFault
    ) -> tuple[str, _Made] | None:
        """Return what a block stands for, with a label for the log; ``None`` if it is wrong."""
        path = (self.table, position)
        if self.interface.providedBy(block):
            return f"{written(path)} ({type(block).__name__})", block
        if not isinstance(block, Mapping):
            fault(path, f"must be a table or an {self.interface.__name__}, not {shown(block)}")
            return None
        options = dict(block)
        name = options.pop("source", None)
        if not isinstance(name, str):
            said = "missing" if name is None else f"must be a string, not {shown(name)}"
            fault((*path, "source"), f"{said}: write one of {listed(self.known())}")
            return None
        label = f"{written(path)} ({name})"
        try:
            return label, self.make(name, options, evolve(context, label=label))
        except UnknownSource as error:
            fault((*path, "source"), str(error))
        except BadOption as error:
            fault((*path, error.key) if error.key else path, error.message)
        except Exception as error:  # a third party's source: its fault must not cost the operator a traceback
            fault((*path, "source"), f'the source "{name}" failed: {type(error).__name__}: {error}')
        return None


_ROUTERS: Kind[IRouter] = Kind(
    "route",
    IRouter,
    routers.known,
    lambda name, options, context: routers.source(name).router(options, context),
)

_AUTHENTICATORS: Kind[IAuthenticator] = Kind(
    "authenticate",
    IAuthenticator,
    authenticators.known,
    lambda name, options, context: authenticators.source(name).authenticator(options, context),
)

_ON_ERROR = {"refuse": False, "next": True}


def read_route(
    position: int, block: Any, context: SourceContext, fault: TellFault
) -> tuple[str, IRouter] | None:
    """Return a router with its label, or ``None`` if there is something wrong in its block."""
    found = _read(_ROUTERS, position, block, context, fault)
    if found is None:
        return None
    label, router, lenient = found
    return label, routers.Forgiving(label, router) if lenient else router


def read_link(position: int, block: Any, context: SourceContext, fault: TellFault) -> Link | None:
    """Return an authenticator's link in the chain, or ``None`` if there is something wrong in its block."""
    found = _read(_AUTHENTICATORS, position, block, context, fault)
    return None if found is None else Link(*found)


def _read(
    kind: Kind[_Made], position: int, block: Any, context: SourceContext, fault: TellFault
) -> tuple[str, _Made, bool] | None:
    """Return what a block stands for, and whether the next one is asked if that fails."""
    on_error: object = "refuse"
    if isinstance(block, Mapping):
        block = dict(block)
        on_error = block.pop("on_error", on_error)
    found = kind.read(position, block, context, fault)
    if not isinstance(on_error, str) or on_error not in _ON_ERROR:
        fault((kind.table, position, "on_error"), f"must be {listed(_ON_ERROR)}, not {shown(on_error)}")
        return None
    return None if found is None else (*found, _ON_ERROR[on_error])
