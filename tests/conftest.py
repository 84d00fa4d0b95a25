"""Settings shared by all tests: the same examples on every run, and no limit on time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("payattn", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("payattn")
