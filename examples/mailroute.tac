"""mailroute as a Twisted application.

    twistd -ny examples/mailroute.tac

It reads ``mailroute.toml`` beside this file, or what the environment variable
MAILROUTE_CONFIG names.
"""

import os
from pathlib import Path

from twisted.application.service import Application

import mailroute

try:
    settings = mailroute.load(
        os.environ.get("MAILROUTE_CONFIG") or Path(__file__).with_name("mailroute.toml")
    )
except mailroute.ConfigError as error:
    raise SystemExit(str(error)) from None

application = Application("mailroute")
mailroute.service(settings).setServiceParent(application)
