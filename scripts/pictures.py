"""Takes the pictures of the guide anew, of a project with the default answers: `make pictures`.

Each picture has a function of its name here, which does what is to be seen and waits until it can
be seen. The tests do the same, so that none shows what is no more.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import copier
from browser import open_page
from conftest import TEMPLATE, run
from dev import Dev, running_dev
from playwright.sync_api import Page, expect
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

Scene = Callable[[Dev, Page], None]

PICTURES = TEMPLATE / "docs" / "pictures"

_COLUMNS = 100  # of the terminal
_DRAW = """async source => {
    const sequence = {actorMargin: 12, mirrorActors: false, width: 124, wrap: true};
    mermaid.initialize({fontSize: 15, sequence, theme: "neutral"});
    return (await mermaid.render("flow", source)).svg;
}"""


def demo(dev: Dev, page: Page) -> None:
    """The terminal, after `just demo`."""
    colors = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(_COLUMNS)}
    printed = run("uv", "run", "just", "demo", cwd=dev.project, env=colors).stdout
    assert "The check visits:visitors_are_known passed." in printed
    page.set_content(_as_page(printed[printed.index("Preparing cloud_function") :]))
    size = page.locator("pre").bounding_box()
    assert size is not None
    page.set_viewport_size({"width": int(size["width"]) + 32, "height": int(size["height"]) + 32})


def asset(dev: Dev, page: Page) -> None:
    """The page of an asset, with what the function reported of it."""
    dev.materialize("people")
    page.set_viewport_size({"width": 1500, "height": 1660})
    page.goto(f"{dev.address('Dagster')}/assets/people")
    expect(page.get_by_text("cloud_function_call", exact=True).first).to_be_visible()
    preview = page.get_by_role("row").filter(has_text="preview").get_by_role("table")
    expect(preview.first).to_be_visible()


def logs(dev: Dev, page: Page) -> None:
    """A run, with what the function logged while it worked."""
    run = dev.launch("people")
    page.set_viewport_size({"width": 1280, "height": 760})
    page.goto(f"{dev.address('Dagster')}/runs/{run['runId']}")
    page.get_by_role("button", name="Levels").click()
    for level in ("event", "debug"):  # not the first, but the second
        page.get_by_role("menuitem", name=level).click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("menuitem")).to_have_count(0)
    expect(page.get_by_text("Wrote version").first).to_be_visible()


def lineage(dev: Dev, page: Page) -> None:
    """The assets, and which is made of which."""
    dev.materialize("people")
    dev.backfill("visits", [f"2026-01-{day:02}" for day in range(1, 15)])
    page.set_viewport_size({"width": 1280, "height": 560})
    page.goto(f"{dev.address('Dagster')}/asset-groups")
    expect(page.get_by_text("1 / 1 Passed")).to_be_visible()
    expect(page.get_by_text("Materialized", exact=True)).to_be_visible()


def backfill(dev: Dev, page: Page) -> None:
    """The partitions of an asset after a backfill of a month, in which one day failed."""
    days = [f"2026-01-{day:02}" for day in range(1, 32)]
    sound = "    day = pipes.partition_key\n"
    broken = f'{sound}    assert day != "{days[16]}", "The shop sent no visits."\n'
    dev.edit_function("tasks/visits.py", sound, broken)
    dev.backfill("visits", days)
    dev.edit_function("tasks/visits.py", broken, sound)
    page.goto(f"{dev.address('Dagster')}/assets/visits?view=partitions&partition={days[-1]}")
    expect(page.get_by_text("Failed (1)")).to_be_visible()
    expect(page.get_by_text("Materialized (30)")).to_be_visible()
    expect(page.get_by_text("cloud_function_seconds").first).to_be_attached()


def failed_run(dev: Dev, page: Page) -> None:
    """A run that failed, with the function's own traceback."""
    dev.edit_function("tasks/people.py", "fake.city()", "fake.town()")
    run = dev.launch("people")
    dev.edit_function("tasks/people.py", "fake.town()", "fake.city()")
    page.goto(f"{dev.address('Dagster')}/runs/{run['runId']}")
    page.get_by_text("View full message").first.click()
    expect(page.get_by_text("'Generator' object has no attribute 'town'").last).to_be_visible()
    expect(page.get_by_text("in get_fake_data").last).to_be_visible()


SCENES: list[Scene] = [demo, asset, logs, lineage, backfill, failed_run]


def _as_page(printed: str) -> str:
    """A page with what a terminal shows, in its colors."""
    console = Console(record=True, file=io.StringIO(), width=_COLUMNS)
    console.print(Text.from_ansi(printed))
    return console.export_html(
        theme=MONOKAI,
        code_format=(
            "<html><body style='margin: 16px; background: {background}; color: {foreground}'>"
            "<pre style='display: inline-block; margin: 0; font: 14px/1.3 monospace'>{code}</pre>"
            "</body></html>"
        ),
        inline_styles=True,
    )


def draw_flow(folder: Path) -> None:
    """Draw the diagram of one call, by Mermaid, which npm installs into `folder`."""
    run("npm", "install", "--silent", "--no-save", "mermaid@11", cwd=folder)
    source = (PICTURES / "flow.mmd").read_text()
    with open_page() as page:
        page.add_script_tag(path=folder / "node_modules" / "mermaid" / "dist" / "mermaid.min.js")
        svg = page.evaluate(_DRAW, source)
    (PICTURES / "flow.svg").write_text(svg.replace("max-width:", "background: white; max-width:"))


def main() -> None:
    """Take all pictures, and draw the diagram."""
    with tempfile.TemporaryDirectory() as folder:
        draw_flow(Path(folder))
        project = Path(folder, "my-data-platform")
        copier.run_copy(str(TEMPLATE), project, defaults=True, quiet=True, vcs_ref="HEAD")
        with running_dev(project) as dev:
            for scene in SCENES:
                with open_page() as page:
                    scene(dev, page)
                    page.screenshot(path=PICTURES / f"{scene.__name__}.png", animations="disabled")


if __name__ == "__main__":
    main()
