"""What is measured: each figure's name, unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure.  ``scale`` times what is kept, in SI units, is what is shown in ``unit``."""

    title: str
    unit: str
    scale: float
    better: str = "less"


METRICS = {
    "login": Metric("login and logout, CPU", "µs", 1e6),
    "resume": Metric("login and logout with a TLS session resumed, CPU", "µs", 1e6),
    "down": Metric("bulk to 4 clients, CPU per GB", "ms", 1e12),
    "up": Metric("bulk from 4 clients, CPU per GB", "ms", 1e12),
    "noop": Metric("NOOP round trip of 8 clients, CPU", "µs", 1e6),
    "noop-few": Metric("NOOP round trip, few sessions held, CPU", "µs", 1e6),
    "noop-many": Metric("NOOP round trip of as many clients, many sessions held, CPU", "µs", 1e6),
    "idle-some": Metric("memory of an idle session, some held", "kB", 1e-3),
    "idle-many": Metric("memory of an idle session, many held", "kB", 1e-3),
    "idle-cpu": Metric("many idle sessions for a second, CPU", "ms", 1e3),
    "quiet-p50": Metric("NOOP round trip of 100 quiet clients, median", "ms", 1e3),
    "quiet-p99": Metric("NOOP round trip of 100 quiet clients, 99th percentile", "ms", 1e3),
    "poured-p50": Metric("NOOP round trip of 100 quiet clients while 4 pour, median", "ms", 1e3),
    "poured-p99": Metric("NOOP round trip of 100 quiet clients while 4 pour, 99th percentile", "ms", 1e3),
    "rate": Metric("logins and logouts per second, on as many cores as workers", "1/s", 1, "more"),
    "rate-cpu": Metric("login and logout, CPU, on as many cores as workers", "µs", 1e6),
}
"""All figures by name, in the order of the tables; few, some and many are explained by `loads.Sizes`."""
