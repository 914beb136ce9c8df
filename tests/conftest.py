"""Fixtures that all tests may use."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.servers import absent
from tests.worlds import NAMES, World, opened_world

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

# By default an example that takes 200 ms fails, which on a busy machine any may; pytest has a limit for the whole test.
hypothesis.settings.register_profile("circles", deadline=None)
hypothesis.settings.load_profile("circles")


def pytest_configure() -> None:
    """Lets Ctrl-C reach what tests start, also where a shell started pytest in the background, and so ignoring it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--service-url", help="run the tests over HTTP against this service instead of starting one")
    parser.addoption("--service-grpc", help="address of that service's gRPC", default="127.0.0.1:9000")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take a service apart never run against somebody else's."""
    if config.getoption("--service-url") is None:
        return
    not_ours = pytest.mark.skip(reason="takes a service apart; the one of --service-url is not the tests' own")
    for item in items:
        if "control" in item.keywords:
            item.add_marker(not_ours)


@pytest.fixture(scope="session")
def coins_val() -> Path:
    """The held-out coin photographs, where they are to be had."""
    folder = SHARED / "datasets" / "coins" / "val"
    if not folder.is_dir():
        pytest.skip(f"the photographs are not in {folder}")
    return folder


@pytest.fixture(scope="session", params=NAMES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Every combination of database and store."""
    with opened_world(request.param) as world:
        yield world


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        absent("Chromium is not installed (Debian: chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
