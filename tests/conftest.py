"""Options and fixtures that all tests share."""

import os
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real speech."""
    folder = os.environ.get("SPKV_CORPORA")
    if not folder:
        pytest.skip("SPKV_CORPORA is unset: no real speech here")
    if not Path(folder).is_dir():
        pytest.fail(f"SPKV_CORPORA={folder} is no folder")
    return Path(folder)
