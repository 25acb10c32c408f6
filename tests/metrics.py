"""A page of metrics: asked for, taken apart, and its samples by their names and labels."""

from __future__ import annotations

from contextlib import closing
from http.client import HTTPConnection

from attrs import frozen
from prometheus_client.parser import text_string_to_metric_families
from servers.processes import PATIENCE

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@frozen
class Answer:
    """What came over a connection."""

    status: int
    headers: dict[str, str]
    body: bytes


def taken_apart(said: bytes) -> Answer:
    """Return an HTTP answer in its parts."""
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, body)


def got(port: int) -> bytes:
    """Get the page of a mailroute in another process, as it is."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()


@frozen
class Page:
    """The samples of a page."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]
    text: str

    @classmethod
    def of(cls, body: bytes) -> Page:
        """Take a page apart, and insist that no sample is in it twice and each family has its help."""
        families = list(text_string_to_metric_families(body.decode("utf-8")))
        found = [sample for family in families for sample in family.samples]
        samples = {(each.name, frozenset(each.labels.items())): each.value for each in found}
        assert len(samples) == len(found)
        assert len({family.name for family in families}) == len(families)
        assert all(family.documentation for family in families if family.samples)
        return cls(samples, body.decode("utf-8"))

    @classmethod
    def at(cls, port: int) -> Page:
        """Get the page of a mailroute in another process."""
        return cls.of(got(port))

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a sample with just these labels."""
        return self.samples[name, frozenset(labels.items())]

    def names(self) -> set[str]:
        """Return the names of all samples."""
        return {name for name, _ in self.samples}

    def labels(self, label: str) -> set[str]:
        """Return all values of a label."""
        return {value for _, labels in self.samples for key, value in labels if key == label}
