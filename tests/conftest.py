"""What holds for all tests."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage():
    """The trainer collects garbage where memory matters; with all that is imported by now that takes a second each time."""
    gc.collect()
    gc.freeze()
