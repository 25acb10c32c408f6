"""What a probe sees of a backend: frozen values, in no protocol's words."""

from __future__ import annotations

from attrs import frozen


@frozen
class Greeted:
    """The backend's first words, without control characters and of bounded length."""

    text: str


@frozen
class Offered:
    """What a backend offers: in the clear the first time, if TLS can begin there.

    ``capabilities``: as it lists them; none: it has not listed any.
    ``mechanisms``: SASL's, in upper case.  ``starttls``: TLS may begin now.
    ``passwords``: a command of the protocol's own takes a password now.
    """

    capabilities: tuple[str, ...]
    mechanisms: tuple[str, ...] = ()
    starttls: bool = False
    passwords: bool = False


@frozen
class Introduced:
    """Whether a backend lets itself be told who the client is, in its protocol's own words.

    ``taken`` is None if it does not say.  ``attributes`` are those that it
    lists.  ``detail`` is how it was told and what came of that, ``remedy`` how
    to have it believe us, or how to see that it does.
    """

    taken: bool | None
    detail: str
    remedy: str = ""
    attributes: tuple[str, ...] = ()


Sight = Greeted | Offered | Introduced
