"""From TOML, or from the same tree in Python, to settings; every error on the way is kept, none ends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from mailroute import dialogs
from mailroute.authenticators import Link
from mailroute.computing import Computing
from mailroute.config import checks, endpoints, metrics, sourced, values
from mailroute.config.document import read_document
from mailroute.config.errors import ConfigError, Fault, Problem, written
from mailroute.config.models import Backend, Certificate, Limits, Listener, Settings, UserNamesTable
from mailroute.config.source import Source, plain
from mailroute.names import UserNames
from mailroute.proofs import Proof
from mailroute.sources import Copies, SourceContext
from mailroute.toml_lines import key_lines, line_of
from mailroute.wording import did_you_mean, message, shown

_Model = TypeVar("_Model", bound=BaseModel)
_Result = TypeVar("_Result")

_KEYS = ("workers",)
_TABLES = ("certificate", "listen", "authenticate", "backend", "route", "limits", "user_names", "metrics")


def load(path: Path, reactor: Any, workers: int | str | None = None) -> Settings:
    """Read a configuration file.

    :param reactor: what will run the settings: endpoints are checked with it, tables are watched with it.
    :param workers: instead of what the file says; see `Settings.workers`.
    :raises ConfigError: says everything that is wrong, each with its line.
    """
    text, document = read_document(path)
    if workers is not None:
        document["workers"] = workers
    reader = _Reader(reactor, path.parent, Copies(keep=document.get("workers", 1) != 1))
    settings = reader.read(document)
    if settings is None:
        raise reader.error(text, path)
    return settings


def load_backend(path: Path, name: str, reactor: Any) -> Backend | None:
    """Read one ``[backend.NAME]`` of a configuration file, and nothing else: no password, no key.

    What it lacks besides a password is not asked for: such checks are for the whole.

    :return: None if the file has no backend of that name.
    :raises ConfigError: says everything that is wrong in the block, each with its line.
    """
    text, document = read_document(path)
    table = _table(document, "backend").get(name)
    if table is None:
        return None
    if isinstance(table, Mapping):
        table = {key: value for key, value in table.items() if key not in ("master_password_file", "oauth2")}
    reader = _Reader(reactor, path.parent, Copies())
    backend = reader.backend(name, table)
    if backend is None or reader.faults:
        raise reader.error(text, path)
    return backend


def build(reactor: Any, *, folder: Path | str = ".", **tables: object) -> Settings:
    """Make settings from the same tree that a file has, with objects of one's own where it has names.

    For example, with a protocol, a checker, an endpoint and a router of one's own::

        build(
            reactor,
            certificate=[{"chain": "cert.pem", "key": "key.pem"}],
            listen=[{"protocol": "imap", "endpoint": MyPort(), "authenticate": MyChecker()}],
            backend={"east": {"imap": MyEndpoint(), "security": "none", "login": "none"}},
            route=[MyRouter(), {"source": "default", "backend": "east"}],
            limits={"login_timeout": 10},
        )

    :param reactor: what will run the settings.
    :param folder: from where relative paths start.
    :raises ConfigError: says everything that is wrong.
    """
    return _built(_Reader(reactor, Path(folder), Copies(keep=tables.get("workers", 1) != 1)), tables)


def reread(source: Source, clock: Any) -> Settings:
    """Make the settings of a worker from what those of its parent were made from, without reading it again.

    :param clock: the reactor; it may not be there yet, and is not used before something is started.
    :raises ConfigError: says everything that is wrong.
    """
    # Once read, what was kept for the workers may be forgotten: this is one of them.
    reader = _Reader(clock, source.folder, Copies(source.files), endpoints_checked=True)
    return _built(reader, {**source.document, "workers": 1})


def _built(reader: _Reader, tables: Mapping[str, Any]) -> Settings:
    settings = reader.read(tables)
    if settings is None:
        raise ConfigError([Problem(None, written(fault.path), fault.message) for fault in reader.faults])
    return settings


class _Reader:
    """Reads one tree; ``faults`` grows as it goes."""

    def __init__(
        self, reactor: Any, folder: Path, copies: Copies, *, endpoints_checked: bool = False
    ) -> None:
        self._reactor = reactor
        self._endpoints_checked = endpoints_checked
        # Absolute: a daemon changes its working directory after it has read this.
        self._folder = folder.absolute()
        self._copies = copies
        checking = None if endpoints_checked else reactor
        self._context = {"folder": self._folder, "reactor": checking, "copies": copies}
        self.faults: list[Fault] = []

    def read(self, document: Mapping[str, Any]) -> Settings | None:
        """Return the settings, or ``None`` if there are faults."""
        for key in document:
            if key not in (*_KEYS, *_TABLES):
                self._fault((key,), _unknown(key, (*_KEYS, *_TABLES)))
        workers = document.get("workers", 1)
        self._try(("workers",), partial(values.workers, workers))
        tree = {} if workers == 1 else plain(document, self._fault)
        certificates = self._blocks(document, "certificate", Certificate)
        listeners = self._blocks(document, "listen", Listener)
        backends = self._backends(document, listeners.values())
        limits = self._block(document.get("limits", {}), ("limits",), Limits)
        names = self._block(document.get("user_names", {}), ("user_names",), UserNamesTable)
        user_names = (
            UserNames() if names is None else UserNames(names.lowercase_local_part, names.default_domain)
        )
        told = self._metrics(document)
        context = self._source_context(document, user_names)
        routes = self._sourced(document, "route", context, sourced.read_route)
        links = self._sourced(document, "authenticate", context, sourced.read_link)
        proved = any(checks.proves(router) for _, router in routes)
        self._check(document, listeners, backends, links, workers != 1, proved)
        if self.faults or limits is None:
            return None
        return Settings(
            certificates=tuple(certificates.values()),
            listeners=tuple(listeners.values()),
            backends=backends,
            authenticators=links,
            routes=routes,
            limits=limits,
            user_names=user_names,
            metrics=told,
            workers=workers,
            source=None if workers == 1 else Source(self._folder, tree, self._copies.kept()),
        )

    def backend(self, name: str, table: object) -> Backend | None:
        """Return one backend, or ``None`` if there are faults."""
        return self._backend(name, table, set(dialogs.known()))

    def error(self, text: str, path: Path) -> ConfigError:
        """Return all faults of a file with this text."""
        lines = key_lines(text)
        problems = [
            Problem(line_of(lines, fault.path), written(fault.path), fault.message) for fault in self.faults
        ]
        return ConfigError(problems, path)

    def _fault(self, path: tuple[str | int, ...], message: str) -> None:
        self.faults.append(Fault(path, message))

    def _check(
        self,
        document: Mapping[str, Any],
        listeners: Mapping[int, Listener],
        backends: Mapping[str, Backend],
        links: Sequence[Link],
        shared: bool,
        proved: bool,
    ) -> None:
        """Check how the sound parts go together."""
        tables = [table for table in _table(document, "backend").values() if isinstance(table, Mapping)]
        written_down = {key for table in tables for key in table}
        ready = {key for backend in backends.values() for key in backend.endpoints}
        needed = checks.needed(document.get("listen"), listeners)
        self.faults += checks.faults(
            checks.Parts(
                listeners=listeners,
                backends=backends,
                served=frozenset(written_down | ready),
                named=frozenset(_table(document, "backend")),
                certified=bool(document.get("certificate")),
                authenticators=_authenticators(document, links),
                missing=tuple(key for key in needed if not document.get(key)),
                shared=shared,
                proved=proved,
            )
        )

    def _metrics(self, document: Mapping[str, Any]) -> metrics.Metrics | None:
        if "metrics" not in document:
            return None
        for lack in metrics.missing():
            self._fault(("metrics",), lack)
        return self._block(document["metrics"], ("metrics",), metrics.Metrics)

    def _try(self, path: tuple[str | int, ...], check: Callable[[], object]) -> bool:
        try:
            check()
        except ValueError as error:
            self._fault(path, str(error))
            return False
        return True

    # --- blocks ------------------------------------------------------------------

    def _array(self, document: Mapping[str, Any], key: str) -> list[Any]:
        blocks = document.get(key, [])
        if isinstance(blocks, list | tuple):
            return list(blocks)
        self._fault((key,), f"must be written with two brackets, [[{key}]]: there may be several")
        return []

    def _blocks(self, document: Mapping[str, Any], key: str, model: type[_Model]) -> dict[int, _Model]:
        """Return the sound blocks by their positions."""
        found = {
            position: self._block(block, (key, position), model)
            for position, block in enumerate(self._array(document, key))
        }
        return {position: block for position, block in found.items() if block is not None}

    def _block(
        self, block: object, path: tuple[str | int, ...], model: type[_Model], also: Iterable[str] = ()
    ) -> _Model | None:
        """Return the block, or ``None`` if there is something wrong in it; ``also``: keys read elsewhere."""
        if isinstance(block, model):
            return block
        if not isinstance(block, Mapping):
            brackets = f": write [{'.'.join(map(str, path))}], with one pair of brackets"
            once = isinstance(block, list) and isinstance(path[-1], str)
            self._fault(path, f"must be a table, not {shown(block)}{brackets if once else ''}")
            return None
        try:
            return model.model_validate(dict(block), context=self._context)
        except ValidationError as error:
            known = [*(name for name in model.model_fields if name != "endpoints"), *also]
            for found in error.errors(include_url=False):
                if found["type"] != "default_factory_not_called":  # follows from another error
                    within = _within(model, found["loc"])
                    known_there = known if within is model else list(within.model_fields)
                    words = message(found, within, partial(_unknown, known=known_there))
                    self._fault((*path, *found["loc"]), words)
            return None

    def _backends(self, document: Mapping[str, Any], listeners: Iterable[Listener]) -> dict[str, Backend]:
        protocols = {*dialogs.known(), *(listener.protocol.name for listener in listeners)}
        found: dict[str, Backend] = {}
        if "backend" in document and not isinstance(document["backend"], Mapping):
            self._fault(("backend",), "must have names: write [backend.NAME]")
        for name, table in _table(document, "backend").items():
            if re.search(r"[\s\x00-\x1f\x7f]", name) or not name:
                self._fault(("backend", name), "a backend's name must be a word, without spaces")
            backend = self._backend(name, table, protocols)
            if backend is not None:
                found[name] = backend
        return found

    def _backend(self, name: str, table: object, protocols: set[str]) -> Backend | None:
        if not isinstance(table, Mapping):
            return self._block(table, ("backend", name), Backend)
        ours = {key: value for key, value in table.items() if key in protocols}
        others = {key: value for key, value in table.items() if key not in protocols}
        sound = {
            key: value
            for key, value in ours.items()
            if self._try(("backend", name, key), partial(self._check_client, value))
        }
        if "endpoints" in others:
            self._fault(("backend", name, "endpoints"), _unknown("endpoints", protocols))
            return None
        backend = self._block({**others, "endpoints": sound}, ("backend", name), Backend, protocols)
        return backend if sound == ours else None

    def _check_client(self, value: Any) -> None:
        values.client_endpoint(value)
        if not self._endpoints_checked:
            endpoints.check_client_endpoint(value, self._reactor)

    # --- blocks with a source ------------------------------------------------------

    def _source_context(self, document: Mapping[str, Any], user_names: UserNames) -> SourceContext:
        return SourceContext(
            folder=self._folder,
            backends=frozenset(_table(document, "backend")),
            normalise=user_names.normalise,
            clock=self._reactor,
            in_thread=self._in_thread,
            compute=Computing(self._reactor),
            copies=self._copies,
        )

    def _sourced(
        self,
        document: Mapping[str, Any],
        key: str,
        context: SourceContext,
        read: Callable[[int, Any, SourceContext, sourced.TellFault], _Result | None],
    ) -> tuple[_Result, ...]:
        blocks = enumerate(self._array(document, key))
        found = [read(position, block, context, self._fault) for position, block in blocks]
        return tuple(each for each in found if each is not None)

    def _in_thread(self, function: Callable[[], _Result]) -> Deferred[_Result]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function)


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = document.get(key, {})
    return table if isinstance(table, Mapping) else {}


def _within(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    """Return the model of the block in which a key is: a block may have a table in it."""
    inner = model.model_fields.get(str(path[0]))
    kinds = () if inner is None or len(path) < 2 else get_args(inner.annotation)
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), model)


def _authenticators(document: Mapping[str, Any], links: Sequence[Link]) -> checks.Authenticators:
    """Return what the chain can check; one that is wrong in a part might check anything."""
    blocks = document.get("authenticate")
    sound = isinstance(blocks, list | tuple) and len(blocks) == len(links)
    return checks.Authenticators(bool(blocks), checks.proofs(links) if sound else frozenset(Proof))


def _unknown(key: str, known: Iterable[str]) -> str:
    if key in _KEYS:
        return "must stand above the first table: write it at the top of the file"
    return f"unknown key{did_you_mean(key, known)}"
