"""The metrics of runs side by side, as Markdown, LaTeX or JSON."""

from __future__ import annotations

import json

from tempertilt.metrics.result import MetricResult
from tempertilt.report.markup import (
    ABSENT,
    arrow,
    between,
    latex_number,
    latex_table,
    latex_text,
    latex_title,
    markdown_table,
    number,
)
from tempertilt.report.runs import Comparison
from tempertilt.report.verdict import verdict

LIMITS = (
    "The frozen weights still hold the knowledge: whoever has the weights, the hidden states or an unguided copy of the model "
    "can read it. These figures are about what the measured model says.",
    "Forget quality is a p-value: a large one says that these truth ratios could not be told from the reference's with this many "
    "questions, not that they are the same. It has no interval; the distance D that it is the p-value of has one.",
    "Intervals are 95 % percentile bootstraps over questions, or as a metric's protocol says. Questions about one author are not "
    "independent, so they are on the narrow side.",
    "Metrics of teacher forcing and of greedy or sampled decoding measure different things; read them together.",
)


def metric_names(comparison: Comparison) -> list[str]:
    """Every metric that some run has, in the order of the suite."""
    names: dict[str, None] = {}
    for run in comparison.runs:
        names.update(dict.fromkeys(run.metrics))
    return list(names)


def results_of(comparison: Comparison, name: str) -> tuple[MetricResult, list[MetricResult | None]]:
    """A metric of each run, None where a run does not have it, and before them the first of those that are there."""
    results = [run.metrics.get(name) for run in comparison.runs]
    return next(result for result in results if result is not None), results


def interval(result: MetricResult) -> str:
    """The interval as text, empty where there is none."""
    return "" if result.interval is None else between(*result.interval)


def to_markdown(comparison: Comparison) -> str:
    """A table with a column for each run, then the reference and the limits."""
    rows = []
    for name in metric_names(comparison):
        first, results = results_of(comparison, name)
        rows.append([f"{name} {arrow(first.higher_is_better)}", *map(_cell, results)])
    lines = markdown_table(["metric", *(run.name for run in comparison.runs)], rows)
    before = None if comparison.before is None else comparison.before.metrics
    for run in reversed(comparison.after):
        if words := verdict(run.metrics, before):
            lines = [f"**{run.name}**: {' '.join(words)}", "", *lines]
    lines += ["", f"Reference: {comparison.reference_name or 'none'}. In brackets: 95 % interval; n.", ""]
    lines += [f"- {limit}" for limit in LIMITS]
    return "\n".join(lines) + "\n"


def _cell(result: MetricResult | None) -> str:
    if result is None:
        return ABSENT
    extra = [text for text in (interval(result), f"n = {result.n}") if text]
    return f"{number(result.value)} ({'; '.join(extra)})"


def to_latex(comparison: Comparison) -> str:
    """A booktabs table with a column for each run."""
    rows = []
    for name in metric_names(comparison):
        first, results = results_of(comparison, name)
        cells = [latex_number(None if result is None else result.value) for result in results]
        rows.append([latex_title(name, first.higher_is_better), *cells])
    return latex_table(["metric", *(latex_text(run.name) for run in comparison.runs)], rows)


def to_json(comparison: Comparison) -> str:
    """Every metric of every run, with protocols and what could not be computed."""
    content = {
        "reference": comparison.reference_name or None,
        "before": None if comparison.before is None else comparison.before.name,
        "runs": [
            {
                "name": run.name,
                "directory": str(run.directory),
                "key": run.content["key"],
                "metrics": {name: result.summary() for name, result in run.metrics.items()},
                "not_computed": run.not_computed,
                "timing": run.timing,
                "environment": run.environment,
            }
            for run in comparison.runs
        ],
        "limits": LIMITS,
    }
    return json.dumps(content, indent=1) + "\n"
