"""The command ``mailroute token``: puts a user's refresh token where a backend's tokens are kept."""

from __future__ import annotations

import os

from mailroute.config import Settings
from mailroute.tokens.files import BadFile, Record, TokenFiles
from mailroute.tokens.grant import MAX_TOKEN, is_refresh_token


class CannotKeep(Exception):
    """A token cannot be put there; the text says why and what to do, and does not hold it."""


def keep(settings: Settings, name: str | None, user: str, line: bytes) -> str:
    """Keep a user's refresh token in place of those that were there.

    :param name: the backend's; None if there is only one that it could be.
    :param user: the user's name at that backend.
    :param line: the token, as a line.
    :return: what has been done, for a person.
    :raises CannotKeep: says why not.
    """
    name = _only(settings) if name is None else name
    backend = settings.backends.get(name)
    block = None if backend is None else backend.oauth2
    if block is None or not block.personal or block.token_folder is None or block.token_key_file is None:
        raise CannotKeep(f'there is no [backend.{name}.oauth2] with grant = "refresh_token"')
    token = line.decode("ascii", "replace").strip()
    if not is_refresh_token(token):
        raise CannotKeep(f"standard input holds no refresh token: a line of ASCII, {MAX_TOKEN} bytes at most")
    files = TokenFiles(block.token_folder, block.token_key_file)
    try:
        lock = files.lock(user)
        if lock is None:
            raise CannotKeep("mailroute is getting a token for this user just now: try again")
        try:
            files.write(user, Record(token))
        finally:
            os.close(lock)
    except BadFile as error:
        raise CannotKeep(str(error)) from None
    return f"Backend {name}: the refresh token of {user} is kept in {files.path(user)}."


def _only(settings: Settings) -> str:
    found = [name for name, each in settings.backends.items() if each.oauth2 and each.oauth2.personal]
    if len(found) != 1:
        raise CannotKeep(f"say --backend NAME: {', '.join(found) or 'none'} could be meant")
    return found[0]
