"""The metrics of runs side by side, as Markdown, LaTeX or JSON."""

from __future__ import annotations

import json

from tempertilt.metrics.result import MetricResult
from tempertilt.report.runs import Comparison

LIMITS = (
    "The frozen weights still hold the knowledge: whoever has the weights, the hidden states or an unguided copy of the model "
    "can read it. These figures are about what the measured model says.",
    "Forget quality is a p-value: a large one says that these truth ratios could not be told from the reference's with this many "
    "questions, not that they are the same.",
    "Intervals are 95 % percentile bootstraps over questions. Questions about one author are not independent, so they are on "
    "the narrow side.",
    "Metrics of teacher forcing and of greedy or sampled decoding measure different things; read them together.",
)


def arrow(result: MetricResult) -> str:
    """Which way is better."""
    return {True: "↑", False: "↓", None: ""}[result.higher_is_better]


def figure(value: float) -> str:
    """Three to four significant digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:.2e}"


def interval(result: MetricResult) -> str:
    """The interval, or nothing."""
    return "" if result.interval is None else f"{figure(result.interval[0])} to {figure(result.interval[1])}"


def metric_names(comparison: Comparison) -> list[str]:
    """Every metric that some run has, in the order of the suite."""
    names: dict[str, None] = {}
    for run in comparison.runs:
        names.update(dict.fromkeys(run.metrics))
    return list(names)


def to_markdown(comparison: Comparison) -> str:
    """A table with a column for each run, then protocol and limits."""
    lines = ["| metric | " + " | ".join(run.name for run in comparison.runs) + " |", "|---|" + "---|" * len(comparison.runs)]
    for name in metric_names(comparison):
        cells = [_cell(run.metrics.get(name)) for run in comparison.runs]
        lines.append(f"| {name} {_arrow(comparison, name)} | " + " | ".join(cells) + " |")
    lines += ["", f"Reference: {comparison.reference_name or 'none'}. In brackets: 95 % bootstrap interval; n.", ""]
    lines += [f"- {limit}" for limit in LIMITS]
    return "\n".join(lines) + "\n"


def _arrow(comparison: Comparison, name: str) -> str:
    return next(arrow(run.metrics[name]) for run in comparison.runs if name in run.metrics)


def _cell(result: MetricResult | None) -> str:
    if result is None:
        return "–"
    extra = [text for text in (interval(result), f"n = {result.n}") if text]
    return f"{figure(result.value)} ({'; '.join(extra)})"


def to_latex(comparison: Comparison) -> str:
    r"""A booktabs table (needs \usepackage{booktabs})."""
    columns = "l" + "r" * len(comparison.runs)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append("metric & " + " & ".join(_escape(run.name) for run in comparison.runs) + r" \\")
    lines.append(r"\midrule")
    for name in metric_names(comparison):
        direction = {"↑": r" $\uparrow$", "↓": r" $\downarrow$", "": ""}[_arrow(comparison, name)]
        cells = [_latex_cell(run.metrics.get(name)) for run in comparison.runs]
        lines.append(f"{_escape(name)}{direction} & " + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(result: MetricResult | None) -> str:
    if result is None:
        return "--"
    text = figure(result.value)
    mantissa, exponent = text.split("e") if "e" in text else (text, "")
    return f"${mantissa} \\cdot 10^{{{int(exponent)}}}$" if exponent else f"${mantissa}$"


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text


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
