"""mailroute: a mail routing proxy, one name and one port in front of many mail servers.

From Python, in a Tac file for example::

    mailroute.service(mailroute.load("mailroute.toml")).setServiceParent(application)

and, for any two connections of your own::

    result = await mailroute.splice(one.transport, other.transport)
"""

from mailroute.config import ConfigError
from mailroute.pipe import splice
from mailroute.service import load, service

__all__ = ["ConfigError", "load", "service", "splice"]
