"""The package as a user gets it: installed in a clean environment, run from somewhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import astuple
from demo_process import running_demo
from servers.processes import accepts

from mailroute.demo.backend import USERS

TREE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clean() -> dict[str, str]:
    """Return an environment that knows nothing of the source tree or of the tests' own Python."""
    known = ("HOME", "LANG", "LC_", "PATH", "PIP_", "SSL_", "TMPDIR")
    return {"PYTHONUNBUFFERED": "1"} | {
        name: os.environ[name] for name in os.environ if name.startswith(known)
    }


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, clean: dict[str, str]) -> Path:
    """Return the folder of the programs of an environment with mailroute and nothing for the tests."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run(
        [TREE / "tools" / "make-venv", sys.executable, environment],
        env=clean,
        cwd=environment.parent,
        check=True,
        timeout=600,
    )
    return environment / "bin"


@pytest.mark.integration
def test_an_installed_twistd_knows_mailroute(programs: Path, clean: dict[str, str], tmp_path: Path) -> None:
    """After `pip install`, twistd has found the plugin, and its help is there."""
    shown = subprocess.run(
        [programs / "twistd", "mailroute", "--help"],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--config" in shown.stdout
    assert not shown.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
def test_an_installed_demo_runs_anywhere(programs: Path, clean: dict[str, str], tmp_path: Path) -> None:
    """The demo needs neither the source tree nor what the tests need, and leaves nothing behind."""
    with running_demo(tmp_path, command=[str(programs / "twistd")], env=clean) as demo:
        for connect in (demo.starttls, demo.tls):
            for user in USERS:
                with connect() as client:
                    client.login(user.name, user.password)
                    client.select("INBOX")
                    _, [(_, letter), _] = client.fetch("1", "(RFC822)")
                    assert f"The server {user.backend} <".encode() in letter
        demo.process.stop()
        assert not demo.folder.exists()
        assert not any(accepts("127.0.0.1", port) for port in astuple(demo.ports))
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
