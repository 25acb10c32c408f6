"""User names as the clients send them, brought into one form, once, before anybody compares them."""

from __future__ import annotations

import re

from attrs import Attribute, field, frozen

MAX_USER_NAME = 512
"""The longest user name in bytes: addresses have at most 254 (RFC 3696, erratum 1690)."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What no user name holds: C0, DEL, C1 and the two separators that some log viewers take for line ends."""


class BadUserName(ValueError):
    """What a client sent cannot be a user's name; the message says why, and does not repeat the name."""


def _is_domain(_: object, __: Attribute[str], value: str) -> None:
    if "@" in value or any(character.isspace() for character in value) or CONTROL.search(value):
        raise ValueError(f"must be a domain such as example.org, without an @, not {value!r}")


@frozen
class UserNames:
    """How user names are brought into one form.

    :raises ValueError: ``default_domain`` cannot stand behind an ``@``.
    """

    lowercase_local_part: bool = False
    """Whether Alice@example.org and alice@example.org are one user."""

    default_domain: str = field(default="", validator=_is_domain)
    """What is appended, behind an ``@``, to a name that has no ``@``; empty for nothing."""

    def normalise(self, name: str) -> str:
        """Return the name in its one form: doing it twice changes nothing.

        The domain is what follows the last ``@``.  An internationalised domain
        stays in the form (U-label or A-label) in which it was written.
        """
        local, at, domain = name.rpartition("@")
        if not at:
            local, domain = name, self.default_domain
            at = "@" if domain else ""
        if self.lowercase_local_part:
            local = local.lower()
        return f"{local}{at}{domain.lower()}"

    def from_wire(self, raw: bytes) -> str:
        """Decode a name as a client sent it, and normalise it.

        :raises BadUserName: it is empty, too long, not UTF-8 or holds control characters.
        """
        if not raw:
            raise BadUserName("the user name is empty")
        if len(raw) > MAX_USER_NAME:
            raise BadUserName(f"the user name is longer than {MAX_USER_NAME} bytes")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise BadUserName("the user name is not UTF-8") from None
        if CONTROL.search(name):
            raise BadUserName("the user name contains a control character")
        return self.normalise(name)
