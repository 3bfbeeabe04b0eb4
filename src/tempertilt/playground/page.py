"""What the playground shows, as HTML. Every text of the model, of a record or of the user goes through `escaped`."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from importlib import resources

import torch

from tempertilt.guidance.gate import EvidenceGate
from tempertilt.guidance.tilt import TiltConfig, tilt_weights
from tempertilt.playground.records import ReportRecord
from tempertilt.playground.runs import Answer, View
from tempertilt.playground.trace import Law, PromptToken, Step

NAMES: dict[Law, str] = {"base": "Base model", "tilted": "Unlearned model"}
NOTES: dict[Law, str] = {
    "base": "What the frozen weights say, and what the unlearned model no longer says.",
    "tilted": "The same weights, tempered and tilted at every token.",
}
BANDS = ((0.1, "forget-strong"), (0.4, "forget"), (0.6, "even"), (0.9, "retain"), (1.01, "retain-strong"))
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LABELS = {
    "forget-strong": "below 0.1",
    "forget": "0.1 to 0.4",
    "even": "about ½",
    "retain": "0.6 to 0.9",
    "retain-strong": "above 0.9",
    "none": "no evidence",
}


def escaped(text: str) -> str:
    """Text as HTML, in elements and attributes; also inert in templates that are filled in the browser."""
    return re.sub(r"[${}`\\]", lambda found: f"&#{ord(found[0])};", html.escape(text))


def asset(name: str) -> str:
    """The text of `page.css` or `page.js`."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def band(retain: float | None) -> str:
    """The name of the interval that P(retain) is in; "none" without evidence."""
    return "none" if retain is None else next(name for limit, name in BANDS if retain < limit)


def share(probability: float) -> str:
    """A probability for reading: per cent, or a power of ten where it is small."""
    if probability >= 0.0995:
        return f"{100 * probability:.0f} %"
    if probability >= 0.000995:
        return f"{100 * probability:.1f} %" if probability >= 0.00995 else f"{100 * probability:.2f} %"
    return "0" if probability < 1e-99 else "10" + str(round(math.log10(probability))).translate(SUPERSCRIPTS)


def visible(text: str) -> str:
    """Text of a token in which nothing is invisible; for labels."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace("\ufffd", "▯").replace(" ", "␣") or "(nothing)"


# --- answers ---------------------------------------------------------------------------------------------------------


def answer_html(law: Law, view: View) -> str:
    """One column: an answer, every token shaded by the head's evidence."""
    answer, tilt = view.answers[law], view.request.tilt
    tokens, was_open = [], not view.prompt or view.prompt[-1].openness != 0.0
    for i, step in enumerate(answer.steps):
        if step.openness > 0 and not was_open:
            tokens.append('<span class="pg-mark">gate opens</span>')
        was_open = was_open or step.openness > 0
        tokens.append(_token(step, i, tilt))
    text = "".join(tokens) or '<span class="pg-soft">…</span>'
    return (
        f'<section class="pg-card pg-{law}" aria-label="{NAMES[law]}" aria-busy="{str(not answer.done).lower()}">'
        f'<h2>{NAMES[law]}</h2><p class="pg-soft">{NOTES[law]}</p>'
        f'<div class="pg-answer" role="listbox" aria-label="{NAMES[law]}: tokens of the answer" data-law="{law}">{text}</div>'
        f'<p class="pg-foot">{_length(answer)}</p>{_likelihood(law, answer)}</section>'
    )


def _token(step: Step, i: int, tilt: TiltConfig) -> str:
    chosen = step.chosen
    classes = ["pg-tok", band(chosen.retain)]
    classes += ["turned"] if step.turned else []
    classes += ["shut"] if step.openness == 0 else []
    strength = 0.0 if chosen.retain is None else abs(2 * chosen.retain - 1)
    said = "no evidence" if chosen.retain is None else f"P retain {chosen.retain:.2f}"
    label = f"{visible(chosen.text)}: {said}, base {share(chosen.base)}, unlearned {share(chosen.tilted)}"
    data = json.dumps(step_data(step, tilt), ensure_ascii=False)
    return (
        f'<span class="{" ".join(classes)}" role="option" tabindex="{-1 if i else 0}" aria-selected="false" data-i="{i}" '
        f'style="--strength:{strength:.2f}" aria-label="{escaped(label)}" data-step="{escaped(data)}">{_spelt(step)}</span>'
    )


def _spelt(step: Step) -> str:
    if step.ends:
        return f'<span class="pg-chip">end {escaped(step.chosen.text)}</span>'
    if not step.chosen.text or "\ufffd" in step.chosen.text:
        return '<span class="pg-chip">▯</span>'
    return escaped(step.chosen.text).replace("\n", '<span class="pg-soft">↵</span>\n')


def step_data(step: Step, tilt: TiltConfig) -> dict[str, object]:
    """What the popover shows of a step: numbers, and texts that are set as text, not as HTML."""
    weight = None
    if step.chosen.log_odds is not None:
        log_odds = torch.tensor(step.chosen.log_odds, dtype=torch.float64)
        weight = tilt.guidance_scale * step.openness * float(tilt_weights(log_odds, tilt.forget_prior))
    rows = [
        {
            "text": visible(candidate.text),
            "chosen": candidate.token_id == step.chosen.token_id,
            "retain": None if candidate.retain is None else f"{candidate.retain:.2f}",
            "laws": [[share(value), round(100 * value, 1)] for value in (candidate.base, candidate.tempered, candidate.tilted)],
        }
        for candidate in (
            *step.candidates,
            *([] if any(c.token_id == step.chosen.token_id for c in step.candidates) else [step.chosen]),
        )
    ]
    return {
        "text": visible(step.chosen.text),
        "band": band(step.chosen.retain),
        "retain": None if step.chosen.retain is None else f"{step.chosen.retain:.3f}",
        "log_odds": None if step.chosen.log_odds is None else f"{step.chosen.log_odds:+.2f}".replace("-", "−"),
        "weight": None if weight is None else f"{weight:+.2f}".replace("-", "−"),
        "openness": step.openness,
        "temperature": f"{1 + (tilt.temperature - 1) * step.openness:.2f}",
        "turned": step.turned,
        "rows": rows,
    }


def _length(answer: Answer) -> str:
    n = len(answer.steps)
    count = f"{n} token{'' if n == 1 else 's'}"
    if not answer.done:
        return f"{count} …"
    if answer.steps and answer.steps[-1].ends:
        return f"{count}, ended by the model"
    return f"{count}, cut there"


def _likelihood(law: Law, answer: Answer) -> str:
    """How likely the very text of the column is under either law."""
    if not answer.steps:
        return ""
    base, tilted = (mean_probability(answer.steps, of) for of in ("base", "tilted"))
    return (
        f'<p class="pg-foot">This text, per token: base <b>{share(base)}</b>, unlearned <b>{share(tilted)}</b> '
        f'<span class="pg-soft">(geometric mean)</span></p>'
    )


def mean_probability(steps: Sequence[Step], law: str) -> float:
    """The geometric mean of the chosen tokens' probabilities under "base", "tempered" or "tilted"."""
    logs = [math.log(max(getattr(step.chosen, law), 1e-300)) for step in steps]
    return math.exp(sum(logs) / len(logs))


# --- the prompt and the gate -----------------------------------------------------------------------------------------


def prompt_html(view: View, gate: EvidenceGate | None) -> str:
    """What the model reads, with the gate's evidence over it."""
    first, stop = question_span([token.text for token in view.prompt], view.request.prompt)
    shown = view.prompt[first:stop]
    around = [part for part in (view.prompt[:first], view.prompt[stop:]) if part]
    if gate is not None and any((token.evidence or 0) > gate.threshold for part in around for token in part):
        shown, around = view.prompt, []
    tokens = "".join(_prompt_token(token, gate) for token in shown)
    rest = sum(map(len, around))
    note = f'<span class="pg-soft pg-rest">and {rest} tokens of the chat template and system prompt</span>' if rest else ""
    threshold = "" if gate is None else f'style="--threshold:{_height(gate.threshold):.3f}"'
    return (
        f'<section class="pg-card" aria-label="Gate"><h2>{"The gate" if gate else "The prompt"}</h2>'
        f'<p class="pg-lead" role="status">{gate_sentence(view.prompt, gate)}</p>'
        f'<div class="pg-prompt" {threshold}>{tokens}{note}</div></section>'
    )


def gate_sentence(prompt: Sequence[PromptToken], gate: EvidenceGate | None) -> str:
    """What the gate does with this prompt, as HTML."""
    if gate is None:
        return (
            "This adapter has no gate: every context is tempered and tilted, also one that has nothing to do with what is "
            "forgotten."
        )
    highest = max(prompt, key=lambda token: token.evidence or 0.0)
    numbers = f"threshold {gate.threshold:.2f}"
    for token in prompt:
        if token.openness:
            return (
                f"<b>Open.</b> It opens at <q>{escaped(token.text.strip())}</q> (evidence {token.evidence:.2f}, {numbers}) and "
                "never shuts again: from there on the law is tempered and tilted."
            )
    evidence = max(0.0, highest.evidence or 0.0)
    where = f" at <q>{escaped(highest.text.strip())}</q>" if evidence >= 0.005 else ""
    return (
        f"<b>Shut.</b> The highest evidence is {evidence:.2f}{where} ({numbers}): "
        "until something opens it, the answer is the base's, bit for bit, and the sliders do nothing."
    )


def question_span(pieces: Sequence[str], question: str) -> tuple[int, int]:
    """First and last plus one of the tokens that spell the question; all tokens where it is not found."""
    start = "".join(pieces).rfind(question.strip())
    if start < 0 or not question.strip():
        return 0, len(pieces)
    end, at, inside = start + len(question.strip()), 0, []
    for i, piece in enumerate(pieces):
        if at < end and at + len(piece) > start:
            inside.append(i)
        at += len(piece)
    return (inside[0], inside[-1] + 1) if inside else (0, len(pieces))


def _prompt_token(token: PromptToken, gate: EvidenceGate | None) -> str:
    text = escaped(token.text.replace("\n", "↵")) if token.text else "▯"
    if gate is None or token.evidence is None:
        return f'<span class="pg-read">{text}</span>'
    over = token.evidence > gate.threshold
    label = f"{visible(token.text)}: evidence {token.evidence:.2f}{', opens the gate' if over else ''}"
    return (
        f'<span class="pg-read{" over" if over else ""}" title="{escaped(label)}">'
        f'<span class="pg-bar" style="--evidence:{_height(token.evidence):.3f}" aria-hidden="true"></span>'
        f'<span class="pg-word">{text}</span>'
        f'<span class="pg-figure">{"▲ " if over else ""}{max(token.evidence, 0.0):.2f}</span></span>'
    )


def _height(evidence: float) -> float:
    """Evidence as a share of the bar: a similarity less a margin, seldom above 1."""
    return min(1.0, max(0.0, evidence))


# --- what stands still -----------------------------------------------------------------------------------------------


def header_html(name: str, adapter: str) -> str:
    """Title, and what the page is for."""
    return (
        '<header class="pg-header"><h1>Unlearning, token by token</h1>'
        f'<p class="pg-lead"><b>{escaped(name)}</b> with the adapter <b>{escaped(adapter)}</b>. Ask about something it was made '
        "to forget, then move the sliders. Point at a token, or go to it by keyboard, to see what else could have come. "
        "A click keeps it open while you move the sliders.</p>"
        '<p class="pg-honest"><b>The weights still hold the knowledge.</b> The base column proves it: it shows what the '
        "unlearned model no longer says. Whoever has the weights, or can switch the adapter off, can read it.</p></header>"
    )


def legend_html(gated: bool) -> str:
    """What shading, underlines and marks mean."""
    shut = " Without shading: the gate is shut, the evidence is not acted on." if gated else ""
    samples = "".join(
        f'<li><span class="pg-tok {name}" style="--strength:{strength}">token</span> {LABELS[name]}</li>'
        for name, strength in zip(LABELS, (1, 0.5, 0, 0.5, 1, 0))
    )
    return (
        '<section class="pg-legend" aria-label="Legend"><span><b>P(retain)</b>, the head\'s evidence:</span> <ul>'
        + samples
        + "</ul>"
        f"<span>▾ here the two models would go on with different tokens.{shut}</span></section>"
    )


def method_html(gated: bool) -> str:
    """The method in four steps."""
    gate = (
        "<li><b>Gate.</b> All of this happens only after the text has touched what is to be forgotten: a name, a date, a title "
        "of the forget records, recognised in the lower layers. Before that g = 0 and the law is the base's.</li>"
        if gated
        else ""
    )
    law = "z(v) / (1 + (T − 1) g<sub>t</sub>) + s g<sub>t</sub> w(ℓ(v))" if gated else "z(v) / T + s w(ℓ(v))"
    return (
        '<section class="pg-card pg-method"><h2>What happens at every token</h2>'
        f'<p class="pg-law">log p̂(v) = {law} − log Z</p><ol>'
        "<li><b>Base.</b> The frozen model gives every possible next token v a logit z(v). Memorised text is a spike: one token "
        "holds nearly all of the probability.</li>"
        "<li><b>Temper.</b> Dividing by T &gt; 1 flattens the spike, so that a small error of the classifier can't let it "
        "win.</li>"
        "<li><b>Tilt.</b> A small classifier reads the same hidden state and says for every token how much it looks like retain "
        "text: P(retain) = σ(ℓ). Tokens that look like forget text are pushed down, s times w(ℓ) = log σ(ℓ) + log 2; a token "
        f"without evidence stays as it is.</li>{gate}</ol></section>"
    )


def truth_html(record: ReportRecord | None) -> str:
    """What the record of the report says, where the prompt is its question."""
    if record is None:
        return ""
    kind = {"forget": "to be forgotten", "retain": "to be kept"}.get(record.set, record.set)
    return f'<p class="pg-truth"><span class="pg-chip">{escaped(kind)}</span> The record says: {escaped(record.truth)}</p>'


def error_html(message: str) -> str:
    """A mistake that the user can mend."""
    return f'<p class="pg-error" role="alert">{escaped(message)}</p>'
