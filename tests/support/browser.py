"""Chromium, for tests of pages. Tests that need it are skipped where it is not installed."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

playwright = pytest.importorskip("playwright.sync_api")

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium; apt-get install chromium"),
]

WIDEST = """() => [...document.querySelectorAll("body *")]
    .filter((e) => !e.closest(".scroll, pre, .skip, .hoverlayer, [inert]"))
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
    .map((e) => e.outerHTML.slice(0, 200))"""
"""Elements that go beyond the right edge, but for those in a region that scrolls."""


@contextmanager
def launched() -> Iterator[playwright.Browser]:
    """A browser without a window."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield browser
        browser.close()


def until(tab: playwright.Page, condition: str, seconds: float = 15) -> None:
    """Wait until an expression is true; unlike `wait_for_function` where a policy forbids `eval`."""
    deadline = time.monotonic() + seconds
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, f"never true: {condition}"
        tab.wait_for_timeout(20)
