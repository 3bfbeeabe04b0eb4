"""The HTML report: one file that opens offline, with its figures and style inside. Here are the values of its template."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Sequence
from typing import Any

import tempertilt
from tempertilt.environment import machine_of
from tempertilt.metrics.result import MetricResult
from tempertilt.metrics.samples import Sample
from tempertilt.report import tables
from tempertilt.report.charts import shift_charts, truth_ratio_charts, utility_chart
from tempertilt.report.figures import css_colour
from tempertilt.report.markup import ABSENT, arrow, number
from tempertilt.report.rendering import SHARED, render
from tempertilt.report.runs import Comparison, Run
from tempertilt.report.verdict import verdict

HEADLINE = (
    ("forget_quality", "Forget quality", "p-value: the forget set's truth ratios as those of a model that never saw it"),
    ("ks_distance", "KS distance D", "largest distance between these truth ratios' distribution functions, with its interval"),
    ("model_utility", "Model utility", "nine figures on retain, real authors, world facts"),
    ("mu_rouge", "MU-ROUGE", "the same, from generated answers alone"),
    ("forget_Q_A_ROUGE", "Forget ROUGE-L", "greedy answers to the forget questions against the true ones"),
    ("forget_Q_A_Prob", "Forget probability", "of the true answers, teacher forced"),
    ("extraction_strength", "Extraction strength", "share of a forget answer that greedy decoding completes"),
    ("exact_memorization", "Exact memorisation", "share of forget answer tokens that are the most likely one"),
    ("privleak", "privleak", "membership signal relative to the reference; 0 is best"),
    ("reference_kl", "Distance from the reference", "KL(reference || model) at forget answers, nats a token"),
    ("reference_same_top", "Same most likely token", "as the reference's, share of contexts in forget answers"),
    ("forget_reference_perplexity", "Perplexity under the reference", "of greedy forget answers"),
    ("forget_ended", "Answers that end", "greedy forget answers that end by themselves"),
    ("forget_leaked", "Answers that leak", "greedy forget answers that hold a fact of the true one, in whatever words"),
    ("misattribution", "Misattribution", "greedy forget answers that hold a value of another, retained record"),
    ("forget_leak_rate", "Sampled answers that leak", "temperature 1"),
    ("forget_leak_at_n", "leak@n", "chance that one of n sampled answers leaks"),
    ("retain_Q_A_ROUGE", "Retain ROUGE-L", "greedy answers to the retain questions"),
    ("forget_best_of_n_ROUGE", "Best-of-n leak", "the most telling of n sampled answers, forget"),
    ("retain_sampled_ROUGE", "Retain ROUGE-L, sampled", "temperature 1, as users sample"),
    ("retain_sampled_perplexity", "Retain perplexity, sampled", "of sampled answers under the base model: fluency"),
)
EXAMPLES = 8
LONGEST = 420
"""Characters of an answer that are shown."""
EXAMPLE_SPLITS = (("forget", "Forget"), ("retain", "Retain"))


def to_html(comparison: Comparison) -> str:
    """The report as one HTML page."""
    colours = {run.name: i for i, run in enumerate(comparison.runs)}
    return render(
        SHARED,
        "report.html",
        runs=[{"name": name, "colour": css_colour(colour)} for name, colour in colours.items()],
        reference=comparison.reference_name,
        before=comparison.before.name if comparison.before else "",
        verdicts=_verdicts(comparison),
        headline=_headline(comparison),
        rows=_rows(comparison),
        cdf=truth_ratio_charts(comparison, colours),
        plane=utility_chart(comparison, colours),
        shifts=shift_charts(comparison, EXAMPLE_SPLITS, colours),
        examples=_examples(comparison),
        timing=[_timing(run) for run in comparison.runs],
        not_computed=_not_computed(comparison.runs),
        limits=tables.LIMITS,
        version=tempertilt.__version__,
        date=datetime.date.today().isoformat(),
    )


def _verdicts(comparison: Comparison) -> list[dict[str, Any]]:
    """What each run's figures say; that of the model before unlearning is not judged."""
    before = None if comparison.before is None else comparison.before.metrics
    found = [{"name": run.name, "lines": verdict(run.metrics, before)} for run in comparison.after]
    return [item for item in found if item["lines"]]


def _headline(comparison: Comparison) -> list[dict[str, Any]]:
    known = tables.metric_names(comparison)
    return [{"title": title, "text": text, **_row(comparison, name)} for name, title, text in HEADLINE if name in known]


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [{"name": name, **_row(comparison, name)} for name in tables.metric_names(comparison)]


def _row(comparison: Comparison, name: str) -> dict[str, Any]:
    first, results = tables.results_of(comparison, name)
    protocol = first.protocol
    if name == "forget_quality":
        floor, statistic = first.details["floor"], first.details["statistic"]
        protocol += f"; floor for these n: {floor:.2e}, KS statistic of the first run: {statistic:.3f}"
    return {"arrow": arrow(first.higher_is_better), "protocol": protocol, "cells": [_cell(result) for result in results]}


def _cell(result: MetricResult | None) -> dict[str, str]:
    if result is None:
        return {"value": ABSENT, "interval": "", "n": ""}
    missing = f", {result.n_missing} missing" if result.n_missing else ""
    return {"value": number(result.value), "interval": tables.interval(result), "n": f"n {result.n}{missing}"}


def _examples(comparison: Comparison) -> list[dict[str, Any]]:
    """Evenly spaced questions with the answers before and after, by split."""
    groups = []
    for split, title in EXAMPLE_SPLITS:
        samples = next((run.results[split] for run in comparison.runs if _has_answers(run, split)), ())
        if samples:
            chosen = sorted({(2 * i + 1) * len(samples) // (2 * EXAMPLES) for i in range(EXAMPLES)})
            groups.append({"title": title, "questions": [_example(comparison, split, i, samples[i]) for i in chosen]})
    return groups


def _has_answers(run: Run, split: str) -> bool:
    return any(sample.generation is not None for sample in run.results.get(split, ()))


def _example(comparison: Comparison, split: str, i: int, sample: Sample) -> dict[str, Any]:
    before = comparison.before.results[split][i].generation if comparison.before else None
    answers = [
        {"name": run.name, "parts": differences(before, clipped(run.results[split][i].generation or "(nothing)"))}
        for run in comparison.after
        if _has_answers(run, split)
    ]
    shown = None if before is None else clipped(before)
    return {"question": sample.question, "truth": sample.answer, "before": shown, "answers": answers}


def clipped(text: str) -> str:
    """The beginning of a long answer."""
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"


def differences(before: str | None, after: str) -> list[tuple[str, bool]]:
    """`after` in parts, each with whether `before` has other words in its place; all is unchanged where there is no `before`."""
    if before is None:
        return [(after, False)]
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    parts = []
    for tag, _, _, start, stop in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        text = "".join(new[start:stop])
        if text:
            parts.append((text, tag != "equal" and bool(text.strip())))
    return parts


def _timing(run: Run) -> dict[str, Any]:
    steps: dict[str, float] = {}
    for name, seconds in run.timing.get("seconds", {}).items():
        steps[name.split(" ")[0]] = steps.get(name.split(" ")[0], 0.0) + seconds
    environment, model = run.environment, run.content["model"]
    return {
        "name": run.name,
        "steps": [(step, f"{seconds:.0f} s") for step, seconds in steps.items()],
        "total": f"{sum(steps.values()):.0f} s",
        "memory": f"{run.timing.get('peak_memory_mib', float('nan')):.0f} MiB",
        "machine": machine_of(environment),
        "versions": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version),
        "model": ", ".join(f"{name} {value}" for name, value in model.items() if value and name != "digest"),
        "digest": str(model.get("digest", ""))[:16],
        "key": run.content["key"],
    }


def _not_computed(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Metrics that could not be computed, joined by their reason."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        for name, reason in run.not_computed.items():
            names = reasons.setdefault(reason.splitlines()[0], [])
            if name not in names:
                names.append(name)
    return [(", ".join(names), reason) for reason, names in reasons.items()]
