"""A browser, as the tests of Dagster's web page and the pictures of the guide use it."""

from collections.abc import Iterator
from contextlib import contextmanager

from conftest import require_program
from dev import PATIENCE
from playwright.sync_api import Page, expect, sync_playwright

# The first is for a container's root; the others keep it from looking for Google's servers.
_OPTIONS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_page(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """Open a blank page in Chromium or Chrome, or skip the test if neither is installed."""
    chromium = require_program("chromium", "google-chrome")
    expect.set_options(timeout=1_000 * PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_OPTIONS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1_000 * PATIENCE)
        yield page
        browser.close()
