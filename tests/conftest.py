"""What holds for all tests."""

import hypothesis
import pytest

# An assert in here is to say as much as one in a test.
pytest.register_assert_rewrite("properties", "streams", "transcripts")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("unhurried", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unhurried")
