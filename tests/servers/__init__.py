"""Real servers and clients for the tests: private instances, own folders, free ports, nothing left behind."""

import pytest

# An assert in here is to say as much as one in a test.
pytest.register_assert_rewrite("servers.proxy", "servers.site")
