"""Asking servers that were written for nginx's mail proxy (``auth_http``)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers

from mailroute.events import Client, LoginRefused, Lookup, Mailing, Reason, Refusal, Route
from mailroute.proofs import Proof
from mailroute.routers.answers import Answers
from mailroute.routers.web.options import HttpOptions
from mailroute.routers.web.router import WebRouter, unanswered
from mailroute.sources import BadAnswer, SourceContext
from mailroute.sources.context import shown
from mailroute.sources.web_client import WebAnswer
from mailroute.wire import nginx_auth
from mailroute.wire.nginx_auth import AuthAnswer, BadAuthAnswer

MIN_WAIT = 0.1
"""Seconds before a server that has said ``WAIT`` is asked again, at the least."""


class NginxRouter(WebRouter):
    """Asks servers that were written for nginx's mail proxy."""

    def __init__(self, options: HttpOptions, context: SourceContext) -> None:
        super().__init__(options, context, proves=True)
        self._answers = Answers(context.backends, options.backend)
        self._protocols = options.protocols
        self._patience = options.timeout
        self._envelope = options.envelope
        self._whole_certificate = options.pass_client_cert

    async def _find(self, lookup: Lookup) -> Route | None:
        asked = self._asked(lookup)
        headers = _AsWritten({name: [value] for name, value in asked.items()})
        until = self._clock.seconds() + self._patience
        while True:
            said: AuthAnswer = await self._servers.ask(b"GET", headers, needs_body=False)
            if not said.again:
                break
            # As nginx does, but no longer than there is time for one answer.
            wait = max(said.wait, MIN_WAIT)
            if self._clock.seconds() + wait >= until:
                # It has answered, so that others may go on asking it.
                detail = f"the auth server wants to be asked again in {wait:g} s, which is too late"
                raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail))
            await deferLater(self._clock, wait, lambda: None)
        if said.refusal is not None:
            reason = Reason.UNAVAILABLE if said.temporary else Reason.AUTHENTICATION_FAILED
            detail = f"the auth server says {shown(said.refusal)}"
            raise LoginRefused(Refusal(reason, detail, wait=said.wait, final=not said.wait))
        route = self._answers.route(
            {"host": _address(said), "port": said.port, "name": said.user, "password": said.password}
        )
        shown_password = asked[b"Auth-Method"] == b"plain"
        return None if route is None else evolve(route, proven=shown_password)

    def told(self, lookup: Lookup) -> Sequence[bytes]:
        """Return all that it is told and that another connection of the same client has as well."""
        asked = self._asked(lookup)
        return [b"%s: %s" % pair for pair in asked.items() if pair[0] not in _OF_ONE_CONNECTION]

    def _asked(self, lookup: Lookup) -> dict[bytes, bytes]:
        """Return the headers of a question.

        :raises LoginRefused: nginx's words cannot carry what the client shows.
        """
        client = lookup.client
        protocol = self._protocols.get(lookup.protocol, lookup.protocol)
        asked = {
            b"Auth-Protocol": protocol.encode("utf-8"),
            b"Auth-Login-Attempt": b"%d" % lookup.attempt,
            b"Client-IP": b"unix:" if client.source is None else client.source.host.encode("ascii"),
            **_shown(lookup, envelope=self._envelope),
            **_of_proxy(client),
            **_in_tls(client, whole=self._whole_certificate),
        }
        if protocol == "smtp":
            asked[b"Client-Host"] = nginx_auth.NO_HOST
        return {name: asked[name] for name in nginx_auth.NAMES if name in asked}

    def _read(self, answer: WebAnswer) -> AuthAnswer:
        # nginx does not look at the status, and servers answer a wrong password with one of their liking.
        try:
            said = nginx_auth.read(answer.values)
        except BadAuthAnswer as error:
            raise BadAnswer(str(error)) from None
        if said is None:
            raise unanswered(answer, "and no Auth-Status")
        return said

    def __str__(self) -> str:
        return f"{' or '.join(self.urls)} checks passwords and knows where users live, as for nginx"


_OF_ONE_CONNECTION = {b"Auth-Login-Attempt", b"Proxy-Protocol-Port"}
"""Headers that have no part in what an answer is kept for: with them no answer would do for another login."""


def _shown(lookup: Lookup, *, envelope: bool) -> dict[bytes, bytes]:
    """Return what the client shows, or for whom mail is.

    :param envelope: whether a sender is told, too.
    :raises LoginRefused: nginx's words cannot carry it.
    """
    credentials = lookup.credentials
    user = lookup.user.encode("utf-8")
    if credentials is not None and credentials.proof is Proof.CERTIFICATE:
        # Which somebody else has checked: the listener, and an authenticator.
        return {b"Auth-Method": b"external", b"Auth-User": nginx_auth.escape(user), b"Auth-Pass": b""}
    if credentials is not None and credentials.proof is not Proof.PASSWORD:
        detail = f"an auth server as for nginx has no word for a {credentials.proof.value}"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
    if credentials is None or not credentials.user:
        nobody = {b"Auth-Method": b"none", b"Auth-User": b"", b"Auth-Pass": b""}
        mailing = lookup.mailing if envelope else None
        return nobody | _mail(mailing or Mailing(recipient=user))
    if credentials.authorize_as not in (b"", credentials.user):
        # It would check one name's password, and another one's account would be opened.
        detail = "an auth server as for nginx cannot tell who may act for whom"
        raise LoginRefused(Refusal(Reason.AUTHORIZATION_FAILED, detail))
    password = nginx_auth.escape(credentials.secret)
    if len(password) > nginx_auth.MAX_PASSWORD:
        detail = f"the password takes more than {nginx_auth.MAX_PASSWORD} bytes in a header"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
    return {b"Auth-Method": b"plain", b"Auth-User": nginx_auth.escape(user), b"Auth-Pass": password}


def _mail(mailing: Mailing) -> dict[bytes, bytes]:
    """Return what is told of mail; of one of which nothing is known, the null path for its sender."""
    sender = nginx_auth.path(b"MAIL FROM", mailing.sender, mailing.sender_parameters)
    recipient = nginx_auth.path(b"RCPT TO", mailing.recipient, mailing.recipient_parameters)
    return {
        b"Auth-SMTP-Helo": nginx_auth.one_line(mailing.hello),
        b"Auth-SMTP-From": sender,
        b"Auth-SMTP-To": recipient,
    }


def _of_proxy(client: Client) -> dict[bytes, bytes]:
    """Return what is told of a client whose address a PROXY header has said."""
    source, destination = client.source, client.destination
    if not client.relayed or source is None or destination is None:
        return {}
    return {
        b"Proxy-Protocol-Addr": source.host.encode("ascii"),
        b"Proxy-Protocol-Port": b"%d" % source.port,
        b"Proxy-Protocol-Server-Addr": destination.host.encode("ascii"),
        b"Proxy-Protocol-Server-Port": b"%d" % destination.port,
    }


def _in_tls(client: Client, *, whole: bool) -> dict[bytes, bytes]:
    """Return what is told of a client's TLS.

    :param whole: whether the whole certificate is told, if it has shown one.
    """
    told = {
        b"Auth-SSL": client.tls and "on",
        b"Auth-SSL-Protocol": client.tls,
        b"Auth-SSL-Cipher": client.cipher,
        b"Auth-SSL-Verify": "NONE" if client.asked else None,
    }
    certificate = client.certificate
    if certificate is not None:
        told |= {
            b"Auth-SSL-Verify": "SUCCESS",
            b"Auth-SSL-Subject": certificate.subject,
            b"Auth-SSL-Issuer": certificate.issuer,
            b"Auth-SSL-Serial": certificate.serial,
            b"Auth-SSL-Fingerprint": certificate.fingerprint,
        }
    headers = {name: value.encode("ascii") for name, value in told.items() if value}
    if whole and certificate is not None and certificate.pem:
        headers[b"Auth-SSL-Cert"] = nginx_auth.escape(certificate.pem)
    return headers


def _address(said: AuthAnswer) -> str:
    """Return where the server sends the client, which has to be an address as in nginx.

    :raises BadAnswer: it is none.
    """
    host = (said.server or b"").decode("ascii", "replace")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise BadAnswer("Auth-Server must be an IP address, not {}", host) from None


class _AsWritten(Headers):
    """Headers with the capitals of nginx's, for servers that look at them."""

    def getAllRawHeaders(self) -> Iterator[tuple[bytes, Any]]:
        """Yield names and values."""
        for name, values in super().getAllRawHeaders():
            yield _CAPITALS.get(name.lower(), name), values


_CAPITALS = {name.lower(): name for name in nginx_auth.NAMES}
