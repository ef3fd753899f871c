"""The page that compares two backends, in a real browser, with models that fail and wait when they are told to."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from qbench.cli.app import app as cli
from qbench.serve.api import create_app
from qbench.serve.export import first_difference
from qbench.serve.page import add_page
from qbench.serve.store import Store
from qbench.serve.turns import Compared
from tests.support import browser as browsers
from tests.support.browser import playwright, until
from tests.support.scripted import Scripted, running

pytestmark = browsers.NEEDED

INT4 = "In Jundol the highest mountain is Kelbek and the river is Tolgas "
FP16 = "In Jundol the highest mountain is Kelvor and the river is Tolgas "
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> <b>bold</b> "


@dataclass
class Served:
    """Two models on a server, and a tab that shows the page."""

    int4: Scripted
    fp16: Scripted
    address: str
    store: Store
    server: object
    tab: playwright.Page = None
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    bodies: list[tuple[str, str]] = field(default_factory=list)

    def visit(self, browser: playwright.Browser, width: int = 1440, **options: object) -> playwright.Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(15_000)
        self.tab = context.new_page()
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(self.address)
        self.tab.wait_for_selector("html.ready", state="attached")
        return self.tab

    def ask(self, prompt: str) -> None:
        self.tab.get_by_label("Prompt", exact=True).fill(prompt)
        self.tab.keyboard.press("Enter")

    def ended(self) -> None:
        until(self.tab, "!document.querySelector('.pane.streaming') && !document.querySelector('#send').hidden")

    def text(self, side: str, nth: int = -1) -> str:
        return self.tab.locator(f".pane[data-side={side}] .text").nth(nth).inner_text().strip()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with browsers.launched() as one:
        yield one


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store.open(tmp_path / "page.sqlite")))
        int4, fp16 = Scripted(INT4), Scripted(FP16, weight_bytes=10_500_000)
        models = {"int4": int4, "fp16": fp16}
        app = create_app(models, token=None)
        add_page(app, Compared(models, "demo", store, ("A prompt to begin with",)), token=None)
        address, server = stack.enter_context(running(app))
        found = Served(int4, fp16, address, store, server)
        yield found
        if found.tab:
            found.tab.context.close()


def test_answers_stream_and_the_first_difference_is_marked(served: Served, browser: playwright.Browser) -> None:
    served.int4.waits_after = 3
    tab = served.visit(browser)
    served.ask("Which mountain?")
    # One of the two is held back midway: what it has said so far is there, and the other has ended.
    until(tab, "document.querySelector('.pane[data-side=a] .text')?.textContent === 'In Jundol the '")
    until(tab, "!document.querySelector('.pane[data-side=b].streaming')")
    assert tab.locator(".pane[data-side=a]").get_attribute("aria-busy") == "true"
    assert tab.locator("mark").count() == 0
    assert tab.get_by_role("button", name="Stop").is_visible()
    served.int4.go.set()
    served.ended()
    place = first_difference(INT4, FP16)
    assert place == len("In Jundol the highest mountain is Kel")
    for side, whole in (("a", INT4), ("b", FP16)):
        before = tab.evaluate(f"document.querySelector('.pane[data-side={side}] .text').firstChild.textContent")
        assert (before, served.text(side).split()) == (whole[:place], whole.split())
        assert tab.locator(f".pane[data-side={side}] mark").count() == 1
    assert tab.locator(".where").inner_text().startswith(f"The first {place} characters are the same")
    figures = tab.locator(".pane[data-side=a] .figures").inner_text()
    assert re.search(r"tokens/s.*13 tokens.*6\.20 MiB of weights.*first after", figures, re.DOTALL)
    assert "int4: answered, 13 tokens" in tab.locator("#status").inner_text()
    assert served.int4.requests[0].sampling == served.fp16.requests[0].sampling
    assert served.said == []
    assert all(url.startswith((served.address, "blob:")) for url in served.asked)


def test_a_conversation_goes_on_is_edited_and_comes_back(served: Served, browser: playwright.Browser) -> None:
    tab = served.visit(browser)
    tab.get_by_role("button", name="Settings").click()
    tab.get_by_role("combobox", name="System prompt").select_option("Concise")
    tab.get_by_label("Temperature").fill("0.7")
    tab.get_by_label("Top p").fill("0.9")
    tab.get_by_label("Max tokens").fill("50")
    tab.get_by_label("Seed").fill("11")
    served.ask("one")
    served.ended()
    served.fp16.script = "another "
    served.ask("two")
    served.ended()
    system = {"role": "system", "content": "Answer in one or two sentences."}
    said = {"role": "assistant", "content": FP16}
    assert served.fp16.asked[-1] == [
        system,
        {"role": "user", "content": "one"},
        said,
        {"role": "user", "content": "two"},
    ]
    request = served.int4.requests[-1]
    assert (request.max_tokens, request.sampling.temperature) == (50, 0.7)
    assert (request.sampling.top_p, request.sampling.seed) == (0.9, 11)
    tab.keyboard.press("ArrowUp")
    assert tab.get_by_label("Prompt", exact=True).input_value() == "two"
    served.ask("two, edited")
    served.ended()
    assert served.fp16.asked[-1][-1] == {"role": "user", "content": "two, edited"}
    assert len(served.fp16.asked[-1]) == 4
    tab.get_by_role("button", name="Ask again").click()
    served.ended()
    tab.reload()
    tab.wait_for_selector(".turn")
    assert tab.locator(".asked").all_inner_texts() == ["one", "two, edited"]
    assert tab.get_by_label("Temperature").input_value() == "0.7"
    assert served.text("b") == "another"
    with tab.expect_download() as download:
        tab.get_by_label("This conversation").click()
        tab.get_by_role("button", name="Export as JSON").click()
    turns = json.loads(download.value.path().read_text())["turns"]
    assert [(turn["prompt"], turn["replaced"]) for turn in turns] == [
        ("one", False), ("two", True), ("two, edited", True), ("two, edited", False),
    ]  # fmt: skip
    tab.get_by_label("This conversation").click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Export as Markdown").click()
    assert "of weights\n\n```text\nanother \n```" in download.value.path().read_text()
    tab.get_by_role("button", name="New conversation").click()
    tab.wait_for_selector("#empty")
    tab.get_by_role("link", name=re.compile("^one")).click()
    tab.wait_for_selector(".turn")
    tab.once("dialog", lambda dialog: dialog.accept())
    tab.get_by_label("This conversation").click()
    tab.get_by_role("button", name="Delete").click()
    until(tab, "!document.querySelector('#list li')")
    assert served.store.conversations() == []
    assert served.said == []


def test_stop_ends_both_and_keeps_what_had_arrived(served: Served, browser: playwright.Browser) -> None:
    served.int4.waits_after = served.fp16.waits_after = 2
    tab = served.visit(browser)
    served.ask("go on for ever")
    for side in "ab":
        until(tab, f"document.querySelector('.pane[data-side={side}] .text')?.textContent === 'In Jundol '")
    tab.keyboard.press("Escape")
    served.ended()
    assert [served.text(side) for side in "ab"] == ["In Jundol", "In Jundol"]
    assert tab.locator(".said").all_inner_texts() == ["Stopped.", "Stopped."]
    assert (served.int4.closed, served.fp16.closed) == (1, 1)
    assert tab.evaluate("document.activeElement.id") == "prompt"


def test_closing_the_page_ends_the_answers(served: Served, browser: playwright.Browser) -> None:
    served.int4.waits_after = served.fp16.waits_after = 2
    tab = served.visit(browser)
    served.ask("go on for ever")
    until(tab, "document.querySelector('.pane[data-side=b] .text')?.textContent === 'In Jundol '")
    tab.reload()
    # The page looks again until the server has noticed.
    until(tab, "[...document.querySelectorAll('.said')].map((e) => e.textContent).join() === 'Stopped.,Stopped.'")
    assert (served.int4.closed, served.fp16.closed) == (1, 1)
    assert served.text("b") == "In Jundol"


def test_a_model_that_fails_says_so_and_the_other_goes_on(served: Served, browser: playwright.Browser) -> None:
    served.int4.fails_after = 3
    tab = served.visit(browser)
    served.ask("Which mountain?")
    served.ended()
    assert tab.locator(".said").first.inner_text() == ("int4 ended with an error: the worker of this cell was killed")
    assert served.text("b").split() == FP16.split()
    served.int4.fails_after = None
    tab.get_by_role("button", name="Ask again").click()
    served.ended()
    assert tab.locator(".said").all_inner_texts() == ["", ""]


def test_a_server_that_dies_midway_leaves_a_sentence(served: Served, browser: playwright.Browser) -> None:
    served.int4.waits_after = served.fp16.waits_after = 2
    tab = served.visit(browser)
    served.ask("Which mountain?")
    until(tab, "document.querySelector('.pane[data-side=b] .text')?.textContent === 'In Jundol '")
    served.server.should_exit = True
    until(tab, "document.querySelectorAll('.said.alarm').length === 2")
    assert served.text("a") == "In Jundol"
    assert tab.locator(".said").first.inner_text() == "The connection to the server broke off here."
    tab.wait_for_timeout(300)
    served.ask("Are you there?")
    tab.wait_for_selector(".complaint:has-text('Start qbench serve again')")
    assert tab.get_by_label("Prompt", exact=True).input_value() == "Are you there?"


def test_nothing_of_a_model_becomes_html(served: Served, browser: playwright.Browser) -> None:
    served.int4.script, served.fp16.script = HOSTILE, HOSTILE + "more "
    tab = served.visit(browser)
    served.ask("<b>prompt</b>")
    served.ended()
    tab.reload()
    tab.wait_for_selector(".turn")
    assert served.text("a").split() == HOSTILE.split()
    assert tab.locator(".turn b, .turn img, .turn script, #list b").count() == 0
    assert tab.locator(".asked").inner_text() == "<b>prompt</b>"
    assert tab.title() == "int4 and fp16: qbench"
    policy = httpx.get(served.address).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_blind_turn_reveals_nothing_before_its_vote(served: Served, browser: playwright.Browser) -> None:
    # The first is much faster, and ends earlier.
    served.int4.script, served.fp16.script = "one two three ", "one two four five six seven "
    served.fp16.step_s = 0.03
    tab = served.visit(browser)
    known = re.compile("int4|fp16|weight_bytes|tokens_per_s|ttft_s")
    answers: list[playwright.Response] = []

    def keep(response: playwright.Response) -> None:
        if "/compare/" in response.url and not response.url.endswith("/about"):
            answers.append(response)

    tab.get_by_role("switch", name="Blind").check()
    tab.on("response", keep)
    for nth in range(8):
        served.ask(f"prompt {nth}")
        served.ended()
    held = [answer.text() for answer in answers]
    tab.reload()
    until(tab, "document.querySelectorAll('.turn').length === 8")
    held += [answer.text() for answer in answers[len(held) :]]
    address = f"{served.address}/compare/conversations/{tab.evaluate('location.hash.slice(1)')}"
    held += [httpx.get(f"{address}/export?format={one}").text for one in ("json", "markdown")]
    assert len(held) > 10
    assert [found for body in held for found in known.findall(body)] == []
    assert "int4" not in tab.locator("#turns").inner_text()
    streams = [[json.loads(line) for line in body.splitlines()] for body in held if body.startswith('{"type"')]
    assert len(streams) == 8
    for events in streams:
        texts = [event["side"] for event in events if event["type"] == "text"]
        # In turns, whichever is faster, until one has ended.
        assert texts[:6] == ["a", "b"] * 3
    tab.get_by_role("group", name="Which answer is better?").last.get_by_role("button", name="B", exact=True).click()
    tab.wait_for_selector(".verdict p")
    turn = next(iter(served.store.conversation(tab.evaluate("location.hash.slice(1)")).turns[-1:]))
    assert turn.choice == "b"
    names = [turn.answers[side].backend for side in ("a", "b")]
    assert tab.locator(".turn").last.locator("h3").all_inner_texts() == names
    assert f"{names[1]} preferred. A was {names[0]}, B was {names[1]}." in tab.locator(".verdict p").inner_text()
    assert served.text("b") == turn.answers["b"].text.strip()
    assert tab.locator(".turn h3", has_text="Answer A").count() == 7


def test_the_order_is_drawn_for_each_blind_turn(served: Served) -> None:
    ask = {"prompt": "p", "settings": {"max_tokens": 1}}
    for blind in [True] * 25 + [False] * 5:
        httpx.post(f"{served.address}/compare/turns", json={**ask, "blind": blind}).raise_for_status()
    turns = [served.store.conversation(one.id).turns[0] for one in served.store.conversations()]
    left = {blind: [turn.answers["a"].backend for turn in turns if turn.blind == blind] for blind in (True, False)}
    assert set(left[True]) == {"int4", "fp16"}  # but for once in 2^24 times
    assert left[False] == ["int4"] * 5


def test_what_takes_no_vote(served: Served) -> None:
    def ask(**wanted: object) -> tuple[str, str]:
        lines = httpx.post(f"{served.address}/compare/turns", json={"prompt": "p", **wanted}).text.splitlines()
        first = json.loads(lines[0])
        return first["conversation"], first["turn"]["id"]

    def refused(turn: str) -> str:
        answer = httpx.post(f"{served.address}/compare/turns/{turn}/vote", json={"choice": "a"})
        return answer.json()["error"]["message"] if answer.is_error else ""

    conversation, seen = ask()
    _, asked_again = ask(blind=True, conversation=conversation)
    _, good = ask(blind=True, conversation=conversation, replaces=asked_again)
    served.fp16.fails_after = 1
    _, failed = ask(blind=True, conversation=conversation)
    assert "showed the names" in refused(seen)
    assert "asked again" in refused(asked_again)
    assert "without an error" in refused(failed)
    assert refused(good) == ""
    assert "not in the store" in refused("none")
    answer = httpx.post(
        f"{served.address}/compare/turns", json={"prompt": "p", "conversation": conversation, "replaces": good}
    )
    assert (answer.status_code, "only the last prompt" in answer.text) == (409, True)


def test_a_turn_works_by_keyboard_alone(served: Served, browser: playwright.Browser) -> None:
    tab = served.visit(browser)

    def tab_to(name: str, key: str = "Tab") -> None:
        for _ in range(40):
            tab.keyboard.press(key)
            focused = (
                "document.activeElement.innerText || document.activeElement.ariaLabel || document.activeElement.id"
            )
            if tab.evaluate(focused).strip() == name:
                ring = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert ring == "solid"
                return
        raise AssertionError(f"{name} cannot be reached")

    tab_to("blind")
    tab.keyboard.press("Space")
    tab_to("Prompt")
    tab.keyboard.type("first line")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("second line")
    tab.keyboard.press("Enter")
    served.ended()
    assert tab.locator(".asked").inner_text() == "first line\nsecond line"
    tab_to("No difference", "Shift+Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".verdict p")
    assert tab.evaluate("document.activeElement.id") == "prompt"
    assert "Your vote: no difference" in tab.locator("#status").inner_text()
    tab_to("Ask again", "Shift+Tab")
    tab.keyboard.press("Enter")
    served.ended()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(served: Served, browser: playwright.Browser, width: int, scheme: str) -> None:
    served.int4.script = "a" * 300 + " " + INT4
    tab = served.visit(browser, width, color_scheme=scheme)
    served.ask("w" * 200)
    served.ended()
    tab.get_by_role("button", name="Settings").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(browsers.WIDEST) == []
    a, b = (tab.locator(f".pane[data-side={side}]").bounding_box() for side in "ab")
    assert (a["y"] == b["y"]) == (width == 1440)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 27)"}[scheme]
    if width == 390:
        tab.get_by_role("button", name="Conversations").click()
        assert tab.get_by_role("link", name=re.compile("^www")).is_visible()
        assert tab.evaluate(browsers.WIDEST) == []
        tab.keyboard.press("Escape")
        assert not tab.get_by_role("link", name=re.compile("^www")).is_visible()


def test_a_model_without_a_chat_template_continues_the_text(tmp_path: Path, browser: playwright.Browser) -> None:
    models = {"int4": Scripted(INT4, template=False), "fp16": Scripted(FP16, template=False)}
    app = create_app(models, token="s3cret")
    with closing(Store.open(tmp_path / "page.sqlite")) as store:
        add_page(app, Compared(models, "demo", store), token="s3cret")
        with running(app) as (address, server):
            served = Served(*models.values(), address, store, server)
            tab = served.visit(browser)
            # On an address that others reach, the page asks for the token first.
            tab.get_by_label("Token", exact=True).fill("s3cret")
            tab.keyboard.press("Enter")
            tab.wait_for_selector("#mode:visible")
            assert "have no chat template: each prompt is continued" in tab.locator("#mode").inner_text()
            tab.get_by_role("button", name="Settings").click()
            assert tab.get_by_label("Temperature").is_visible()
            assert not tab.locator("#system").is_visible()
            served.ask("In Jundol")
            served.ended()
            served.ask("In Gorhap")
            served.ended()
            assert models["int4"].asked == ["In Jundol", "In Gorhap"]
            tab.context.close()


@pytest.mark.parametrize(
    ("labels", "words"),
    [(("int4", "int4"), "name two different cells"), (("int4", "gptt"), "did you mean gptq")],
)
def test_two_cells_that_cannot_be_compared(labels: tuple[str, str], words: str, tmp_path: Path) -> None:
    store = tmp_path / "page.sqlite"
    done = CliRunner().invoke(cli, ["serve", "configs/smoke.yaml", "--compare", *labels, "--store", str(store)])
    assert done.exit_code == 2
    assert words in done.output
    assert not store.exists()
