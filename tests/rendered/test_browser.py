"""What one sees in Dagster's web page, in a real browser; and the pictures of it in the guide."""

import re
from collections.abc import Iterator

import pytest
from browser import open_page
from conftest import Render
from dev import Dev, running_dev
from pictures import SCENES, Scene
from playwright.sync_api import Page, expect


@pytest.fixture(scope="module")
def dev(render: Render) -> Iterator[Dev]:
    """A project of which `just dev` runs."""
    with running_dev(render()) as dev:
        yield dev


@pytest.fixture
def page() -> Iterator[Page]:
    """A page that is large enough for all that Dagster tells of an asset."""
    with open_page(width=1400, height=2000) as page:
        yield page


def test_an_asset_is_materialized_by_clicks_and_its_page_shows_the_result(
    dev: Dev, page: Page
) -> None:
    dagster = dev.address("Dagster")

    page.goto(f"{dagster}/assets/people")
    expect(page.get_by_text("Never materialized").first).to_be_visible()
    page.get_by_role("button", name="Materialize").first.click()
    expect(page.get_by_text("Never materialized")).to_have_count(0)
    page.goto(f"{dagster}/runs")
    page.locator("a[href^='/runs/']").filter(has_text=re.compile("^[0-9a-f]{8}$")).first.click()

    # The run, with the lines that the function has logged.
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    page.get_by_placeholder("Filter…").fill("Wrote version")
    expect(page.get_by_text("Wrote version 0 of the table").first).to_be_visible()

    # The asset, with the metadata of the call and of the table, and with its first rows.
    page.goto(f"{dagster}/assets/people")
    expect(page.get_by_text("date_of_birth").first).to_be_visible()
    for name in ("table_location", "cloud_function_call", "cloud_function_seconds"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text("1,000", exact=True).first).to_be_visible()
    preview = page.get_by_role("row").filter(has_text="preview").get_by_role("table").first
    expect(preview.get_by_role("row")).to_have_count(1 + 5)
    expect(preview).to_contain_text("email")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: str(scene.__name__))
def test_what_a_picture_of_the_guide_shows_can_still_be_seen(
    scene: Scene, dev: Dev, page: Page
) -> None:
    scene(dev, page)
