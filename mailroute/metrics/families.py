"""Families of metrics: on their way from one process to another, brought together, and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
"""What Prometheus calls the text."""


def packed(families: Iterable[Metric]) -> bytes:
    """Return families as bytes."""
    return json.dumps(
        [
            (family.name, family.documentation, family.type, [sample[:3] for sample in family.samples])
            for family in families
        ]
    ).encode()


def unpacked(message: bytes) -> list[Metric]:
    """Return the families.

    :raises ValueError: the bytes are none.
    """
    found = []
    for name, documentation, kind, samples in json.loads(message):
        family = Metric(name, documentation, kind)
        for sample in samples:
            family.add_sample(*sample)
        found.append(family)
    return found


def together(parts: Iterable[tuple[Mapping[str, str], Iterable[Metric]]]) -> list[Metric]:
    """Return one family of each name, with the samples that all parts have of it.

    :param parts: families, and labels that all their samples get.
    """
    found: dict[str, Metric] = {}
    for labels, families in parts:
        for family in families:
            whole = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for name, own, value, *_ in family.samples:
                whole.add_sample(name, {**own, **labels}, value)
    return list(found.values())


class _Ready:
    """A collector of what has been collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return the families."""
        return self._families


def text(families: list[Metric]) -> bytes:
    """Return families in the text of the Prometheus exposition format."""
    # One of its own: the library's has what any other part of the program may have put there.
    registry = CollectorRegistry()
    registry.register(_Ready(families))
    return generate_latest(registry)
