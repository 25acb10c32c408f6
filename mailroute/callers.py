"""Who is calling, before anybody has said a name, and with which mail."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import define

from mailroute.proofs import ClientCertificate
from mailroute.wire.smtp_syntax import Parameters

if TYPE_CHECKING:
    from attrs import frozen as passing
else:
    # As in `mailroute.events`: every session makes them anew.
    passing = partial(define, unsafe_hash=True)


@passing
class Address:
    """One end of a TCP connection: a numeric IP address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@passing
class Client:
    """What is known of a connected client before it says who it is.

    ``source`` and ``destination`` are ``None`` where the transport has no IP address (a UNIX socket).
    ``tls`` is the negotiated version, such as ``TLSv1.3``, or ``None`` in the clear; ``cipher`` OpenSSL's
    name of the suite; ``server_name`` the SNI it asked for.  ``of_proxy``: a proxy in front has opened the
    connection and says nothing of a client (a health check, as a rule), so that ``source`` is its own
    address.  ``relayed``: a proxy in front has said what ``source`` and ``destination`` are.
    ``certificate`` is ``None`` unless it has shown one that is to be trusted; ``asked``: it was to show one.
    """

    session_id: str
    source: Address | None
    destination: Address | None
    tls: str | None = None
    server_name: str | None = None
    of_proxy: bool = False
    certificate: ClientCertificate | None = None
    cipher: str | None = None
    relayed: bool = False
    asked: bool = False


@passing
class Mailing:
    """A message that is to be delivered, as far as it is known when one of its recipients is looked up.

    ``hello`` is what the client calls itself, as it is written; ``sender`` and ``recipient`` are mailboxes as
    they are spelled, the null path's empty, each with its parameters.
    """

    hello: bytes = b""
    sender: bytes = b""
    sender_parameters: Parameters = ()
    recipient: bytes = b""
    recipient_parameters: Parameters = ()
