"""The proxies that are measured beside each other."""

from __future__ import annotations

from benchmarks.peers.base import Cores, Leg, NotHere, Peer
from benchmarks.peers.dovecot import Dovecot
from benchmarks.peers.haproxy import HAProxy
from benchmarks.peers.mailroute import Mailroute
from benchmarks.peers.nginx import Nginx
from benchmarks.peers.perdition import Perdition

__all__ = ["PEERS", "Cores", "Leg", "NotHere", "Peer"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Mailroute(),
        Mailroute(workers=2),
        Nginx(),
        Nginx(workers=2),
        Nginx(buffers="64k"),
        HAProxy(),
        HAProxy(splice=True),
        Dovecot(),
        Perdition(),
    )
}
"""All of them, by name."""
