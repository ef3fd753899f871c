"""The page of `qbench report` in a real browser, opened from the disk. Skipped where no Chromium is installed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qbench.records.run import read_run
from qbench.show import report
from tests.support import browser as browsers
from tests.support.browser import playwright, until
from tests.support.made_up_run import FIVE_ANSWERS, eight_cells, five_cells, made_up_run

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
pytestmark = browsers.NEEDED


@dataclass
class Opened:
    """A page in a tab, what the console said and what the tab asked for."""

    tab: playwright.Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A single run of the demo model, and three runs with failures and labels of every length."""
    folder = tmp_path_factory.mktemp("pages")
    several = [
        made_up_run(five_cells(), answers=FIVE_ANSWERS), made_up_run(eight_cells(), model="<script>alert(1)</script>"),
        read_run(PUBLISHED / "tinyllama-shape-xeon-2core"),
    ]  # fmt: skip
    return {
        "one": report.write([read_run(PUBLISHED / "smoke-xeon-2core")], folder / "one.html")[0],
        "several": report.write(several, folder / "several.html")[0],
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with browsers.launched() as one:
        yield one


def visit(browser: playwright.Browser, path: Path, *, width: int = 1440, **options: object) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    context.set_default_timeout(60_000)
    opened = Opened(context.new_page())
    opened.tab.on("console", lambda message: opened.said.append(message.text))
    opened.tab.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.tab.on("request", lambda request: opened.asked.append(request.url))
    opened.tab.goto(path.as_uri())
    if options.get("java_script_enabled", True):
        opened.tab.wait_for_selector("html.ready", state="attached")
    return opened


@pytest.fixture(scope="module")
def one(browser: playwright.Browser, pages: dict[str, Path]) -> playwright.Page:
    """The page of a single run, as wide as a screen; drawn once, for tests that leave it as it was."""
    tab = visit(browser, pages["one"]).tab
    see_all(tab)
    return tab


def see_all(tab: playwright.Page) -> None:
    """Scroll through the page, since charts are drawn when they come near."""
    for plot in tab.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
    until(tab, "[...document.querySelectorAll('.plot')].every((p) => !p.offsetParent || p.querySelector('.main-svg'))")


CLIPPED = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
    const frame = plot.getBoundingClientRect();
    return [...plot.querySelectorAll("text")].filter((text) => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < frame.left - 2 || box.right > frame.right + 2);
    }).map((text) => plot.id + ": " + text.textContent);
})"""
"""Texts of plots that are cut off."""


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows_and_nothing_is_wrong(
    browser: playwright.Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    opened = visit(browser, pages[name], width=width)
    tab = opened.tab
    height = tab.evaluate("document.documentElement.scrollHeight")
    assert tab.locator(".plot.js-plotly-plot").count() < tab.locator("figure").count()
    see_all(tab)
    assert tab.evaluate("document.documentElement.scrollHeight") == height
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(browsers.WIDEST) == []
    assert tab.evaluate(CLIPPED) == []
    assert tab.locator(".plot .main-svg").count() >= 2 * tab.locator("figure").count()
    assert opened.said == []
    assert all(url.startswith(("file:", "data:")) for url in opened.asked)
    tab.context.close()


def rows(tab: playwright.Page, table: str) -> list[str]:
    return tab.locator(f"#table-{table} tbody tr:visible th").all_text_contents()


def test_the_filter_hides_a_backend_everywhere(one: playwright.Page) -> None:
    shown = "document.querySelectorAll('#plot-speed-0 .barlayer .point').length"
    names = "#plot-speed-0 .yaxislayer-above text"
    assert rows(one, "summary") == ["FP16", "INT4", "NF4", "AWQ", "GPTQ"]
    assert one.evaluate(shown) == 15
    one.get_by_label("NF4", exact=True).uncheck()
    assert rows(one, "summary") == ["FP16", "INT4", "AWQ", "GPTQ"]
    assert not one.locator("#table-subjects-0 thead th", has_text="NF4").is_visible()
    one.locator("#plot-speed-0").scroll_into_view_if_needed()
    until(one, f"{shown} === 12")
    assert "NF4" not in one.locator(names).all_text_contents()
    assert one.locator("#shown").text_content() == "4 of 5 backends shown"
    one.get_by_label("NF4", exact=True).focus()
    one.keyboard.press("Space")
    one.locator("#plot-speed-0").scroll_into_view_if_needed()
    until(one, f"{shown} === 15")
    assert len(rows(one, "summary")) == 5


def test_runs_can_be_hidden(browser: playwright.Browser, pages: dict[str, Path]) -> None:
    opened = visit(browser, pages["several"])
    tab = opened.tab
    see_all(tab)
    assert tab.locator("#plot-memory-2").is_visible()
    tab.locator("input[name=run]").nth(2).uncheck()
    assert not tab.locator("#plot-memory-2").is_visible()
    assert "tinyllama-shape" not in tab.locator("#table-summary tbody tr:visible td:nth-child(2)").all_text_contents()
    tab.locator("input[name=run]").nth(2).check()
    tab.locator("#plot-memory-2").wait_for(state="visible")
    # Plots that were hidden take the page's width when they come near.
    see_all(tab)
    until(tab, f"({CLIPPED})().length === 0")
    assert opened.said == []
    tab.context.close()


def test_a_link_to_a_section_leaves_its_heading_in_sight(browser: playwright.Browser, pages: dict[str, Path]) -> None:
    """Below the bar of backends and runs, however many lines that has."""
    tab = visit(browser, pages["several"], width=1000).tab
    heights = {}
    for key in ("memory", "pareto", "loading"):
        tab.locator(f"nav a[href='#{key}']").click()
        until(tab, f"document.getElementById('{key}').getBoundingClientRect().top < innerHeight")
        heading, bar = (tab.locator(part).bounding_box() for part in (f"#{key}", ".filters"))
        assert heading
        assert bar
        heights[key] = heading["y"] - (bar["y"] + bar["height"])
    assert all(0 <= height < 200 for height in heights.values()), heights
    tab.context.close()


def test_columns_sort_by_keyboard_with_missing_values_last(browser: playwright.Browser, pages: dict[str, Path]) -> None:
    tab = visit(browser, pages["one"]).tab
    heading = tab.locator("#table-summary thead th", has_text="peak memory")
    heading.locator("button").focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert rows(tab, "summary") == ["NF4", "AWQ", "GPTQ", "INT4", "FP16"]
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert rows(tab, "summary")[0] == "FP16"
    divergence = tab.locator("#table-summary thead th", has_text="KL")
    for _ in range(2):
        divergence.locator("button").click()
        assert rows(tab, "summary")[-1] == "FP16"
    assert heading.get_attribute("aria-sort") == "none"
    tab.context.close()


def test_hovering_shows_the_figures(one: playwright.Page) -> None:
    one.locator("#plot-memory-0").scroll_into_view_if_needed()
    box = one.locator("#plot-memory-0 .barlayer .point").first.bounding_box()
    assert box
    one.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    one.wait_for_selector("#plot-memory-0 .hoverlayer text")
    assert "FP16: 10.19 MiB" in "".join(one.locator("#plot-memory-0 .hoverlayer text").all_text_contents())


def test_without_scripts_tables_and_images_remain(browser: playwright.Browser, pages: dict[str, Path]) -> None:
    tab = visit(browser, pages["one"], java_script_enabled=False, width=390).tab
    assert tab.locator("#table-summary tbody tr").count() == 5
    images = tab.locator("img.still")
    assert images.count() == 8
    for image in images.all():
        assert image.is_visible()
        assert image.bounding_box()["height"] > 50  # type: ignore[index]
    assert not tab.locator(".filters").is_visible()
    tab.context.close()


def test_dark_and_paper_have_colours_of_their_own(browser: playwright.Browser, pages: dict[str, Path]) -> None:
    tab = visit(browser, pages["one"], color_scheme="dark").tab
    tab.locator("#plot-memory-0").scroll_into_view_if_needed()
    tab.wait_for_selector("#plot-memory-0 .ytick text")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('#plot-memory-0 .ytick text')).fill"
    assert (tab.evaluate(paper), tab.evaluate(ink)) == ("rgb(21, 23, 27)", "rgb(232, 234, 238)")
    tab.emulate_media(media="print")
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    assert tab.locator("img.still").first.is_visible()
    assert not tab.locator(".plot").first.is_visible()
    tab.context.close()
