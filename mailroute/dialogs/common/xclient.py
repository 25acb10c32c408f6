"""Telling a backend who the client is: the XCLIENT command of Dovecot's login services but IMAP's.

Dovecot takes it from its login_trusted_networks.  SMTP's command of that name
is another one.
"""

from __future__ import annotations

import base64
import re

from mailroute.dialogs.common.plan import NoWay
from mailroute.events import LoginOrder, Method

MAX_COMMAND = 1022
"""Bytes in the command: Dovecot's bound of 1024 on a line, less its end."""

TTL = 6
"""Proxies that the connection may still pass: Dovecot's number, 7, less ourselves."""

# Values are not quoted, and the client chooses the name that it asks for by SNI.
_NAME = re.compile(r"[A-Za-z0-9._:\-]+\Z")


def xclient(method: Method, order: LoginOrder) -> bytes:
    """Return the command, without its end.

    :raises NoWay: what the route forwards does not fit into it.
    """
    client = order.client
    words = []
    if client.source is not None:
        words += [f"ADDR={client.source.host}", f"PORT={client.source.port}"]
    if client.destination is not None:
        words += [f"DESTADDR={client.destination.host}", f"DESTPORT={client.destination.port}"]
    words += [f"SESSION={client.session_id}", f"TTL={TTL}"]
    words.append("CLIENT-TRANSPORT=TLS" if client.tls else "CLIENT-TRANSPORT=insecure")
    # Without a login this is the only way in which the backend learns the name.
    forward = [("user", order.user)] if method is Method.NONE else []
    forward += order.forward
    if forward:
        fields = "\t".join(f"{key}={value}" for key, value in forward)
        words.append(f"FORWARD={base64.b64encode(fields.encode()).decode('ascii')}")
    command = " ".join(["XCLIENT", *words])
    if len(command) > MAX_COMMAND:
        raise NoWay(f"the name and what the route forwards do not fit into an XCLIENT of {MAX_COMMAND} bytes")
    if client.server_name and _NAME.match(client.server_name):
        whole = f"{command} DESTNAME={client.server_name}"
        command = whole if len(whole) <= MAX_COMMAND else command
    return command.encode("ascii")
