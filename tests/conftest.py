"""Settings shared by all tests: the same examples on every run, no limit on time, one worker per file."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("payattn", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("payattn")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, tests of one file stay together: they share what is costly to make."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
