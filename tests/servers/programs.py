"""The programs that the integration tests need, and what to say where one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

# An ordinary user's PATH often lacks the folders where Debian keeps servers.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

REPOSITORY = Path(__file__).parents[2]


def lacking(what: str, command: str) -> NoReturn:
    """Skip the test for want of something, or fail it where everything has to be there."""
    message = f"{what} is missing; install it with: {command}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def program(name: str, package: str) -> str:
    """Return the path of a program from one of Debian's packages."""
    return shutil.which(name, path=SEARCH) or lacking(
        f"{name} (Debian package {package})", f"tools/install-debian-packages {package}"
    )


def nginx_module(name: str, package: str) -> Path:
    """Return the path of a module of nginx's from one of Debian's packages."""
    path = Path("/usr/lib/nginx/modules", f"ngx_{name}_module.so")
    if not path.exists():
        lacking(
            f"nginx's {name} module (Debian package {package})", f"tools/install-debian-packages {package}"
        )
    return path


def perl_module(name: str, package: str) -> None:
    """Make sure that Perl finds a module."""
    perl = program("perl", "perl")
    if subprocess.run([perl, f"-M{name}", "-e", "1"], capture_output=True, check=False).returncode:
        lacking(f"Perl's {name} (Debian package {package})", f"tools/install-debian-packages {package}")


def node_package(name: str) -> Path:
    """Return the folder of modules in which ``tools/install-node-packages`` has put a package."""
    modules = REPOSITORY / ".cache" / "node" / "node_modules"
    if not (shutil.which("node", path=SEARCH) and (modules / name).is_dir()):
        lacking(f"Node, or its package {name},", "tools/install-node-packages")
    return modules
