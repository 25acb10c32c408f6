"""The rules of the house, checked from the source: who may import whom, and what belongs nowhere."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

import mailroute

TREE = Path(__file__).parents[1]

# --- what is in the source --------------------------------------------------


@frozen
class Module:
    """A module of ours: its dotted name, its syntax tree, and where it is."""

    name: str
    tree: ast.Module
    path: Path

    @property
    def room(self) -> str:
        """The part of the name behind "mailroute", up to the next dot."""
        return room(self.name)

    @property
    def package(self) -> str:
        """What a relative import is relative to."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    def imports(self) -> Iterator[str]:
        """Yield the dotted name of everything that is imported, wherever in the module that is."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = self.package.split(".")
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def read(path: Path) -> Module:
    parts = path.relative_to(TREE).with_suffix("").parts
    return Module(".".join(parts).removesuffix(".__init__"), parse(path), path)


MODULES = [read(path) for path in sorted((TREE / "mailroute").rglob("*.py"))]
TESTS = sorted((TREE / "tests").rglob("*.py"))


def modules(*rooms: str, but: frozenset[str] = frozenset()) -> pytest.MarkDecorator:
    """Run a test for each module in these rooms, or in every room if none is named."""
    chosen = [each for each in MODULES if (not rooms or each.room in rooms) and each.room not in but]
    return pytest.mark.parametrize("module", chosen, ids=lambda module: module.name)


# --- who may import whom ----------------------------------------------------

SHARED = {"wire", "proofs", "events", "envelope", "interfaces"}
SOURCES = {*SHARED, "sources"}

# A room that is listed here imports these rooms of ours and no others.
ONLY = {
    "wire": set(),
    "proofs": set(),
    "callers": {"wire", "proofs"},
    "events": {"wire", "interfaces", "proofs", "callers"},
    "envelope": {"wire", "events"},
    "interfaces": {"wire", "proofs", "events", "envelope", "sights"},
    "legs": {"events"},
    "dialogs": {*SHARED, "sights"},
    "sights": set(),
    "routers": {*SOURCES, "wording"},
    "authenticators": {*SOURCES, "wording", "routers", "web"},
    "web": {"events", "sources"},
    "computing": {"events"},
    "sources": {*SHARED, "wording", "tls"},
    "wording": set(),
    "pipe": {"deadlines", "sockets"},
    "sockets": set(),
    "deadlines": set(),
}

# What carries a connection, whatever its protocol and however it is routed.
CORE = {
    "session",
    "delivery",
    "frontend",
    "relayed",
    "arrivals",
    "networks",
    "backend",
    "proxy_client",
    "places",
    "warm",
    "listening",
    "pipe",
    "service",
    "tls",
    "gate",
    "record",
    "failures",
    "computing",
    "deadlines",
    "descriptors",
    "sockets",
    "dials",
    "tokens",
    "web",
}

# Those of the core that read the settings.
BUILDERS = {"service", "dials"}

# The two folders whose inhabitants must not know each other, and what those
# who live there share.  From outside, only the folder itself may be imported.
REGISTRIES = {
    "dialogs": {"common"},
    "routers": {"answers", "chain", "guard", "maps", "questions", "stderr"},
    "authenticators": {"chain", "costs", "hashes"},
}

# At the top of the house: nobody imports these but each other.
TOP = {"tap", "cli", "demo", "whereabouts", "deposit"}

# What may be imported besides the standard library and ourselves.
THIRD_PARTIES = {
    "wire": set(),
    "callers": {"attrs"},
    "events": {"attrs", "twisted", "zope"},
    "envelope": {"attrs"},
    "interfaces": {"attrs", "twisted", "zope"},
    "pipe": {"OpenSSL", "attrs", "twisted", "zope"},
    "sockets": {"OpenSSL", "twisted", "zope"},
}

# The global reactor is for those who start the program, and for the defaults
# of what a user calls.
REACTOR = frozenset({"tap", "cli", "pipe", "service", "workers", ""})


def ours(module: Module) -> Iterator[str]:
    return (name for name in module.imports() if name.split(".")[0] == "mailroute")


def may_import(importer: str, imported: str) -> bool:
    """Say whether one room may import another."""
    if importer == imported or importer in TOP or importer == "":
        return True
    if imported in TOP or imported == "":
        return False
    if importer in ONLY:
        return imported in ONLY[importer]
    if importer in CORE - BUILDERS:
        return imported not in {*REGISTRIES, "config", "metrics", *BUILDERS}
    return True


@modules()
def test_a_room_imports_only_the_rooms_below_it(module: Module) -> None:
    """The way through the house is straight: no room reaches into one that is not meant for it."""
    wrong = [name for name in ours(module) if not may_import(module.room, room(name))]
    assert not wrong


def neighbours(module: Module) -> Iterator[str]:
    """Yield what a module imports of those who live in a registry's folder, itself and its own kind aside."""
    own = module.name.split(".")[:3]
    for name in ours(module):
        parts = name.split(".")
        shared = REGISTRIES.get(room(name))
        if shared is None or len(parts) < 3 or not exists(parts[:3]):
            continue
        if parts[:3] != own and parts[2] not in shared:
            yield name


def exists(parts: list[str]) -> bool:
    path = TREE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


@modules()
def test_nobody_imports_a_single_dialog_or_router(module: Module) -> None:
    """A dialog or a source of routes is known to its registry alone, so that the next one changes nothing."""
    is_registry = module.path.name == "__init__.py" and module.name.removeprefix("mailroute.") in REGISTRIES
    assert is_registry or not list(neighbours(module))


@modules(*THIRD_PARTIES)
def test_a_low_room_needs_no_library(module: Module) -> None:
    """What only handles bytes or values needs the standard library, and what is listed here."""
    allowed = sys.stdlib_module_names | THIRD_PARTIES[module.room] | {"mailroute"}
    assert {name.split(".")[0] for name in module.imports()} <= allowed


@modules(but=frozenset({"metrics"}))
def test_what_only_metrics_need_is_theirs(module: Module) -> None:
    """The library of an extra is imported by those alone who are imported where it is asked for."""
    theirs = [name for name in module.imports() if name.startswith("prometheus_client")]
    assert not theirs or module.name == "mailroute.workers.figures"


@modules("dialogs", "wire")
def test_a_dialog_does_no_io(module: Module) -> None:
    """A dialog owns no socket and no timer: nothing of Twisted's that has one is imported."""
    if module.room not in {"dialogs", "wire"}:
        pytest.skip("this room may do I/O")
    assert not [
        name for name in module.imports() if re.match(r"twisted\.internet|socket|asyncio|threading", name)
    ]


@modules(but=REACTOR)
def test_only_the_top_takes_the_global_reactor(module: Module) -> None:
    """Time and connections are passed in, so that a test or a host program decides about them."""
    assert not [name for name in module.imports() if name.startswith("twisted.internet.reactor")]


# --- what belongs nowhere ---------------------------------------------------

PROTOCOLS = re.compile(r"(?i)(?<![a-z])(imap4?|pop3?|smtp|lmtp|submission|(manage)?sieve)(?![a-z])")


def literals(tree: ast.Module) -> Iterator[str]:
    """Yield the strings of a module that are not docstrings."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in statements:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1")


@modules(*CORE, "workers", "metrics", "probe", "dialogs")
def test_what_protocols_share_knows_none_by_name(module: Module) -> None:
    """The core never asks which protocol it carries: no protocol's name is among its strings.

    Nor does that part of the dialogs that all of them are made with.
    """
    shared = {f"mailroute.dialogs.{name}" for name in REGISTRIES["dialogs"]}
    if module.room == "dialogs" and ".".join(module.name.split(".")[:3]) not in shared:
        return
    assert not [text for text in literals(module.tree) if PROTOCOLS.search(text)]


LONGEST = 380


@modules()
def test_a_module_can_be_read_at_one_sitting(module: Module) -> None:
    """No module grows much beyond 350 lines."""
    length = module.path.read_text(encoding="utf-8").count("\n")
    assert length <= LONGEST


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(TREE)))
def test_every_test_says_what_it_promises(path: Path) -> None:
    """The docstring of a test is the promise that it keeps."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    silent = [
        node.name
        for node in ast.walk(parse(path))
        if isinstance(node, functions) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not silent


def test_the_plugin_folder_is_no_package() -> None:
    """Twisted's own package is the only one that may have an __init__.py in twisted/plugins."""
    assert not list((TREE / "twisted").rglob("__init__.py"))


# --- what the tests test ----------------------------------------------------


def test_what_is_tested_is_what_is_installed() -> None:
    """`make test` tests the package as a user gets it, and twistd finds the plugin in there too."""
    if "MAILROUTE_INSTALLED" not in os.environ:
        pytest.skip("the tests were not started by make test")
    plugins = [plugin for plugin in getPlugins(IServiceMaker) if plugin.name == "mailroute"]
    places = [mailroute.__file__, *(sys.modules[plugin.__module__].__file__ for plugin in plugins)]
    assert plugins
    assert all("site-packages" in Path(place).parts for place in places)
