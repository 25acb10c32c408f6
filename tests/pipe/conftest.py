"""What the tests of every pipe share."""

from __future__ import annotations

import pytest
import pytest_twisted
from pipe.splice_rig import KINDS, PIPES, Credentials, Rig, make_credentials
from twisted.internet.task import Clock


@pytest.fixture(scope="session")
def credentials(tmp_path_factory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("certificate"))


@pytest_twisted.async_yield_fixture
async def rig(credentials):
    rig = Rig(credentials)
    yield rig
    await rig.close()


@pytest.fixture(params=PIPES)
def join(request, rig):
    """The function that splices: the same call for every pipe."""
    rig.hub = request.param == "hub"
    return PIPES[request.param]


@pytest.fixture(params=KINDS, ids="-".join)
def kinds(request):
    """What the two legs are: a, then b."""
    return request.param


@pytest.fixture
def clock() -> Clock:
    """The time that a splice goes by, where the test makes it pass."""
    return Clock()
