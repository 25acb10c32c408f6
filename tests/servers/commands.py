"""Running a mail client as a command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run(
    command: Sequence[str | Path],
    home: Path,
    *,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    """Run a client that finds nothing of its user's settings, and show what it says if it fails."""
    home.mkdir(parents=True, exist_ok=True)
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=home,
        env={**clean, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        said = (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
        raise AssertionError(f"{words[0]} ended with status {done.returncode}:\n{said}")
    return done
