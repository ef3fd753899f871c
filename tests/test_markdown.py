"""Against a CommonMark parser, with HTML, tables and bare addresses on."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from qbench.show.markdown import code, fenced, inline, preformatted
from tests.support.markdown import read

HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "a | b\n| c",
    "`x` ``y",
    "*a* _b_ **c** ~~d~~ # e",
    "&lt;b&gt; &#60;",
    "</pre><img src=x onerror=alert(1)>",
    "\\<b>\\",
    "- x\n\n# y\n---\nz: 1",
    "```\n<b>",
    "<!-- x",
    "# x",
    "1. x",
    "+ x",
    "---",
    "===",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_shown_and_nothing_else(text: str) -> None:
    shown = " ".join(text.split())
    found = read(f"before {inline(text)} after")
    assert found.tags == {"p"}
    assert found.text.strip() == f"before {shown} after"
    found = read(f"before\n{inline(text)}")
    assert found.tags == {"p"}, "nor at the beginning of a line"
    assert found.text.strip() == f"before\n{shown}"
    found = read(f"before {code(text)} after")
    assert found.tags == {"p", "code"}
    assert shown.strip("`") in found.text
    found = read(f"{fenced(text)}\n\nafter")
    assert found.tags == {"pre", "code", "p"}
    assert found.text.strip() == f"{text.rstrip()}\n\nafter"
    found = read(f"{preformatted(text)}\n\nafter")
    assert found.tags == {"pre", "p"}
    assert text.splitlines()[-1] in found.text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_table_stays_one(text: str) -> None:
    found = read(f"| a | b |\n|---|---|\n| {inline(text)} | x |")
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert found.text.split()[-1] == "x"


@pytest.mark.parametrize("text", ["https://example.org", "www.example.org", "me@example.org"])
def test_an_address_is_no_link(text: str) -> None:
    parser = MarkdownIt("gfm-like", {"linkify": False}).enable([])
    assert "<a" not in parser.render(inline(text))
    assert any(f"\\{character}" in inline(text) for character in ":.@")


def test_control_characters_are_spelt_out() -> None:
    assert "\x1b" not in inline("\x1b[2J") + code("\x1b[2J") + preformatted("\x1b[2J")
