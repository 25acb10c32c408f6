"""Imports the benchmark from the source tree, whose other modules must not come before the installed ones."""

from __future__ import annotations

import importlib.util
import sys

from servers.programs import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"

_spec = importlib.util.spec_from_file_location(
    "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
)
sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["benchmarks"])
