"""TLS on both legs: certificates chosen by name for clients, verified names for backends."""

from mailroute.tls.client import ClientTLS, ResumptionFailed, client_context, client_tls, remember
from mailroute.tls.errors import explain
from mailroute.tls.server import KeyPair, ServerTLS

__all__ = [
    "ClientTLS",
    "KeyPair",
    "ResumptionFailed",
    "ServerTLS",
    "client_context",
    "client_tls",
    "explain",
    "remember",
]
