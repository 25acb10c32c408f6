"""TLS on both legs: certificates chosen by name for clients, verified names for backends."""

from mailroute.tls.client import ClientTLS, authorities, client_context, client_tls, remember, resuming_failed
from mailroute.tls.errors import explain
from mailroute.tls.server import KeyPair, ServerTLS
from mailroute.tls.transports import shakes_hands

__all__ = [
    "ClientTLS",
    "KeyPair",
    "ServerTLS",
    "authorities",
    "client_context",
    "client_tls",
    "explain",
    "remember",
    "resuming_failed",
    "shakes_hands",
]
