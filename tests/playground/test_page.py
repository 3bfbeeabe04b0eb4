"""What the page shows, without a browser: texts that could be markup, numbers, tokens and their steps, the gate."""

from __future__ import annotations

import html
import json
from html.parser import HTMLParser
from typing import Any

import pytest

from tempertilt.guidance.tilt import TiltConfig
from tempertilt.playground import page
from tempertilt.playground.records import ReportRecord
from tempertilt.playground.runs import Answer, Request, View
from tempertilt.playground.trace import Candidate, PromptToken, Step

HOSTILE = "<img src=x onerror=\"a()\"> ${b()} {{c}} `d` \\e 'f' </span><script>g()</script>"
TILT = TiltConfig(2.0, 1.5)


def step(text: str, log_odds: float | None = 0.0, gate: float = 1.0, *, other: float = 0.1, ends: bool = False) -> Step:
    chosen = Candidate(7, text, 0.5, 0.4, 0.25, log_odds, None if log_odds is None else 1.5 * log_odds)
    return Step(chosen, (chosen, Candidate(8, HOSTILE, 0.4, 0.4, other, None, None)), gate, 1 + gate, ends)


def view(steps: list[Step], prompt: str = "Who?", **options: Any) -> View:
    read = options.pop("read", [PromptToken(prompt, False, None, None)])
    answers = {name: Answer(steps, True) for name in ("base", "guided")}
    return View(Request(prompt, TILT), read, answers)  # type: ignore[arg-type]


class Elements(HTMLParser):
    """The elements, attributes and text of some HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


@pytest.mark.parametrize(
    "text",
    [
        page.answer_html("guided", view([step(HOSTILE)])),
        page.prompt_html(view([], HOSTILE), None),
        page.truth_html(ReportRecord(HOSTILE, HOSTILE, HOSTILE)),
        page.error_html(HOSTILE),
        page.header_html(HOSTILE, HOSTILE),
    ],
)
def test_no_text_is_markup_or_a_template(text: str) -> None:
    found = Elements(text)
    assert not {tag for tag, _ in found.elements} & {"img", "script"}
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert not set("${}`\\") & set(text)
    assert HOSTILE in found.text


def test_a_token_carries_its_step() -> None:
    found = Elements(
        page.answer_html("base", view([step(" sea", -2.0, other=0.6), step(HOSTILE, None), step("!", 3.0, ends=True)]))
    )
    first, second, last = found.of("pg-tok")
    assert "forget" in str(first["class"]).split() and "turned" in str(first["class"]).split()
    assert "none" in str(second["class"]).split() and "retain-strong" in str(last["class"]).split()
    assert [token["tabindex"] for token in (first, second, last)] == ["0", "-1", "-1"]
    assert first["aria-label"] == "␣sea: P retain 0.12, base 50 %, unlearned 25 %"
    data = json.loads(str(first["data-step"]))
    assert data["retain"] == "0.119" and data["log_odds"] == "−2.00" and data["temperature"] == "2.00"
    assert data["weight"] == "−3.00" and data["gate"] == 1.0
    assert [row["text"] for row in data["rows"]] == ["␣sea", page.visible(HOSTILE)]
    assert data["rows"][0]["shares"] == [["50 %", 50.0], ["40 %", 40.0], ["25 %", 25.0]] and data["rows"][0]["chosen"]
    assert json.loads(str(second["data-step"]))["weight"] is None
    assert "3 tokens, ended by the model" in found.text and "end !" in found.text


def test_where_the_gate_is_closed_the_shading_says_so() -> None:
    read = [PromptToken("Who?", False, 0.1, 0.0)]
    text = page.answer_html("guided", view([step("a", 2.0, 0.0), step("b", 2.0, 0.5), step("c", 2.0, 1.0)], read=read))
    closed = ["closed" in str(token["class"]).split() for token in Elements(text).of("pg-tok")]
    assert closed == [True, False, False]
    assert text.count("gate opens") == 1 and text.index("gate opens") < text.index(">b<")
    half = json.loads(str(Elements(text).of("pg-tok")[1]["data-step"]))
    assert half["temperature"] == "1.50"


def test_the_likelihood_of_the_column_is_shown() -> None:
    text = Elements(page.answer_html("base", view([step("a"), step("b")]))).text
    assert "This text, per token: base 50 %, unlearned 25 %" in text
    assert "per token" not in page.answer_html("base", view([]))


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (1.0, "100 %"),
        (0.2549, "25 %"),
        (0.0999, "10 %"),
        (0.05, "5.0 %"),
        (0.0021, "0.21 %"),
        (3e-5, "10⁻⁵"),
        (2e-13, "10⁻¹³"),
        (0.0, "0"),
    ],
)
def test_probabilities_for_reading(probability: float, text: str) -> None:
    assert page.share(probability) == text


def test_the_gate_says_what_it_does() -> None:
    closed = [PromptToken(" a", False, 0.2, 0.0), PromptToken(" <b>", False, 0.55, 0.0)]
    text = Elements(page.prompt_html(view([], read=closed), 0.6)).text
    assert "Closed. The highest evidence is 0.55 at <b> (threshold 0.60)" in text
    nothing = Elements(page.prompt_html(view([], read=[PromptToken("a", False, -0.1, 0.0)]), 0.6)).text
    assert "The highest evidence is 0.00 (threshold" in nothing
    opened = [*closed, PromptToken(" Basil", False, 0.65, 0.5), PromptToken("c", False, 0.9, 1.0)]
    shown = Elements(page.prompt_html(view([], " a <b> Basilc", read=opened), 0.6))
    assert "Open. It opens at Basil (evidence 0.65, threshold 0.60)" in shown.text and len(shown.of("over")) == 2
    assert "no gate" in page.prompt_html(view([]), None)


def test_a_gate_that_a_turn_closed_is_closed() -> None:
    read = [PromptToken(" Basil", False, 0.8, 1.0), PromptToken("user", True, 0.1, 0.0), PromptToken(" Hi", False, 0.2, 0.0)]
    text = Elements(page.prompt_html(view([], read=read), 0.6)).text
    assert "Closed. It opened at Basil (evidence 0.80, threshold 0.60) and has closed since" in text and "Open." not in text


def test_a_gate_that_opens_again_is_said_to_open_where_it_did_so_last() -> None:
    read = [PromptToken(text, False, 0.8, gate) for text, gate in ((" Ann", 1.0), (" user", 0.0), (" Bo", 1.0), (" Cy", 1.0))]
    assert "Open. It opens at Bo (evidence 0.80, threshold 0.60)" in Elements(page.prompt_html(view([], read=read), 0.6)).text


def test_a_gate_that_the_answer_opened_shows_no_evidence_of_the_question() -> None:
    read = [PromptToken("a", False, 0.7, 0.0), PromptToken(" b", False, 0.2, 1.0)]
    text = Elements(page.prompt_html(view([], read=read), 0.9)).text
    assert "Open. It opens at b (the answer came near the records): from there on" in text and "threshold" not in text


def test_tokens_around_the_question_are_counted_unless_one_opens_the_gate() -> None:
    read = [PromptToken("<s>", True, 0.1, 0.0), PromptToken("Who?", False, 0.2, 0.0), PromptToken("</s>", True, 0.1, 0.0)]
    shown = Elements(page.prompt_html(view([], read=read), 0.6))
    assert len(shown.of("pg-read")) == 1 and "and 2 tokens of the chat template" in shown.text
    read[0] = PromptToken("Basil", False, 0.7, 1.0)
    shown = Elements(page.prompt_html(view([], read=read), 0.6))
    assert len(shown.of("pg-read")) == 3 and "chat template" not in shown.text


def test_the_question_is_found_in_what_is_read() -> None:
    pieces = ["<s>", "user", "\n", "Who", " is", " it", "?", "</s>"]
    assert page.question_span(pieces, "Who is it? ") == (3, 7)
    assert page.question_span(pieces, "nothing of it") == (0, 8)
    assert page.question_span(pieces, " ") == (0, 8)


def test_nothing_on_the_page_is_fetched_from_elsewhere() -> None:
    parts = [
        page.asset("page.css"),
        page.asset("page.js"),
        page.header_html("a", "b"),
        page.method_html(True),
        page.legend_html(True),
    ]
    assert not any(part in "".join(parts) for part in ("http:", "https:", "@import", "url("))
    assert "still hold the knowledge" in html.unescape(parts[2])
