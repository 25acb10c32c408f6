"""TLS on both legs: certificates chosen by name for clients, verified names for backends."""

from mailroute.tls.client import ClientTLS, authorities, client_context, client_tls, remember, resuming_failed
from mailroute.tls.errors import explain
from mailroute.tls.inspect import Inspected, Inspector
from mailroute.tls.server import (
    KeyPair,
    ServerTLS,
    asked_for_certificate,
    channel_binding,
    client_certificate,
)
from mailroute.tls.transports import below_tls, shakes_hands

__all__ = [
    "ClientTLS",
    "Inspected",
    "Inspector",
    "KeyPair",
    "ServerTLS",
    "asked_for_certificate",
    "authorities",
    "below_tls",
    "channel_binding",
    "client_certificate",
    "client_context",
    "client_tls",
    "explain",
    "remember",
    "resuming_failed",
    "shakes_hands",
]
