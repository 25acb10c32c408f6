"""Deliveries through a mailroute in processes of its own: loops, workers, and what is left after many."""

from __future__ import annotations

import asyncio
import re
import smtplib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.lmtp import LMTP
from servers.certificates import Authority, Certificate
from servers.processes import PATIENCE, accepts, free_port, wait_until
from servers.proxy import Mailroute

pytestmark = pytest.mark.integration

SENDER = "author@example.net"
PROTOCOL = {"lmtp": {"protocol": "lmtp", "security": "none"}}


class Sink(Controller):
    """A backend that takes every message, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[str], bytes]] = []
        super().__init__(self, "127.0.0.1", free_port())

    def factory(self) -> LMTP:
        return LMTP(self.handler, hostname="sink.example")

    async def handle_DATA(self, _: object, __: object, envelope: Any) -> str:  # noqa: N802
        self.taken.append((envelope.rcpt_tos, envelope.content))
        return "\r\n".join("250 2.0.0 taken" for _ in envelope.rcpt_tos)


@pytest.fixture(scope="module")
def sinks() -> Iterator[dict[str, Sink]]:
    with ExitStack() as stack:
        found = {}
        for name in ("east", "west"):
            found[name] = Sink()
            found[name].start()
            stack.callback(found[name].stop)
        yield found


def to(ports: dict[str, int], identity: str = "native", **keys: object) -> dict[str, object]:
    """Return a configuration in which each backend has the users of its own domain."""
    return {
        **keys,
        "backend": {
            name: {"lmtp": f"tcp:127.0.0.1:{port}", "security": "none", "identity": identity}
            for name, port in ports.items()
        },
        "route": [
            {"source": "pattern", "match": rf".+@{name}\.example\.org", "backend": name} for name in ports
        ],
    }


def deliver(client: smtplib.LMTP, number: int) -> list[bytes]:
    """Deliver a message to one user on each backend, and return the replies."""
    client.mail(SENDER)
    for name in ("east", "west"):
        assert client.rcpt(f"user@{name}.example.org")[0] == 250
    assert client.docmd("DATA")[0] == 354
    client.send(b"Subject: %d\r\n\r\ntext\r\n.\r\n" % number)
    return [b"%d %s" % client.getreply() for _ in range(2)]


def subjects(sink: Sink) -> list[int]:
    """Return the numbers of the messages that a backend has, and forget them."""
    taken, sink.taken[:] = list(sink.taken), []
    return sorted(int(re.match(rb"Subject: (\d+)", content)[1]) for _, content in taken)


def test_workers_deliver(sinks: dict[str, Sink]) -> None:
    """With two processes each message is delivered once, whichever of them has the connection."""
    config = to({name: sink.port for name, sink in sinks.items()}, workers=2)
    with Mailroute(PROTOCOL, config) as mailroute, ExitStack() as stack:
        clients = [stack.enter_context(smtplib.LMTP("127.0.0.1", mailroute.ports["lmtp"])) for _ in range(40)]
        for number, client in enumerate(clients):
            client.ehlo()
            assert deliver(client, number) == [b"250 2.0.0 taken"] * 2
        assert subjects(sinks["east"]) == subjects(sinks["west"]) == list(range(40))
        wait_until("the log", lambda: mailroute.log.text().count(" message 1 delivered: ") == 40)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loop_through_itself_is_seen(workers: int) -> None:
    """A mailroute whose route leads to itself says so at once, also if the other end is another worker's."""
    port = free_port()
    listen = {"lmtp": {**PROTOCOL["lmtp"], "endpoint": f"tcp:{port}:interface=127.0.0.1"}}
    with Mailroute(listen, to({"east": port}, workers=workers)) as mailroute:
        wait_until("the listener", lambda: accepts("127.0.0.1", port))
        greetings = set()
        for _ in range(20):
            with smtplib.LMTP() as client:
                greetings.add(client.connect("127.0.0.1", port))
                client.ehlo()
                client.mail(SENDER)
                assert client.rcpt("user@east.example.org")[0] == 451
        assert len(greetings) == 1
        mailroute.log.wait_for("the backend is this mailroute itself: the routes form a loop")


@pytest.mark.parametrize("identity", ["native", "none"])
def test_a_loop_over_two_ends(identity: str) -> None:
    """Two whose routes lead to each other see it after a few connections, if they tell each other.

    If not, they use up those that one address may have.  The client is told to
    try again, and when it is gone nothing is left.
    """
    ports = {"one": free_port(), "two": free_port()}
    limits = {"connections_per_address": 20}
    with ExitStack() as stack:
        running = {}
        for name, other in (("one", "two"), ("two", "one")):
            listen = {"lmtp": {**PROTOCOL["lmtp"], "endpoint": f"tcp:{ports[name]}:interface=127.0.0.1"}}
            config = {**to({"east": ports[other]}, identity), "limits": limits}
            running[name] = stack.enter_context(Mailroute(listen, config))
            wait_until("the listener", lambda name=name: accepts("127.0.0.1", ports[name]))
        with smtplib.LMTP("127.0.0.1", ports["one"]) as client:
            client.ehlo()
            client.mail(SENDER)
            code, text = client.rcpt("user@east.example.org")
            if identity == "native":
                assert (code, text[:6]) == (451, b"4.3.5 ")
                # Seven proxies are the most, and each of the two is every other one.
                assert all(mailroute.sockets() <= 2 * 4 + 1 for mailroute in running.values())
                logs = [mailroute.log.text() for mailroute in running.values()]
                assert any("do the routes form a loop?" in log for log in logs)
            else:
                assert (code, text[:6]) == (451, b"4.4.1 ")
                # A limit's worth of clients at each, and as many backends, and the listener.
                assert all(20 <= mailroute.sockets() <= 2 * 20 + 1 for mailroute in running.values())
        for mailroute in running.values():
            wait_until("the loop's end", lambda mailroute=mailroute: mailroute.sockets() == 1)


def test_many_messages_leave_nothing_behind(sinks: dict[str, Sink]) -> None:
    """A thousand messages over one connection cost no memory and no descriptor; then that has to end."""
    config = to({name: sink.port for name, sink in sinks.items()})
    with (
        Mailroute(PROTOCOL, config) as mailroute,
        smtplib.LMTP("127.0.0.1", mailroute.ports["lmtp"]) as client,
    ):
        client.ehlo()
        for number in range(1000):
            assert deliver(client, number) == [b"250 2.0.0 taken"] * 2
            if number == 200:
                memory, descriptors = mailroute.memory(), mailroute.descriptors()
        assert mailroute.descriptors() == descriptors
        assert mailroute.memory() - memory < 2_000_000
        assert client.docmd("MAIL", f"FROM:<{SENDER}>")[0] == 421
        assert subjects(sinks["east"]) == subjects(sinks["west"]) == list(range(1000))


def test_many_sessions_leave_nothing_behind(sinks: dict[str, Sink]) -> None:
    """A thousand sessions one after the other, half of them broken off, leave no memory and no descriptor."""
    config = to({name: sink.port for name, sink in sinks.items()})
    with Mailroute(PROTOCOL, config) as mailroute:
        for number in range(1000):
            client = smtplib.LMTP("127.0.0.1", mailroute.ports["lmtp"])
            client.ehlo()
            if number % 2:
                client.mail(SENDER)
                client.rcpt("user@east.example.org")
                client.docmd("DATA")
                client.send(b"Subject: never\r\n")
                client.close()
            else:
                assert deliver(client, number) == [b"250 2.0.0 taken"] * 2
                client.quit()
            if number == 200:
                wait_until("the sessions' end", mailroute.idle)
                memory = mailroute.memory()
        wait_until("the sessions' end", mailroute.idle)
        assert mailroute.memory() - memory < 2_000_000
        assert subjects(sinks["east"]) == subjects(sinks["west"]) == list(range(0, 1000, 2))


class Slow(Sink):
    """A backend that takes a message when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.allowed = threading.Event(), threading.Event()

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802
        self.asked.set()
        await asyncio.get_running_loop().run_in_executor(None, self.allowed.wait, PATIENCE)
        return await super().handle_DATA(server, session, envelope)


@pytest.mark.parametrize(("workers", "security"), [(1, "none"), (1, "starttls"), (2, "starttls")])
def test_a_message_that_a_backend_may_have_is_waited_for_when_it_ends(
    authority: Authority, certificate: Certificate, workers: int, security: str
) -> None:
    """SIGTERM between a message's end and its backend's answer: the sender still hears the answer."""
    backend = Slow()
    backend.start()
    config = to({"east": backend.port}, workers=workers)
    config["certificate"] = [{"chain": str(certificate.chain), "key": str(certificate.key)}]
    try:
        with ThreadPoolExecutor() as threads:
            mailroute = Mailroute({"lmtp": {"protocol": "lmtp", "security": security}}, config)
            mailroute.start()
            if workers > 1:
                mailroute.log.wait_for("worker 2 is ready")
            client = smtplib.LMTP("localhost", mailroute.ports["lmtp"], timeout=PATIENCE)
            if security == "starttls":
                client.starttls(context=authority.context())
            client.ehlo()
            client.mail(SENDER)
            client.rcpt("user@east.example.org")
            client.docmd("DATA")
            client.send(b"Subject: 1\r\n\r\ntext\r\n.\r\n")
            assert backend.asked.wait(PATIENCE)
            stopped = threads.submit(mailroute.stop)
            mailroute.log.wait_for("its message is with its backends")
            backend.allowed.set()
            assert client.getreply() == (250, b"2.0.0 taken")
            assert client.getreply()[0] == 421
            stopped.result()
            client.close()
        assert subjects(backend) == [1]
    finally:
        backend.allowed.set()
        backend.stop()
