"""What holds for all tests."""

import pytest

# An assert in here is to say as much as one in a test.
pytest.register_assert_rewrite("properties", "streams", "transcripts")
