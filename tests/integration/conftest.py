"""What the integration tests share: two mail servers and a proxy that live as long as the test run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers.accounts import ALICE, BOB, SPARE
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.site import DIRECT, PROXIED, Site, backend, configuration, furnish, listeners, users


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture(scope="session")
def backends(certificate: Certificate) -> Iterator[dict[str, Dovecot]]:
    terms = Terms(certificate=certificate)
    with Dovecot(terms, ALICE, *SPARE) as east, Dovecot(terms, BOB, *SPARE) as west:
        servers = {"east": east, "west": west}
        furnish(servers)
        yield servers


@pytest.fixture(scope="session")
def proxy(
    backends: dict[str, Dovecot], authority: Authority, certificate: Certificate
) -> Iterator[Mailroute]:
    blocks = {name: backend(server, authority) for name, server in backends.items()}
    with Mailroute(listeners(), configuration(certificate, blocks), users(ALICE, BOB)) as mailroute:
        yield mailroute


@pytest.fixture(scope="session")
def site(authority: Authority, backends: dict[str, Dovecot], proxy: Mailroute) -> Site:
    return Site(authority, backends, proxy)


@pytest.fixture(params=[DIRECT, PROXIED])
def way(request: pytest.FixtureRequest) -> str:
    return request.param
