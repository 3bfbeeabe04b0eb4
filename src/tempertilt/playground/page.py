"""What the playground shows, as HTML: the values of the templates, nothing computed but how they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tempertilt.playground.records import ReportRecord
from tempertilt.playground.runs import Answer, View
from tempertilt.playground.trace import Candidate, Followed, PromptToken, Step, mean_probability
from tempertilt.report.rendering import render

TEMPLATES = Path(__file__).parent / "templates"

TITLES: dict[Followed, str] = {"base": "Base model", "guided": "Unlearned model"}
NOTES: dict[Followed, str] = {
    "base": "What the frozen weights say, and what the unlearned model no longer says.",
    "guided": "The same weights, tempered and tilted at every token.",
}
BANDS = ((0.1, "forget-strong"), (0.4, "forget"), (0.6, "even"), (0.9, "retain"), (1.01, "retain-strong"))
LABELS = {
    "forget-strong": "below 0.1",
    "forget": "0.1 to 0.4",
    "even": "about ½",
    "retain": "0.6 to 0.9",
    "retain-strong": "above 0.9",
    "none": "not rated",
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def asset(name: str) -> str:
    """The text of `page.css` or `page.js`."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


# --- numbers and texts -----------------------------------------------------------------------------------------------


def band(retain: float | None) -> str:
    """The name of the interval that P(retain) is in; "none" for a token that the head does not rate."""
    return "none" if retain is None else next(name for limit, name in BANDS if retain < limit)


def share(probability: float) -> str:
    """A probability for reading: per cent, or a power of ten where it is small."""
    if probability >= 0.0995:
        return f"{100 * probability:.0f} %"
    if probability >= 0.000995:
        return f"{100 * probability:.1f} %" if probability >= 0.00995 else f"{100 * probability:.2f} %"
    return "0" if probability < 1e-99 else "10" + str(round(math.log10(probability))).translate(SUPERSCRIPTS)


def signed(value: float | None) -> str | None:
    """Two decimals with a sign; None stays None."""
    return None if value is None else f"{value:+.2f}".replace("-", "−")


def visible(text: str) -> str:
    """Text of a token in which nothing is invisible; for labels."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace("\ufffd", "▯").replace(" ", "␣") or "(nothing)"


def _bar(evidence: float) -> str:
    """Evidence as a share of its bar's height: a similarity less a margin, seldom above 1."""
    return f"{min(1.0, max(0.0, evidence)):.3f}"


# --- answers ---------------------------------------------------------------------------------------------------------


def answer_html(column: Followed, view: View) -> str:
    """One column: an answer, every token shaded by its P(retain)."""
    answer = view.answers[column]
    gates = [1.0 if not view.prompt or view.prompt[-1].gate is None else view.prompt[-1].gate, *(s.gate for s in answer.steps)]
    tokens = [_token(step, i, opens=step.gate > 0 and not any(gates[: i + 1])) for i, step in enumerate(answer.steps)]
    return render(
        TEMPLATES,
        "answer.html",
        column=column,
        title=TITLES[column],
        note=NOTES[column],
        busy="false" if answer.done else "true",
        tokens=tokens,
        length=_length(answer),
        likelihood=_likelihood(answer.steps),
    )


def _token(step: Step, i: int, opens: bool) -> dict[str, Any]:
    chosen = step.chosen
    rated = "not rated" if chosen.retain is None else f"P retain {chosen.retain:.2f}"
    classes = ["pg-tok", band(chosen.retain), *(["turned"] if step.turned else []), *(["closed"] if step.gate == 0 else [])]
    return {
        "number": i,
        "tabindex": -1 if i else 0,
        "opens": opens,
        "classes": classes,
        "strength": f"{0.0 if chosen.retain is None else abs(2 * chosen.retain - 1):.2f}",
        "label": f"{visible(chosen.text)}: {rated}, base {share(chosen.base)}, unlearned {share(chosen.guided)}",
        "step": json.dumps(step_data(step), ensure_ascii=False),
        "chip": _chip(step),
        "lines": chosen.text.split("\n"),
    }


def _chip(step: Step) -> str:
    """What stands in the place of a token that ends the answer or has no text of its own; else empty."""
    if step.ends:
        return f"end {step.chosen.text}"
    return "▯" if not step.chosen.text or "\ufffd" in step.chosen.text else ""


def step_data(step: Step) -> dict[str, Any]:
    """What the popover shows of a step: numbers, and texts that are set as text, not as HTML."""
    chosen = step.chosen
    others = [] if any(candidate.token_id == chosen.token_id for candidate in step.candidates) else [chosen]
    return {
        "text": visible(chosen.text),
        "band": band(chosen.retain),
        "retain": None if chosen.retain is None else f"{chosen.retain:.3f}",
        "log_odds": signed(chosen.log_odds),
        "weight": signed(chosen.weight),
        "gate": step.gate,
        "temperature": f"{step.temperature:.2f}",
        "turned": step.turned,
        "replied": step.replied,
        "rows": [_row(candidate, candidate.token_id == chosen.token_id) for candidate in (*step.candidates, *others)],
    }


def _row(candidate: Candidate, chosen: bool) -> dict[str, Any]:
    probabilities = (candidate.base, candidate.tempered, candidate.guided)
    return {
        "text": visible(candidate.text),
        "chosen": chosen,
        "retain": None if candidate.retain is None else f"{candidate.retain:.2f}",
        "shares": [[share(probability), round(100 * probability, 1)] for probability in probabilities],
    }


def _length(answer: Answer) -> str:
    n = len(answer.steps)
    count = f"{n} token{'' if n == 1 else 's'}"
    if not answer.done:
        return f"{count} …"
    return f"{count}, ended by the model" if n and answer.steps[-1].ends else f"{count}, cut there"


def _likelihood(steps: Sequence[Step]) -> dict[str, str] | None:
    """How likely the text of a column is under the base and the guided distribution, per token."""
    return {name: share(mean_probability(steps, name)) for name in ("base", "guided")} if steps else None


# --- the prompt and the gate -----------------------------------------------------------------------------------------


def prompt_html(view: View, threshold: float | None) -> str:
    """What the model reads, with the gate's evidence over it.

    Args:
        threshold: of the gate; None without a gate.
    """
    first, stop = question_span([token.text for token in view.prompt], view.request.prompt)
    around = [*view.prompt[:first], *view.prompt[stop:]]
    if threshold is not None and any((token.evidence or 0) > threshold for token in around):
        first, stop, around = 0, len(view.prompt), []
    return render(
        TEMPLATES,
        "prompt.html",
        gate=None if threshold is None else _gate(view.prompt, threshold),
        tokens=[_prompt_token(token, threshold) for token in view.prompt[first:stop]],
        hidden=len(around),
    )


def _gate(prompt: Sequence[PromptToken], threshold: float) -> dict[str, Any]:
    """What the gate does with a prompt: the token that opened it last, or the one that came nearest to it.

    Evidence of the input gate alone may not be above the threshold there: then the output gate has opened it, too.
    """
    values = [0.0, *(token.gate or 0.0 for token in prompt)]
    opening = next((token for token, before in zip(reversed(prompt), reversed(values[:-1])) if token.gate and not before), None)
    token = opening or max(prompt, key=lambda token: token.evidence or 0.0)
    evidence = max(0.0, token.evidence or 0.0)
    return {
        "open": bool(prompt[-1].gate),
        "opened": opening is not None,
        "asked": evidence > threshold,
        "token": token.text.strip() if opening or evidence >= 0.005 else "",
        "evidence": f"{evidence:.2f}",
        "threshold": f"{threshold:.2f}",
        "height": _bar(threshold),
    }


def question_span(pieces: Sequence[str], question: str) -> tuple[int, int]:
    """First and last plus one of the tokens that spell the question; all tokens where the question is not among them."""
    start = "".join(pieces).rfind(question.strip())
    if start < 0 or not question.strip():
        return 0, len(pieces)
    end, at, inside = start + len(question.strip()), 0, []
    for i, piece in enumerate(pieces):
        if at < end and at + len(piece) > start:
            inside.append(i)
        at += len(piece)
    return (inside[0], inside[-1] + 1) if inside else (0, len(pieces))


def _prompt_token(token: PromptToken, threshold: float | None) -> dict[str, Any]:
    text = token.text.replace("\n", "↵") or "▯"
    if threshold is None or token.evidence is None:
        return {"text": text, "evidence": None}
    over = token.evidence > threshold
    return {
        "text": text,
        "evidence": f"{max(token.evidence, 0.0):.2f}",
        "height": _bar(token.evidence),
        "over": over,
        "label": f"{visible(token.text)}: evidence {token.evidence:.2f}{', opens the gate' if over else ''}",
    }


# --- what stands still -----------------------------------------------------------------------------------------------


def header_html(name: str, adapter: str) -> str:
    """Title, and what the page is for."""
    return render(TEMPLATES, "header.html", name=name, adapter=adapter)


def legend_html(gated: bool) -> str:
    """What shading, underlines and marks mean."""
    strengths = (1, 0.5, 0, 0.5, 1, 0)
    samples = [{"name": name, "label": LABELS[name], "strength": strength} for name, strength in zip(LABELS, strengths)]
    return render(TEMPLATES, "legend.html", samples=samples, gated=gated)


def method_html(gated: bool) -> str:
    """The method in steps."""
    return render(TEMPLATES, "method.html", gated=gated)


def truth_html(record: ReportRecord | None) -> str:
    """What the record of the report says, where the prompt is its question."""
    return "" if record is None else render(TEMPLATES, "truth.html", set=record.set, truth=record.truth)


def error_html(message: str) -> str:
    """A mistake that the user can fix."""
    return render(TEMPLATES, "error.html", message=message)
