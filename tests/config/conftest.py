"""A folder with all that a configuration may name, and ways to load one there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from servers.certificates import Authority
from twisted.internet.testing import MemoryReactorClock

from mailroute import config
from mailroute.config import ConfigError, Settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    """A folder with the files that the contract names."""
    issued = authority.issue("mail.example.com", "192.0.2.1")
    (tmp_path / "cert.pem").write_bytes(issued.chain.read_bytes() + authority.file.read_bytes())
    (tmp_path / "key.pem").write_bytes(issued.key.read_bytes())
    (tmp_path / "ca.pem").write_bytes(authority.file.read_bytes())
    (tmp_path / "users.txt").write_text("alice@example.com east\n")
    (tmp_path / "passwd").write_text("alice:wonderland\n")
    (tmp_path / "master.txt").write_text("hunter2\n")
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[[str], Settings]:
    def load(text: str) -> Settings:
        (folder / "mailroute.toml").write_text(text, encoding="utf-8")
        return config.load(folder / "mailroute.toml", MemoryReactorClock())

    return load


@pytest.fixture
def errors(
    folder: Path, load: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """Load a text that is wrong, and return what is said, a line an error."""
    monkeypatch.chdir(folder)

    def errors(text: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load(text)
        return str(error.value).replace(f"{folder}/", "").split("\n")

    return errors
