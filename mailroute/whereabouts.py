"""Where an account lives, for a person who asks: who was asked, what they said, and what a login would do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import asdict, evolve, field, frozen, mutable
from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.config import Backend, Settings
from mailroute.events import Address, Client, Credentials, LoginRefused, Lookup, Method, Route
from mailroute.interfaces import IRouter
from mailroute.places import needs_proof
from mailroute.routers import BadAnswer, Chain

SESSION = "mailroute-route"
"""What a source that is told of sessions hears as the name of this one."""


@frozen
class Asked:
    """A source that was asked: what it said, and how long it took (seconds).

    ``outcome`` is ``route``, ``unknown``, ``refused`` or ``failed``; ``notes`` tell
    how it came to its answer, such as that this was from its cache.
    """

    source: str
    outcome: str
    seconds: float
    notes: tuple[str, ...] = ()


@frozen
class Place:
    """A backend that would be tried, and how: as which ``user``, with whose credentials."""

    backend: str
    endpoint: str
    security: str
    identity: str
    login: str
    user: str


@frozen
class Whereabouts:
    """What is known of an account.

    ``name`` is the user's name in the form in which it is looked up; ``forward`` what is handed to the
    backend.  Where the login would be refused, ``places`` is empty and ``refused`` says why.
    """

    name: str
    protocol: str
    asked: tuple[Asked, ...] = ()
    places: tuple[Place, ...] = ()
    forward: tuple[tuple[str, str], ...] = ()
    refused: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        return {**asdict(self), "forward": dict(self.forward)}


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

    :param user: the name as a client would send it.
    :param clock: the reactor.
    :param client: the IP address from which it would come.
    :param password: the user's, for sources that check it.
    :raises CannotAsk: it is no user's name, or nobody speaks the protocol.
    """
    if protocol not in {listener.protocol.name for listener in settings.listeners}:
        spoken = ", ".join(dict.fromkeys(listener.protocol.name for listener in settings.listeners))
        raise CannotAsk(f'no listener speaks "{protocol}"; there are listeners for {spoken}')
    try:
        name = settings.user_names.from_wire(user)
    except ValueError as error:
        raise CannotAsk(f"not a user name: {error}") from None
    credentials = None if password is None else Credentials("PLAIN", user, password)
    source = None if client is None else Address(client, 0)
    lookup = Lookup(name, protocol, Client(SESSION, source, None), credentials)
    found = Whereabouts(name, protocol)
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
        found = evolve(found, refused=str(refused))
    finally:
        await running.stopService()
    return evolve(found, asked=tuple(each.asked for each in watched if each.asked is not None))


async def _answer(answer: object) -> Any:
    return await answer if isinstance(answer, Deferred | Coroutine) else answer


def _placed(found: Whereabouts, settings: Settings, route: Route | None) -> Whereabouts:
    """Add where a route leads."""
    if route is None:
        return evolve(found, refused="no route knows the user")
    try:
        blocks = {name: _block(name, settings, route, found) for name in (route.backend, *route.others)}
    except ValueError as error:
        return evolve(found, refused=f"the route leads nowhere: {error}")
    if not _is_checked(settings, found.protocol):
        for name, block in blocks.items():
            if needs_proof(route, block.login):
                return evolve(found, refused=f"nobody checks passwords for {name}: {_REMEDY}")
    places = tuple(_place(name, block, route, found) for name, block in blocks.items())
    return evolve(found, places=places, forward=route.forward)


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
    _notes: list[str] = field(factory=list)

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
        outcome = "unknown" if answer is None else "route"
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
    said += (f"forwards {key} = {value}" for key, value in found.forward)
    return said
