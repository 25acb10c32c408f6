"""What is left of the servers when the tests do not end as they should."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from servers.postfix import Postfix
from servers.processes import group_is_gone, wait_until

KILLED = """
import os, signal
from servers.postfix import Postfix
postfix = Postfix()
postfix.start()
print(postfix.pid, postfix.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_postfix_ends_with_tests_that_are_killed() -> None:
    """Its master leads a session of its own, and yet nothing of it runs on when nobody stops it."""
    shutil.rmtree(Postfix().folder)  # or say that there is none here
    tests = Path(__file__).parents[1]
    told = subprocess.run(
        [sys.executable, "-c", KILLED],
        env=os.environ | {"PYTHONPATH": str(tests)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert told.returncode == -signal.SIGKILL
    master, folder = told.stdout.split()
    try:
        wait_until("the end of Postfix's processes", lambda: group_is_gone(int(master)))
    finally:
        shutil.rmtree(folder)
