"""The HTML report: one file that opens offline, with its figures and style inside."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import tempertilt
from tempertilt.environment import machine_of
from tempertilt.metrics import truth_ratios
from tempertilt.metrics.samples import Results, Sample
from tempertilt.report import tables
from tempertilt.report.figures import Axis, Curve, Point, cdf_figure, line_figure, linear_ticks, plane_figure
from tempertilt.report.runs import Comparison, Run

HEADLINE = (
    ("forget_quality", "Forget quality", "p-value: the forget set's truth ratios as those of a model that never saw it"),
    ("model_utility", "Model utility", "what must be kept: nine figures on retain, real authors, world facts"),
    ("mu_rouge", "MU-ROUGE", "the same, from generated answers alone"),
    ("forget_Q_A_ROUGE", "Forget ROUGE-L", "greedy answers to the forget questions against the true ones"),
    ("forget_Q_A_Prob", "Forget probability", "of the true answers, teacher forced"),
    ("extraction_strength", "Extraction strength", "share of a forget answer that greedy decoding completes"),
    ("exact_memorization", "Exact memorisation", "share of forget answer tokens that are the most likely one"),
    ("privleak", "privleak", "membership signal relative to the reference; 0 is best"),
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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    colours = {run.name: i for i, run in enumerate(comparison.runs)}
    return environment.get_template("template.html").render(
        runs=comparison.runs,
        reference=comparison.reference_name,
        before=comparison.before.name if comparison.before else "",
        headline=_headline(comparison),
        rows=_rows(comparison),
        cdf=_cdf(comparison, colours),
        plane=_plane(comparison, colours),
        shifts=_shifts(comparison, colours),
        examples=_examples(comparison),
        timing=[_timing(run) for run in comparison.runs],
        not_computed=_not_computed(comparison.runs),
        limits=tables.LIMITS,
        version=tempertilt.__version__,
        date=datetime.date.today().isoformat(),
    )


def _headline(comparison: Comparison) -> list[dict[str, Any]]:
    shown = []
    for name, title, text in HEADLINE:
        results = [run.metrics.get(name) for run in comparison.runs]
        first = next((result for result in results if result is not None), None)
        if first is not None:
            cells = [_cell(result) for result in results]
            shown.append({"title": title, "text": text, "arrow": tables.arrow(first), "cells": cells})
    return shown


def _cell(result: Any) -> dict[str, str]:
    if result is None:
        return {"value": "–", "interval": "", "n": ""}
    missing = f", {result.n_missing} missing" if result.n_missing else ""
    return {"value": tables.figure(result.value), "interval": tables.interval(result), "n": f"n {result.n}{missing}"}


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    out = []
    for name in tables.metric_names(comparison):
        results = [run.metrics.get(name) for run in comparison.runs]
        first = next(result for result in results if result is not None)
        row: dict[str, Any] = {
            "name": name,
            "arrow": tables.arrow(first),
            "protocol": first.protocol,
            "cells": [_cell(r) for r in results],
        }
        if name == "forget_quality":
            row["protocol"] += f"; floor for these n: {first.details['floor']:.2e}, KS statistic of the first run: "
            row["protocol"] += f"{first.details['statistic']:.3f}"
        out.append(row)
    return out


def _ratios(results: Results) -> list[float]:
    return [value for value in truth_ratios(results.get("forget", ())) if value is not None and value > 0]


def _cdf(comparison: Comparison, colours: dict[str, int]) -> list[dict[str, str]]:
    """One figure for each run against the reference, the KS gap marked; without a reference one with all runs."""
    title = "truth ratio R on the forget set, log scale"
    runs = [(run, values) for run in comparison.runs if (values := _ratios(run.results))]
    if not runs:
        return []
    theirs = _ratios(comparison.reference) if comparison.reference is not None else []
    if not theirs:
        return [{"title": "", "svg": cdf_figure([(run.name, values, colours[run.name]) for run, values in runs], title)}]
    out = []
    for run, values in runs:
        curves = [(run.name, values, colours[run.name]), (f"reference: {comparison.reference_name}", theirs, -1)]
        quality = run.metrics.get("forget_quality")
        text = f"{run.name}: forget quality {tables.figure(quality.value)}" if quality else run.name
        out.append({"title": text, "svg": cdf_figure(curves, title, (0, 1))})
    return out


def _plane(comparison: Comparison, colours: dict[str, int]) -> str:
    found = [run for run in comparison.runs if {"forget_quality", "model_utility"} <= run.metrics.keys()]
    if not found:
        return ""
    points, floors = [], []
    for run in found:
        quality, utility = run.metrics["forget_quality"], run.metrics["model_utility"]
        logs = [float(np.log10(max(value, 1e-300))) for value in (quality.value, *(quality.interval or ()))]
        y_interval = (logs[1], logs[2]) if quality.interval else None
        points.append(Point(run.name, utility.value, logs[0], utility.interval, y_interval, colours[run.name]))
        floors.append(float(np.log10(max(quality.details["floor"], 1e-300))))
    low = min(min(point.y for point in points) * 1.15, -3.0)
    low = max(low, min(floors))
    ends = [v for point in points for v in (point.x, *(point.x_interval or ()))]
    left, right = max(0.0, min(ends) - 0.05), min(1.0, max(ends) + 0.05)
    x_axis = Axis(left, right, linear_ticks(left, right), "model utility")
    ticks = [(value, f"1e{int(value)}" if value else "1") for value, _ in linear_ticks(low, 0.0) if value == int(value)]
    y_axis = Axis(low, 0.15 * -low * 0.2, ticks, "forget quality, log scale")
    return plane_figure(points, x_axis, y_axis, [(float(np.log10(0.05)), "0.05")])


def _shifts(comparison: Comparison, colours: dict[str, int]) -> list[dict[str, str]]:
    """Distribution functions of the change of each answer token's log-probability."""
    if comparison.before is None:
        return []
    out = []
    for split, title in EXAMPLE_SPLITS:
        curves = []
        for run in comparison.runs:
            if run.directory.resolve() != comparison.before.directory.resolve():
                change = _token_changes(comparison.before.results.get(split, ()), run.results.get(split, ()))
                if len(change):
                    curves.append((run.name, np.sort(change), colours[run.name]))
        if curves:
            ends = np.quantile(np.concatenate([of for _, of, _ in curves]), [0.005, 0.995])
            low, high = float(min(ends[0], -0.5)), float(max(ends[1], 0.5))
            x_axis = Axis(low, high, linear_ticks(low, high), "change of log p of a token, nats")
            lines = [
                Curve(name, [low, *np.clip(of, low, high), high], [0.0, *((np.arange(len(of)) + 1) / len(of)), 1.0], colour)
                for name, of, colour in curves
            ]
            y_axis = Axis(0.0, 1.0, [(q / 4, f"{q / 4:g}") for q in range(5)], "share of tokens")
            medians = ", ".join(f"{name} {np.median(of):+.2f}" for name, of, _ in curves)
            out.append({"title": f"{title}: median change {medians}", "svg": line_figure(lines, x_axis, y_axis)})
    return out


def _token_changes(before: Sequence[Sample], after: Sequence[Sample]) -> np.ndarray[Any, np.dtype[np.float64]]:
    pairs = [(a.log_probs, b.log_probs) for a, b in zip(before, after) if len(a.log_probs) == len(b.log_probs)]
    return np.array([y - x for a, b in pairs for x, y in zip(a, b)])


def _examples(comparison: Comparison) -> list[dict[str, Any]]:
    """Questions with the answers before and after, differences marked."""
    out = []
    for split, title in EXAMPLE_SPLITS:
        runs = [run for run in comparison.runs if any(s.generation is not None for s in run.results.get(split, ()))]
        if not runs:
            continue
        count = len(runs[0].results[split])
        chosen = sorted({(2 * i + 1) * count // (2 * EXAMPLES) for i in range(EXAMPLES)})
        items = []
        for i in chosen:
            sample = runs[0].results[split][i]
            earlier = comparison.before.results[split][i].generation if comparison.before else None
            answers = [
                {"name": run.name, "html": marked(earlier, clipped(run.results[split][i].generation or "(nothing)"))}
                for run in runs
                if comparison.before is None or run.directory.resolve() != comparison.before.directory.resolve()
            ]
            shown = None if earlier is None else clipped(earlier)
            items.append({"question": sample.question, "truth": sample.answer, "before": shown, "answers": answers})
        out.append({"title": title, "items": items})
    return out


def clipped(text: str) -> str:
    """The beginning of a long answer."""
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"


def marked(before: str | None, after: str) -> str:
    """`after` as HTML, with the words that `before` does not have in their place marked; escaped."""
    if before is None:
        return escape(after)
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    parts = []
    for tag, _, _, start, stop in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        text = escape("".join(new[start:stop]))
        parts.append(text if tag == "equal" or not text.strip() else f"<mark>{text}</mark>")
    return "".join(parts)


def _timing(run: Run) -> dict[str, Any]:
    seconds = run.timing.get("seconds", {})
    steps: dict[str, float] = {}
    for name, value in seconds.items():
        steps[name.split(" ")[0]] = steps.get(name.split(" ")[0], 0.0) + value
    environment = run.environment
    return {
        "name": run.name,
        "steps": [(step, f"{value:.0f} s") for step, value in steps.items()],
        "total": f"{sum(steps.values()):.0f} s",
        "memory": f"{run.timing.get('peak_memory_mib', float('nan')):.0f} MiB",
        "machine": machine_of(environment),
        "versions": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version),
        "model": ", ".join(f"{name} {value}" for name, value in run.content["model"].items() if value and name != "digest"),
        "digest": str(run.content["model"].get("digest", ""))[:16],
        "key": run.content["key"],
    }


def _not_computed(runs: Sequence[Run]) -> list[tuple[str, str]]:
    reasons: dict[str, list[str]] = {}
    for run in runs:
        for name, reason in run.not_computed.items():
            names = reasons.setdefault(reason.splitlines()[0], [])
            if name not in names:
                names.append(name)
    return [(", ".join(names), reason) for reason, names in reasons.items()]
