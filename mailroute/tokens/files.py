"""Tokens on disk: a file for each user, encrypted, and one process at a time that renews what is in it.

All of this blocks, and is to be called in threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen
from cryptography.fernet import Fernet, InvalidToken

MAX_FILE = 128 * 1024
"""Bytes of a file: two tokens of the longest, encrypted and in base64, take a third of it."""


class BadFile(Exception):
    """A file of tokens cannot be used; the text names it, and holds no token."""


@frozen
class Record:
    """What is known of one user's tokens; its repr shows none.

    ``refresh``: what new tokens are asked for with.  ``access``: what backends
    take.  ``until``: to when that is good enough to be used, in seconds of the
    time of day.
    """

    refresh: str = field(default="", repr=False)
    access: str = field(default="", repr=False)
    until: float = 0.0


def read_key(line: bytes) -> Fernet:
    """Return the cipher of a key: 32 bytes in base64.

    :raises ValueError: it is none.
    """
    return Fernet(line.strip().replace(b"+", b"-").replace(b"/", b"_"))


class TokenFiles:
    """The files of one backend's users in one folder.

    They are named for hashes: a user's name may have any characters, and is
    nobody's business.

    :param cipher: encrypts them (AES-128-CBC with HMAC-SHA256).
    """

    def __init__(self, folder: Path, cipher: Fernet) -> None:
        self.folder = folder
        self._cipher = cipher

    def path(self, user: str) -> Path:
        """Return where the file of a user is, or would be."""
        return self.folder / f"{hashlib.sha256(user.encode('utf-8')).hexdigest()}.token"

    def read(self, user: str) -> Record | None:
        """Return what is in a user's file; None if there is no file.

        :raises BadFile: it cannot be read, or is not what was written with this key for this user.
        """
        path = self.path(user)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadFile(f"cannot read {path}: {error.strerror or error}") from None
        try:
            found = json.loads(self._cipher.decrypt(content))
            # Whoever can rename files must not get one user's mail by another's name.
            if found["user"] != user:
                raise BadFile(f"{path} is the file of another user")
            return Record(str(found["refresh"]), str(found["access"]), float(found["until"]))
        except (InvalidToken, ValueError, KeyError, TypeError):
            raise BadFile(f"{path} was not encrypted with this key, or is damaged") from None

    def write(self, user: str, record: Record) -> None:
        """Replace a user's file as a whole: after a crash there is the old one or the new one.

        :raises BadFile: it cannot be written.
        """
        content = {"user": user, "refresh": record.refresh, "access": record.access, "until": record.until}
        encrypted = self._cipher.encrypt(json.dumps(content).encode("ascii"))
        path = self.path(user)
        try:
            descriptor, name = tempfile.mkstemp(".new", "token-", self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(encrypted)
                    file.flush()
                    self._own(file.fileno())
                    os.fsync(file.fileno())
                Path(name).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
            self._settle()
        except OSError as error:
            raise BadFile(f"cannot write {path}: {error.strerror or error}") from None

    def lock(self, user: str) -> int | None:
        """Keep all others away from a user's tokens, in other processes too.

        :return: what to close with `os.close` to let them go on; None if somebody else is at it.
        :raises BadFile: it cannot be done.
        """
        path = self.path(user).with_suffix(".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._own(descriptor)
        except OSError as error:
            raise BadFile(f"cannot write {path}: {error.strerror or error}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _own(self, descriptor: int) -> None:
        """Give a file that root has made to the folder's owner, as who mailroute runs."""
        if os.geteuid() == 0:
            folder = self.folder.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)

    def _settle(self) -> None:
        """Have the disk know the file's name: a refresh token that was used up is no good any more."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
