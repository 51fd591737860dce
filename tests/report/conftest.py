"""Tests of the report draw its charts."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _drawn(drawn_pictures):
    """See tests/conftest.py."""
