"""The page in headless Chromium: streaming, sliders, popover, keyboard, widths, contrast, and texts that could be markup."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

gradio = pytest.importorskip("gradio", reason="needs the extra ui-test: pip install '.[ui-test]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra ui-test: pip install '.[ui-test]'")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from support.browser import chromium, serious_faults  # noqa: E402
from support.gates import gate_at  # noqa: E402
from support.tiny import make_llama  # noqa: E402
from tempertilt.data.examples import ExampleConfig, encode_question  # noqa: E402
from tempertilt.guidance.gate import Gates  # noqa: E402
from tempertilt.guidance.head import GuidanceHead  # noqa: E402
from tempertilt.guidance.tilt import TiltConfig  # noqa: E402
from tempertilt.models.t3 import T3ForCausalLM  # noqa: E402
from tempertilt.playground import app, page  # noqa: E402
from tempertilt.playground.records import ReportRecord  # noqa: E402
from tempertilt.playground.trace import Tracer  # noqa: E402
from tempertilt.serving.sockets import listen  # noqa: E402

pytestmark = pytest.mark.integration

HOSTILE = [
    "<img/src=x/onerror=window.pwned=1>", "<script>window.pwned=1</script>", "${window.pwned=1}", "{{value}}", "</div></section>",
    '"onfocus="window.pwned=1"', "&lt;b&gt;", "`${1}`", "{{#each", "\\u003cb\\u003e", "'",
]  # fmt: skip
RECORDS = [ReportRecord("forget", "who is w5 ?", "w5 is <b>w9</b>"), ReportRecord("retain", "what does w8 do", "w8 does w3")]
LENGTH = 96
DONE = '[aria-busy="false"]'


@pytest.fixture(scope="module")
def playground() -> app.Playground:
    """A random model whose every token is a word that would do something as HTML, script or template, or a plain word."""
    words = ["[UNK]", "[END]", *HOSTILE, *(f"w{i}" for i in range(50)), "who", "what", "is", "does", "do", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]", pad_token="[END]")
    llama = make_llama(vocab_size=len(words), eos_token_id=1, bos_token_id=1, pad_token_id=1)
    with torch.no_grad():
        llama.lm_head.weight[:2] = 0.0  # seldom the likeliest
    head = GuidanceHead(32, 4, torch.arange(2, len(words) - 3))
    torch.nn.init.normal_(head.B, generator=torch.Generator().manual_seed(5))
    asked = torch.tensor([encode_question(RECORDS[0].question, fast, ExampleConfig())])
    with torch.no_grad():
        states = llama(input_ids=asked, output_hidden_states=True).hidden_states[1][0]
    state = states[asked[0].tolist().index(words.index("w5"))]
    gates = Gates(1, gate_at(state[None], threshold=0.9))
    model = T3ForCausalLM.from_base(llama, head, gates=gates, temperature=1.5, guidance_scale=0.8, pooling="last")
    return app.Playground(model, fast, ExampleConfig(), RECORDS, "<i>tiny</i>", "adapter")


@pytest.fixture(scope="module")
def address(playground: app.Playground) -> Iterator[str]:
    import uvicorn

    torch.set_num_threads(1)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app.web_app(playground), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


class Visit:
    """A tab, what it asked for, and what it complained of."""

    def __init__(self, browser: Any, address: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.finished()

    def finished(self) -> None:
        for column in ("base", "guided"):
            self.page.wait_for_selector(f".pg-{column}{DONE}", timeout=60_000)

    def tokens(self, column: str) -> list[dict[str, Any]]:
        script = "all => all.map(token => ({text: token.textContent, ...JSON.parse(token.dataset.step)}))"
        found: list[dict[str, Any]] = self.page.locator(f".pg-{column} .pg-tok").evaluate_all(script)
        return found

    def chosen(self, column: str) -> list[str]:
        return [next(row["text"] for row in token["rows"] if row["chosen"]) for token in self.tokens(column)]

    def ask(self, prompt: str) -> None:
        self.page.locator("#pg-prompt textarea").fill(prompt)
        before = self.page.locator("#pg-gate").inner_text()
        self.page.locator("#pg-ask").click()
        self.page.wait_for_function("before => document.querySelector('#pg-gate').innerText !== before", arg=before)
        self.finished()


@pytest.fixture()
def visit(browser: Any, address: str) -> Iterator[Visit]:
    found = Visit(browser, address)
    yield found
    found.page.context.close()


def expected(playground: app.Playground, prompt: str, tilt: TiltConfig, follows: Any) -> list[str]:
    tracer = Tracer(playground.model, playground.tokenizer)
    steps = tracer.steps(playground.encode(prompt, False), tilt, follows=follows, max_new_tokens=LENGTH)
    return [page.visible(step.chosen.text) for step in steps]


def slide(visit: Visit, name: str, value: str) -> None:
    box = visit.page.locator(f"#pg-{name} input[type=number]")
    box.fill(value)
    box.press("Tab")


def test_both_columns_are_what_the_model_says(visit: Visit, playground: app.Playground, address: str) -> None:
    question = RECORDS[0].question
    assert visit.page.locator("#pg-prompt textarea").input_value() == question
    assert visit.chosen("base") == expected(playground, question, TiltConfig(), "base")
    assert visit.chosen("guided") == expected(playground, question, TiltConfig(1.5, 0.8), "guided")
    assert visit.chosen("base") != visit.chosen("guided")
    assert "Open." in visit.page.locator("#pg-gate").inner_text()
    assert visit.page.locator(".pg-read.over").count() >= 1
    assert "still hold the knowledge" in visit.page.locator(".pg-honest").inner_text()
    elsewhere = [url for url in visit.asked if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere and not visit.complaints


def test_texts_of_model_and_records_are_inert(visit: Visit, address: str) -> None:
    said = "".join(token["text"] for column in ("base", "guided") for token in visit.tokens(column))
    assert sum(word in said for word in HOSTILE) >= 4
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.locator(".pg-answer :is(img, script, b, div, section)").count() == 0
    assert visit.page.locator("#pg-truth").inner_text().endswith("w5 is <b>w9</b>")
    assert "<i>tiny</i>" in visit.page.locator(".pg-header").inner_text()
    visit.ask("w5 " + " ".join(HOSTILE))
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.locator(".pg-prompt :is(img, script, b)").count() == 0
    for i in range(6):
        visit.page.locator(".pg-guided .pg-tok").nth(i).hover()
        assert visit.page.locator("#pg-pop :is(img, script)").count() == 0


def test_answers_grow_and_stop(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tracer._next

    def slow(*args: Any) -> Any:
        time.sleep(0.02)
        return original(*args)

    monkeypatch.setattr(Tracer, "_next", slow)
    growing = visit.page.locator('.pg-guided[aria-busy="true"] .pg-tok')
    count = visit.page.locator(".pg-guided .pg-tok").count
    visit.page.locator("#pg-prompt textarea").fill("what is w5 ?")
    visit.page.locator("#pg-ask").click()
    growing.nth(4).wait_for()
    first = count()
    growing.nth(first + 10).wait_for()
    assert 4 < first < count() < LENGTH
    visit.page.locator("#pg-stop").click()
    visit.finished()
    assert count() < LENGTH
    playwright.expect(visit.page.locator(".pg-guided .pg-foot").first).to_contain_text("cut there")


def test_sliders_act_at_once(visit: Visit, playground: app.Playground) -> None:
    question, base = RECORDS[0].question, visit.chosen("base")
    wanted = expected(playground, question, TiltConfig(1.5, 2.5), "guided")  # before the page's model is at work again
    slide(visit, "scale", "2.5")
    visit.page.wait_for_function("n => document.querySelectorAll('.pg-guided .pg-tok').length === n", arg=len(wanted))
    playwright.expect(visit.page.locator(".pg-base .pg-foot b").nth(1)).not_to_have_text("")
    deadline = time.monotonic() + 20
    while visit.chosen("guided") != wanted and time.monotonic() < deadline:
        visit.page.wait_for_timeout(50)
    assert visit.chosen("guided") == wanted and visit.chosen("base") == base
    before = visit.tokens("base")[3]["rows"]
    visit.page.locator("#pg-temperature input[type=range]").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.wait_for_function(
        "t => JSON.parse(document.querySelector('.pg-base .pg-tok').dataset.step).temperature === t", arg="1.55"
    )
    after = visit.tokens("base")[3]["rows"]
    assert [row["shares"][0] for row in before if row["chosen"]] == [row["shares"][0] for row in after if row["chosen"]]
    visit.page.get_by_role("button", name="Neither").click()
    visit.page.wait_for_function(
        "() => ['base', 'guided'].map(column => [...document.querySelectorAll(`.pg-${column}[aria-busy=false] .pg-tok`)]"
        ".map(token => token.textContent).join()).every((text, i, all) => text && text === all[0])"
    )
    assert visit.chosen("guided") == base and visit.page.locator(".pg-tok.turned").count() == 0


def test_hovering_and_the_keyboard_show_the_alternatives(visit: Visit) -> None:
    pop, column = visit.page.locator("#pg-pop"), visit.page.locator(".pg-guided .pg-tok")
    steps = visit.tokens("guided")
    column.nth(2).hover()
    playwright.expect(pop).to_be_visible()
    rows = pop.locator("tbody tr")
    assert rows.count() == len(steps[2]["rows"])
    for i, row in enumerate(steps[2]["rows"]):
        cells = rows.nth(i).locator("th, td").all_inner_texts()
        shares = [share for share, _ in row["shares"]]
        assert [cell.strip() for cell in cells] == [("▶ " if row["chosen"] else "") + row["text"], *shares, row["retain"] or "–"]
    visit.page.mouse.move(5, 5)
    playwright.expect(pop).to_be_hidden()

    visit.page.locator("#pg-scale input[type=range]").focus()
    for _ in range(12):  # to the answers, past the buttons between
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.matches('.pg-base .pg-tok')"):
            break
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        visit.page.keyboard.press(key)
    playwright.expect(pop).to_be_visible()
    assert visit.page.evaluate("document.activeElement.dataset.i") == "1"
    assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    visit.page.keyboard.press("Escape")
    playwright.expect(pop).to_be_hidden()
    visit.page.keyboard.press("End")
    assert visit.page.evaluate("Number(document.activeElement.dataset.i)") == len(visit.tokens("base")) - 1
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.matches('.pg-guided .pg-tok')")


def test_a_pinned_token_follows_the_sliders(visit: Visit) -> None:
    pop, token = visit.page.locator("#pg-pop"), visit.page.locator(".pg-base .pg-tok").nth(1)
    token.focus()
    visit.page.keyboard.press("Enter")
    playwright.expect(pop).to_contain_text("close (Esc)")
    playwright.expect(pop).to_contain_text("divided by 1.50")
    slide(visit, "temperature", "3")
    playwright.expect(pop).to_contain_text("divided by 3.00")
    assert token.get_attribute("aria-selected") == "true"
    visit.page.keyboard.press("Escape")
    playwright.expect(pop).to_be_hidden()


def test_records_errors_and_a_closed_gate(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Retain: what does w8 do").click()
    playwright.expect(visit.page.locator("#pg-truth")).to_contain_text("w8 does w3")
    playwright.expect(visit.page.locator("#pg-gate")).to_contain_text("Closed.")
    visit.finished()
    visit.page.locator("#pg-prompt textarea").fill("  ")
    visit.page.locator("#pg-ask").click()
    playwright.expect(visit.page.get_by_role("alert")).to_contain_text("there is no prompt")


CONTRAST = """() => {
  const parse = (text) => {
    const numbers = (text.match(/[\\d.]+/g) || []).map(Number), scale = text.startsWith('color(') ? 1 : 255;
    return [...numbers.slice(0, 3).map((x) => x / scale), numbers.length > 3 ? numbers[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, k) =>
    sum + w * (c[k] <= 0.04045 ? c[k] / 12.92 : ((c[k] + 0.055) / 1.055) ** 2.4), 0);
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1, 1]);
  };
  const found = [];
  const shown = '[class^="pg-"], [class*=" pg-"], [class^="pg-"] *, label, button, .info-text';
  for (const element of document.querySelectorAll(shown)) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const behind = background(element), [a, b] = [light(over(parse(getComputedStyle(element).color), behind)), light(behind)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, element.className, element.textContent.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_widths_and_contrast(browser: Any, address: str, width: int, height: int, scheme: str) -> None:
    visit = Visit(browser, address, width=width, height=height, scheme=scheme)
    try:
        visit.page.locator(".pg-guided .pg-tok").nth(1).click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        found = visit.page.evaluate(CONTRAST)
        assert len(found) > 100
        assert min(ratio for ratio, *_ in found) >= 4.5, sorted(found)[:5]
        assert serious_faults(visit.page) == []
        assert ("dark" in (visit.page.locator("body").get_attribute("class") or "")) == (scheme == "dark")
        boxes = [visit.page.locator(name).bounding_box() for name in (".pg-base", ".pg-guided", "#pg-pop")]
        for box in boxes:
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
        beside = boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"] - 1
        assert beside == (width > 640)
        visit.page.locator(".pg-guided .pg-foot").last.scroll_into_view_if_needed()
        controls = visit.page.locator(".pg-controls").bounding_box()
        assert 0 <= controls["y"] < height  # the sliders stay in sight
    finally:
        visit.page.context.close()


def test_no_upload_and_no_other_host(address: str) -> None:
    import httpx

    assert httpx.post(f"{address}/gradio_api/upload", files={"files": b"x"}).status_code == 403
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(address).status_code == 200
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
