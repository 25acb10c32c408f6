"""The configuration: one TOML file, or the same from Python, becomes frozen settings."""

from mailroute.config.describe import describe
from mailroute.config.errors import ConfigError, Problem
from mailroute.config.files import Authorities, Chain, Key, Secret
from mailroute.config.metrics import Metrics
from mailroute.config.models import Backend, Certificate, Limits, Listener, Settings
from mailroute.config.reading import build, load, load_backend, reread
from mailroute.config.source import Source
from mailroute.events import Identity, Security

__all__ = [
    "Authorities",
    "Backend",
    "Certificate",
    "Chain",
    "ConfigError",
    "Identity",
    "Key",
    "Limits",
    "Listener",
    "Metrics",
    "Problem",
    "Secret",
    "Security",
    "Settings",
    "Source",
    "build",
    "describe",
    "load",
    "load_backend",
    "reread",
]
