"""The ``[backend.NAME.oauth2]``: where the tokens come from with which mailroute logs in at a backend."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

from cryptography.fernet import Fernet
from pydantic import AfterValidator, Field

from mailroute.config import values
from mailroute.config.block import Block
from mailroute.config.files import Authorities, Secret
from mailroute.events import Method
from mailroute.sources import web_address


class GrantType(Enum):
    """How tokens are asked for; the values are the configuration's words."""

    CLIENT_CREDENTIALS = "client_credentials"
    REFRESH_TOKEN = "refresh_token"


class OAuth2(Block):
    """A ``[backend.NAME.oauth2]``: where tokens come from."""

    token_url: Annotated[str, AfterValidator(web_address)] = Field(
        examples=["https://login.example.com/token"]
    )
    """The address where tokens are given out (RFC 6749 section 3.2), https unless it is this machine;
    required."""

    client_id: Annotated[str, Field(min_length=1)] = Field(examples=["mailroute"])
    """mailroute's name there; required."""

    client_secret_file: Annotated[Secret | None, values.SECRET] = Field(default=None, repr=False)
    """File whose first line is mailroute's password there, or a `Secret`; required with
    ``client_credentials``."""

    scope: str = ""
    """What tokens are to be good for, words with spaces between them; the server decides unless given."""

    grant: Annotated[GrantType, Field(strict=False)] = GrantType.CLIENT_CREDENTIALS
    """``client_credentials``, one token for all users, or ``refresh_token``, one for each, from a refresh
    token of the user's own; ``client_credentials`` unless given."""

    token_folder: Annotated[Path | None, values.FOLDER] = None
    """Where tokens are kept, encrypted, a file for each user; required with ``refresh_token``, and in memory
    alone unless given."""

    token_key_file: Annotated[Fernet | None, values.TOKEN_KEY] = Field(default=None, repr=False)
    """File whose first line is the key that encrypts them, 32 bytes in base64; required with
    ``token_folder``."""

    ca: Annotated[Authorities | None, values.AUTHORITIES] = None
    """PEM file with the authorities that may vouch for the server; the system's unless given."""

    timeout: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 5
    """Seconds for one answer of the server's; 5 unless given."""

    @property
    def personal(self) -> bool:
        """Whether each user has a token of its own."""
        return self.grant is GrantType.REFRESH_TOKEN

    def lacks(self) -> Iterator[tuple[str, str]]:
        """Yield each key that must be there with the others, and why."""
        if self.personal and self.token_folder is None:
            yield "token_folder", 'missing: grant = "refresh_token" needs it'
        if not self.personal and self.client_secret_file is None:
            yield "client_secret_file", 'missing: grant = "client_credentials" needs it'
        if self.token_folder is not None and self.token_key_file is None:
            yield "token_key_file", "missing: token_folder needs it"
        if self.token_folder is None and self.token_key_file is not None:
            yield "token_key_file", "means nothing without token_folder: remove it"

    def __str__(self) -> str:
        whose = "a token of each user's" if self.personal else "a token of its own"
        where = f", kept in {self.token_folder}" if self.token_folder is not None else ""
        return f"{whose} from {self.token_url}{where}"


def faults(login: Method, block: OAuth2 | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys of a backend that do not go with its way to log in, and what to do about it."""
    if login is not Method.OAUTH2:
        if block is not None:
            other = f'means nothing with login = "{login.value}": remove it, or use login = "oauth2"'
            yield ("oauth2",), other
        return
    if block is None:
        yield ("oauth2",), 'missing: login = "oauth2" needs [backend.NAME.oauth2]'
        return
    for key, message in block.lacks():
        yield ("oauth2", key), message
