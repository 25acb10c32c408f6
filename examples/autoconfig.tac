"""mailroute, and the web page that tells mail clients to use it, in one process.

    twistd -ny examples/autoconfig.tac

Given alice@example.com, Thunderbird and others look for their settings at
``http://autoconfig.example.com/mail/config-v1.1.xml`` and at
``https://example.com/.well-known/autoconfig/mail/config-v1.1.xml``.  Both are
served from the folder ``autoconfig`` beside this file.

MAILROUTE_CONFIG names another configuration than ``mailroute.toml``, and
AUTOCONFIG_ENDPOINT another endpoint than ``tcp:80``.
"""

import os
from pathlib import Path

from twisted.application.service import Application
from twisted.application.strports import service as listen
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import File

import mailroute

here = Path(__file__).parent


class Folder(File):
    """A folder whose files can be had by those who know their names."""

    def directoryListing(self) -> Resource:  # noqa: N802 - twisted.web's name
        """Refuse to list it."""
        return self.childNotFound


def website(folder: Path) -> Resource:
    """Serve the folder, and serve it once more where RFC 8615 puts it."""
    root = Folder(str(folder))
    well_known = Resource()
    root.putChild(b".well-known", well_known)
    well_known.putChild(b"autoconfig", Folder(str(folder)))
    return root


application = Application("mailroute")

try:
    settings = mailroute.load(os.environ.get("MAILROUTE_CONFIG") or here / "mailroute.toml")
except mailroute.ConfigError as error:
    raise SystemExit(str(error)) from None
mailroute.service(settings).setServiceParent(application)

listen(
    os.environ.get("AUTOCONFIG_ENDPOINT", "tcp:80"),
    Site(website(here / "autoconfig")),
).setServiceParent(application)
