"""What the page shows, without a browser: texts that could be markup, numbers, runs, records, and the command's errors."""

from __future__ import annotations

import asyncio
import builtins
import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from tempertilt.cli import main
from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.playground import app, page
from tempertilt.playground.records import ReportRecord, report_records
from tempertilt.playground.runs import Answer, Request, Runs, View
from tempertilt.playground.trace import Candidate, PromptToken, Step, Tracer
from tempertilt.serving.sockets import LOOPBACK, listen

HOSTILE = "<img src=x onerror=\"a()\"> ${b()} {{c}} `d` \\e 'f' </span><script>g()</script>"
TILT = TiltConfig(2.0, 1.5)


def step(text: str, log_odds: float | None = 0.0, openness: float = 1.0, **options: Any) -> Step:
    chosen = Candidate(7, text, 0.5, 0.4, 0.25, log_odds)
    other = Candidate(8, HOSTILE, 0.4, 0.4, options.pop("other", 0.1), None)
    return Step(chosen, (chosen, other), openness, options.pop("ends", False))


def view(steps: list[Step], prompt: str = "Who?", **options: Any) -> View:
    read = options.pop("read", [PromptToken(prompt, False, None, None)])
    answers = {law: Answer(steps, True) for law in ("base", "tilted")}
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
        page.answer_html("tilted", view([step(HOSTILE)])),
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
    expected = 1.5 * float(torch.log(torch.sigmoid(torch.tensor(-2.0))) + torch.log(torch.tensor(2.0)))
    assert data["weight"] == f"−{abs(expected):.2f}"
    assert [row["text"] for row in data["rows"]] == ["␣sea", page.visible(HOSTILE)]
    assert data["rows"][0]["laws"] == [["50 %", 50.0], ["40 %", 40.0], ["25 %", 25.0]] and data["rows"][0]["chosen"]
    assert json.loads(str(second["data-step"]))["weight"] is None
    assert "3 tokens, ended by the model" in found.text and "end !" in found.text


def test_where_the_gate_is_shut_the_shading_says_so() -> None:
    read = [PromptToken("Who?", False, 0.1, 0.0)]
    text = page.answer_html("tilted", view([step("a", 2.0, 0.0), step("b", 2.0, 0.5), step("c", 2.0, 1.0)], read=read))
    shut = ["shut" in str(token["class"]).split() for token in Elements(text).of("pg-tok")]
    assert shut == [True, False, False]
    assert text.count("gate opens") == 1 and text.index("gate opens") < text.index(">b<")
    half = json.loads(str(Elements(text).of("pg-tok")[1]["data-step"]))
    assert half["temperature"] == "1.50"


def test_the_likelihood_of_the_column_is_a_geometric_mean() -> None:
    steps = [step("a"), Step(Candidate(1, "b", 0.125, 0.1, 0.01, None), (), 1.0, False)]
    assert page.mean_probability(steps, "base") == pytest.approx(0.25)
    assert page.mean_probability(steps, "tilted") == pytest.approx(0.05)


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


def test_the_gate_sentence() -> None:
    from tempertilt.guidance.gate import EvidenceGate, Whitening

    whitening = Whitening(torch.zeros(4), torch.eye(4)[:1], torch.zeros(1))
    gate = EvidenceGate(whitening, torch.eye(4)[:1], torch.zeros(1), layer=1, threshold=0.6, width=0.1)
    shut = [PromptToken(" a", False, 0.2, 0.0), PromptToken(" <b>", False, 0.55, 0.0)]
    assert "Shut." in page.gate_sentence(shut, gate) and "0.55" in page.gate_sentence(shut, gate)
    opened = [*shut, PromptToken(" Basil", False, 0.65, 0.5), PromptToken("c", False, 0.9, 1.0)]
    assert "opens at <q>Basil</q> (evidence 0.65" in page.gate_sentence(opened, gate)
    assert "no gate" in page.gate_sentence(shut, None)
    marked = Elements(page.prompt_html(view([], " a <b> Basilc", read=opened), gate)).of("over")
    assert len(marked) == 2


def test_the_question_is_found_in_what_is_read() -> None:
    pieces = ["<s>", "user", "\n", "Who", " is", " it", "?", "</s>"]
    assert page.question_span(pieces, "Who is it? ") == (3, 7)
    assert page.question_span(pieces, "nothing of it") == (0, 8)
    assert page.question_span(pieces, " ") == (0, 8)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def runs(llama: Any, tokenizer: Any) -> Runs:
    head = GuidanceHead(32, 4, torch.arange(3, 200))
    torch.nn.init.normal_(head.B, generator=torch.Generator().manual_seed(5))
    model = T3ForCausalLM.from_base(llama, head)
    return Runs(Tracer(model, tokenizer), lambda prompt, raw: list(tokenizer(prompt if raw else f"Question: {prompt}").input_ids))


def tokens(answer: Answer) -> list[int]:
    return [each.chosen.token_id for each in answer.steps]


def test_both_answers_grow_step_by_step(runs: Runs) -> None:
    request = Request("Who?", TILT, max_new_tokens=9)
    lengths = []
    for last in runs.play("tab", request):
        lengths.append([len(answer.steps) for answer in last.answers.values()])
    ids = runs._encode("Who?", False)
    for law, answer in last.answers.items():
        alone = list(runs.tracer.steps(ids, TILT, law=law, max_new_tokens=9))
        assert answer.done and tokens(answer) == [each.chosen.token_id for each in alone]
    assert lengths[:3] == [[1, 1], [2, 2], [3, 3]]


def test_a_newer_run_of_the_tab_ends_the_older_one(runs: Runs) -> None:
    old = runs.play("tab", Request("Who?", TILT, 9))
    elsewhere = runs.play("another", Request("Who?", TILT, 9))
    next(old), next(elsewhere)
    list(runs.play("tab", Request("Who?", TiltConfig(1.0, 0.0), 9)))
    assert next(old, None) is None
    assert next(elsewhere, None) is not None
    before = len(next(elsewhere).answers["base"].steps)
    runs.stop("another")
    [last] = elsewhere
    assert [answer.done for answer in last.answers.values()] == [True, True]
    assert len(last.answers["base"].steps) == before < 9
    [*_, whole] = runs.play("another", Request("Who?", TILT, 9))
    assert len(whole.answers["base"].steps) == 9


def test_moved_sliders_check_the_last_answers_in_two_passes(runs: Runs) -> None:
    [*_, before] = runs.play("tab", Request("Who?", TILT, 12))
    passes: list[int] = []
    original = runs.tracer.model.next_terms
    runs.tracer.model.next_terms = lambda ids, *rest: passes.append(1) or original(ids, *rest)  # type: ignore[method-assign,func-returns-value]
    [*_, same] = runs.play("tab", Request("Who?", TILT, 12))
    assert len(passes) == 2
    passes.clear()
    [*_, moved] = runs.play("tab", Request("Who?", TiltConfig(1.0, 0.0), 12))
    assert tokens(same.answers["tilted"]) == tokens(before.answers["tilted"]) != tokens(before.answers["base"])
    assert tokens(moved.answers["base"]) == tokens(moved.answers["tilted"]) == tokens(before.answers["base"])
    [*_, other] = runs.play("tab", Request("Where?", TILT, 12))
    assert tokens(other.answers["base"]) != tokens(before.answers["base"])


# --- records, options, command ---------------------------------------------------------------------------------------


def test_records_of_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert report_records(tmp_path) == [] == report_records("org/name")
    answers = [{"set": "forget", "source": "f:1", "question": "Who?", "truth": "She.", "before": "", "after": ""}]
    (tmp_path / "unlearn.json").write_text(json.dumps({"answers": [*answers, answers[0] | {"question": " "}]}))
    assert report_records(tmp_path) == [ReportRecord("forget", "Who?", "She.")]
    for damaged in ("{", '{"answers": [3]}', '{"answers": 3}', "[]"):
        (tmp_path / "unlearn.json").write_text(damaged)
        assert report_records(tmp_path) == []
    assert "no examples" in caplog.text


def test_presets_switch_off_one_part_each() -> None:
    found = {name: (of.temperature, of.guidance_scale) for name, of in app.presets(TILT).items()}
    assert list(found.values()) == [(2.0, 1.5), (2.0, 0.0), (1.0, 1.5), (1.0, 0.0)]


@pytest.mark.parametrize("value", [None, "x", float("nan"), -1, 2.0**40, True])
def test_numbers_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="valid is"):
        app._whole(value)


def refuse_gradio(name: str, *args: Any, **options: Any) -> Any:
    if name.split(".")[0] == "gradio":
        raise ImportError(name)
    return REAL_IMPORT(name, *args, **options)


REAL_IMPORT = builtins.__import__


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(builtins, "__import__", refuse_gradio)
    with pytest.raises(MissingExtraError, match=r"tempertilt\[ui\]"):
        app.import_gradio()
    assert main(["playground", "--adapter", "nowhere"]) == 2
    assert "tempertilt[ui]" in capsys.readouterr().err
    assert main(["playground"]) == 2
    assert "--adapter is needed" in capsys.readouterr().err


def test_a_port_that_is_taken_or_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tempertilt.cli.playground.import_gradio", lambda: None)
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        assert main(["playground", "--adapter", "nowhere", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0" in capsys.readouterr().err
    for host, port in (("127.0.0.1", -1), ("not a host", 0)):
        with pytest.raises(ConfigError, match=r"must be|can.t listen"):
            listen(host, port)


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("127.0.0.1:7860", "/", 200), ("localhost:7860", "/", 200), ("[::1]:7860", "/", 200), ("evil.example:7860", "/", 400),
        ("", "/", 400), ("127.0.0.1", "/gradio_api/upload", 403), ("127.0.0.1", "/gradio_api/queue/join", 200),
    ],
)  # fmt: skip
def test_the_shield(host: str, path: str, status: int) -> None:
    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"host", host.encode())]}
    asyncio.run(app.Shield(inner, LOOPBACK)(scope, None, send))
    assert sent[0]["status"] == status
    if status == 200:
        assert "default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"].decode()


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
