"""What a login is made from, its terms and its order together, for the tests of all protocols."""

from __future__ import annotations

from attrs import frozen

from mailroute.events import Client, Credentials, LoginOrder, LoginTerms, Method
from mailroute.interfaces import ILogin, IMailProtocol
from mailroute.testing import CLIENT


@frozen
class Case:
    """One login at one backend."""

    credentials: Credentials
    user: str
    client: Client = CLIENT
    method: Method = Method.REPLAY
    master: Credentials | None = None
    starttls: bool = False
    tell_client: bool = False
    seam: object = None
    forward: tuple[tuple[str, str], ...] = ()
    master_separator: str = ""

    @property
    def order(self) -> LoginOrder:
        """The account, and for whom."""
        return LoginOrder(self.credentials, self.user, self.client, self.seam, self.forward)

    def unopened(self, protocol: IMailProtocol) -> ILogin:
        """Make a login that has no order yet."""
        terms = (self.method, self.master, self.starttls, self.tell_client, self.master_separator)
        return protocol.login(LoginTerms(*terms))

    def login(self, protocol: IMailProtocol) -> ILogin:
        """Make a login that knows its order from the start."""
        login = self.unopened(protocol)
        assert login.open(self.order) == []
        return login
