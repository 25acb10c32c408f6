"""Where an account lives, for a person who asks: who was asked, what they said, and what a login would do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from typing import Any, Literal

from attrs import evolve, mutable
from attrs import field as attribute
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.config import Backend, Listener, Settings
from mailroute.events import Address, Client, Credentials, LoginRefused, Lookup, Method, Route
from mailroute.interfaces import IRouter
from mailroute.places import needs_proof
from mailroute.routers import BadAnswer, Chain

SESSION = "mailroute-route"
"""What a source that is told of sessions hears as the name of this one."""


# ``docs/route.schema.json`` tells other programs of these.
_TOLD = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, config=_TOLD)
class Asked:
    """A source that was asked, and what it said."""

    source: str
    """What the log calls its block, or a listener that names a backend and asks no route."""

    outcome: Literal["route", "unknown", "refused", "failed"]
    """It knows where the account lives, does not know the user, turns the login away, or could not tell."""

    seconds: float
    """How long it took."""

    notes: tuple[str, ...] = ()
    """How it came to its answer, such as that this was from its cache."""


@dataclass(frozen=True, config=_TOLD)
class Place:
    """A backend that would be tried, and how."""

    backend: str
    """Its name in the configuration."""

    endpoint: str
    """Where it would be dialled."""

    security: Literal["starttls", "tls", "none"]
    """How the connection would be protected."""

    identity: str
    """How it would be told who the client is."""

    login: str
    """With whose credentials somebody would be logged in; it holds no secret."""

    user: str
    """As whom."""


@dataclass(frozen=True, config=_TOLD)
class Whereabouts:
    """Where an account lives."""

    name: str
    """The user's name in the form in which it is looked up."""

    protocol: str
    """In which protocol the login would be."""

    asked: tuple[Asked, ...] = ()
    """The sources that were asked, in order."""

    places: tuple[Place, ...] = ()
    """The backends that would be tried, in order; none where the login would be refused."""

    forward: Mapping[str, str] = field(default_factory=dict)
    """What would be handed to the backend with the client's identity."""

    refused: str | None = None
    """Why the login would be refused; null: it would not."""

    def as_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        return asdict(self)


class CannotAsk(Exception):
    """The question makes no sense; the text is for whoever asks."""


async def find(
    settings: Settings,
    user: bytes,
    protocol: str,
    clock: Any,
    *,
    client: str | None = None,
    password: bytes | None = None,
) -> Whereabouts:
    """Ask the settings' routes where an account lives, as a session would.

    A listener that names a backend asks none of them, and is told as a source that has answered.

    :param user: the name as a client would send it.
    :param clock: the reactor.
    :param client: the IP address from which it would come.
    :param password: the user's, for sources that check it.
    :raises CannotAsk: it is no user's name, nobody speaks the protocol, or no route is asked and several
        listeners lead to different backends.
    """
    speaking = [listener for listener in settings.listeners if listener.protocol.name == protocol]
    if not speaking:
        spoken = ", ".join(dict.fromkeys(listener.protocol.name for listener in settings.listeners))
        raise CannotAsk(f'no listener speaks "{protocol}"; there are listeners for {spoken}')
    try:
        name = settings.user_names.from_wire(user)
    except ValueError as error:
        raise CannotAsk(f"not a user name: {error}") from None
    found = Whereabouts(name, protocol, tuple(_settled(speaking)))
    if len(found.asked) == len(speaking):
        return _placed(found, settings, Route(_only(speaking)))
    credentials = None if password is None else Credentials("PLAIN", user, password)
    source = None if client is None else Address(client, 0)
    return await _ask(
        found, settings, Lookup(name, protocol, Client(SESSION, source, None), credentials), clock
    )


def _settled(listeners: Sequence[Listener]) -> Iterator[Asked]:
    """Say of those that ask no route where they lead."""
    for listener in listeners:
        if listener.backend is not None:
            goes = f"everybody who comes there goes to {listener.backend}"
            yield Asked(f"listener {listener.name}", "route", 0.0, (goes,))


def _only(listeners: Sequence[Listener]) -> str:
    """Return the one backend to which listeners lead that ask no route.

    :raises CannotAsk: there are several.
    """
    places = {listener.backend for listener in listeners}
    (first, *others) = sorted(filter(None, places))
    if others:
        ways = ", ".join(f"{listener.name} leads to {listener.backend}" for listener in listeners)
        raise CannotAsk(f"it depends on the listener, and not on the user: {ways}")
    return first


async def _ask(found: Whereabouts, settings: Settings, lookup: Lookup, clock: Any) -> Whereabouts:
    """Ask the routes."""
    watched = [_Watched(label, router, clock.seconds) for label, router in settings.routes]
    running = MultiService()
    for _, router in settings.routes:
        if IService.providedBy(router):
            IService(router).setServiceParent(running)
    running.startService()
    try:
        chain = Chain([(each.label, each) for each in watched], frozenset(settings.backends))
        route = await _answer(chain.route(lookup))
        found = _placed(found, settings, route)
    except LoginRefused as refused:
        found = replace(found, refused=str(refused))
    finally:
        await running.stopService()
    asked = [each.asked for each in watched if each.asked is not None]
    return replace(found, asked=(*found.asked, *asked))


async def _answer(answer: object) -> Any:
    return await answer if isinstance(answer, Deferred | Coroutine) else answer


def _placed(found: Whereabouts, settings: Settings, route: Route | None) -> Whereabouts:
    """Add where a route leads."""
    if route is None:
        return replace(found, refused="no route knows the user")
    try:
        blocks = {name: _block(name, settings, route, found) for name in (route.backend, *route.others)}
    except ValueError as error:
        return replace(found, refused=f"the route leads nowhere: {error}")
    if not _is_checked(settings, found.protocol):
        for name, block in blocks.items():
            if needs_proof(route, block.login):
                return replace(found, refused=f"nobody checks passwords for {name}: {_REMEDY}")
    places = tuple(_place(name, block, route, found) for name, block in blocks.items())
    return replace(found, places=places, forward=dict(route.forward))


_REMEDY = "add an [[authenticate]] block, or ask a route's source that checks them, with --password-file"


def _is_checked(settings: Settings, protocol: str) -> bool:
    """Tell whether a listener for the protocol knows who is there, or takes anybody as they are."""
    listeners = [listener for listener in settings.listeners if listener.protocol.name == protocol]
    return bool(settings.authenticators) or any(
        not listener.protocol.logins or listener.authenticate is not None for listener in listeners
    )


def _block(name: str, settings: Settings, route: Route, found: Whereabouts) -> Backend:
    if name not in settings.backends:
        raise ValueError(f'there is no backend "{name}"')
    block: Backend = settings.backends[name]
    if route.change is not None:
        block = block.changed(route.change)
    if found.protocol not in block.endpoints:
        raise ValueError(f"backend {name} does not serve {found.protocol}")
    return block


def _place(name: str, block: Backend, route: Route, found: Whereabouts) -> Place:
    endpoint = block.endpoints[found.protocol]
    return Place(
        name,
        endpoint if isinstance(endpoint, str) else type(endpoint).__name__,
        block.security.value,
        block.identity.value,
        _login(block, route),
        route.name if route.name is not None else found.name,
    )


def _login(block: Backend, route: Route) -> str:
    """Say with what somebody would be logged in, in the configuration's words and without any secret."""
    if route.password is not None:
        whose = "" if route.master is None else f" of {route.master}"
        return f"password{whose} from the route"
    if block.login is Method.MASTER:
        return f"master {block.master_user}"
    return str(block.login.value)


@implementer(IRouter)
@mutable
class _Watched:
    """A router that is asked once, and what it said."""

    label: str
    router: IRouter
    seconds: Callable[[], float]
    asked: Asked | None = None
    _since: float = 0.0
    _notes: list[str] = attribute(factory=list)

    def route(self, lookup: Lookup) -> Any:
        """Ask the router (`IRouter.route`)."""
        self._since = self.seconds()
        if lookup.credentials is None and getattr(self.router, "proves", False):
            self._notes.append("asked without the password that it checks: see --password-file")
        try:
            answer: object = self.router.route(evolve(lookup, note=self._notes.append))
        except Exception:
            self._said(Failure())
            raise
        if isinstance(answer, Coroutine):
            answer = Deferred.fromCoroutine(answer)
        if isinstance(answer, Deferred):
            return answer.addBoth(self._said)
        return self._said(answer)

    def _said(self, answer: object) -> object:
        outcome: Literal["route", "unknown", "refused", "failed"] = "unknown" if answer is None else "route"
        if isinstance(answer, Failure):
            outcome = "refused" if answer.check(LoginRefused, BadAnswer) else "failed"
            if not answer.check(LoginRefused, CancelledError):
                self._notes.append(
                    str(answer.value) if answer.check(BadAnswer) else type(answer.value).__name__
                )
        self.asked = Asked(self.label, outcome, self.seconds() - self._since, tuple(self._notes))
        return answer


def lines(found: Whereabouts) -> Sequence[str]:
    """Return it as lines for a person."""
    said = [f"{found.name} ({found.protocol})"]
    for asked in found.asked:
        notes = f", {', '.join(asked.notes)}" if asked.notes else ""
        said.append(f"  {asked.source}: {asked.outcome} in {asked.seconds * 1000:.1f} ms{notes}")
    if found.refused is not None:
        said.append(f"turned away: {found.refused}")
    for number, place in enumerate(found.places):
        said.append(
            f"{'lives at' if not number else 'or else at'} {place.backend}: {place.endpoint}, "
            f"security {place.security}, identity {place.identity}, login {place.login}, as {place.user}"
        )
    said += (f"forwards {key} = {value}" for key, value in found.forward.items())
    return said
