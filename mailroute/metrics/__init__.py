"""What Prometheus is told: how each source fares, who is connected, and what the processes take.

`mailroute.metrics.service` serves it; nothing of this is imported unless the
configuration has a ``[metrics]``.
"""
