"""mailroute taking mail in this process on real sockets, with scripted backends behind it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from live import Backends, Talk, ended, started
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol

from mailroute import config
from mailroute.events import Route
from mailroute.testing import FakeRouter

EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "CHUNKING", "SIZE 1000000", "DSN")

ROUTES = {
    **{f"{name}@east.example": Route("east") for name in "abc"},
    **{f"{name}@west.example": Route("west") for name in "abc"},
    "renamed@east.example": Route("east", "other"),
}


class Server(Talk):
    """A backend's end, with the words that it takes to deliver a message."""

    tls: Any = None

    def connectionMade(self) -> None:
        super().connectionMade()
        if self.tls is not None:
            self.transport.startTLS(self.tls)

    async def ready(self, *extensions: str, hello: bytes = b"LHLO") -> bytes:
        """Greet, and answer the client's greeting; return what it called itself."""
        self.say(b"220 backend.example ready\r\n")
        return await self.hello(*extensions, hello=hello)

    async def hello(self, *extensions: str, hello: bytes = b"LHLO") -> bytes:
        """Answer the client's greeting with these extensions, or the usual ones."""
        said = await self.hears(hello + b" ")
        lines = ["backend.example", *(extensions or EXTENSIONS)]
        text = "".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}\r\n"
        self.say(text.encode())
        return said.split()[1]

    async def hears(self, beginning: bytes) -> bytes:
        """Return the next line, which begins so."""
        line = await self.until(b"\r\n")
        assert line.startswith(beginning), line
        return line

    async def takes(self, *recipients: bytes, sender: bytes = b"s@example.net") -> None:
        """Take the sender and these recipients."""
        await self.hears(b"MAIL FROM:<" + sender + b">")
        for number, recipient in enumerate(recipients):
            await self.hears(b"RCPT TO:<" + recipient + b">")
            self.say(b"" if number else b"250 2.1.0 sender\r\n")
            self.say(b"250 2.1.5 " + recipient + b"\r\n")

    async def message_after(self, client: Talk, text: bytes) -> bytes:
        """Ask for the message, have the client send it, and return what came."""
        await self.hears(b"DATA\r\n")
        self.say(b"354 go\r\n")
        await client.until(b"354 Send the message, and a dot on a line by itself\r\n")
        client.say(text)
        return await self.until(b"\r\n.\r\n")


class Servers(Backends):
    """A backend's listening end.

    :param tls: its side of TLS, which begins with the first byte; None for none.
    """

    protocol = Server

    def __init__(self, tls: Any = None) -> None:
        super().__init__()
        self.tls = tls

    def buildProtocol(self, addr: Any) -> Talk:
        talk = super().buildProtocol(addr)
        talk.tls = self.tls
        return talk


class Delivering:
    """A running mailroute with backends that the test plays: east and west, unless it has names for them."""

    def __init__(self, listener: Any, backends: dict[str, Servers], ports: dict[str, Any]) -> None:
        self.listener = listener
        self.backends = backends
        if "east" in backends:
            self.east, self.west = backends["east"], backends["west"]
        self.ports = ports
        self.clients: list[Talk] = []

    def nobody_is_connected(self) -> bool:
        """Tell whether no session has a backend."""
        targets = [t for s in self.listener.factory.sessions for t in s._forwarding._targets.values()]
        return all(target.gone for target in targets)

    @property
    def port(self) -> int:
        return self.listener._port.getHost().port

    async def client(self, hello: bytes = b"LHLO client.example", tls: Any = None) -> Talk:
        """Connect, begin TLS if there is to be any, and exchange greetings."""
        talk = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Talk())
        self.clients.append(talk)
        if tls is not None:
            await talk.starttls(tls)
        await talk.until(b" ready\r\n")
        if hello:
            talk.say(hello + b"\r\n")
            await talk.until(b"250 SIZE\r\n")
        return talk


@contextlib.asynccontextmanager
async def delivering(
    protocol: str = "lmtp",
    *,
    listen: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
    route: list[Any] | None = None,
    host: str = "127.0.0.1",
    names: tuple[str, ...] = ("east", "west"),
    backend_tls: Any = None,
    **tables: Any,
) -> AsyncIterator[Delivering]:
    """Run mailroute with these tables; a backend that is known by name has a transport of Twisted's."""
    backends = {name: Servers(backend_tls) for name in names}
    ports = {
        name: await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(servers)
        for name, servers in backends.items()
    }
    usual = {"protocol": protocol, "endpoint": "tcp:0:interface=127.0.0.1", "security": "none"}
    settings = config.build(
        reactor,
        listen=[{**usual, **(listen or {})}],
        backend={
            name: {protocol: f"tcp:{host}:{port.getHost().port}", "security": "none"} | (backend or {})
            for name, port in ports.items()
        },
        route=route or [FakeRouter(ROUTES)],
        **tables,
    )
    running, listener = started(settings)
    delivery = Delivering(listener, backends, ports)
    try:
        yield delivery
    finally:
        talks = [talk for servers in backends.values() for talk in servers.talks]
        await ended(running, ports.values(), [*delivery.clients, *talks])
