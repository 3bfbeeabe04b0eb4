"""The results of a benchmark as CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tempertilt.bench.scores import HIGHER, Figure, Row, differences
from tempertilt.report.tables import figure

SHOWN = (
    ("score", "score"),
    ("ks_distance", "KS distance"),
    ("forget_quality", "forget quality"),
    ("forget_gap", "forget gap"),
    ("forget_Q_A_Prob", "P(forget)"),
    ("exact_memorization", "exact mem."),
    ("forget_Q_A_ROUGE", "forget ROUGE"),
    ("retain_Q_A_Prob", "P(retain)"),
    ("retain_Q_A_ROUGE", "retain ROUGE"),
    ("utility", "utility"),
    ("privleak", "privleak"),
)
COSTS = (
    ("unlearn_seconds", "unlearn, s"),
    ("reference_seconds", "reference pass, s"),
    ("training_seconds", "training, s"),
    ("decoding", "decoding, x base"),
    ("peak_memory_mib", "peak memory, MiB"),
    ("trained_parameters", "trained numbers"),
    ("artefact_bytes", "artefact, bytes"),
    ("train_flops", "FLOPs, estimate"),
)
POINTS = ("target", "reference", "oracle")
OURS = "t3"

LIMITS = (
    "Score: harmonic mean of 1 - D / D of the target (D: Kolmogorov-Smirnov distance of the forget set's truth ratios from the "
    "reference's) and of the utility over the target's (at most 1). Settings were chosen by it on other documents and seeds than "
    "those reported.",
    "Intervals are 95 %: the variance of the mean over seeds and that of a bootstrap over questions, added. Two methods are "
    "compared on the same draws of questions. Forget quality is a p-value: its geometric mean over seeds, and the lowest and "
    "highest seed.",
    "Forget gap: distance of the mean probability of forget answers from the reference's. A lower P(forget) than the reference's "
    "is no better forgetting: it tells that something was removed.",
    "Questions about one author are not independent, so intervals are on the narrow side.",
    "Utility is TOFU's model utility where answers were generated on retain, real authors and world facts, else the harmonic "
    "mean of its six likelihood-based parts.",
    "FLOPs are counted from tokens and weights, not measured. Decoding is time with the method over time without; 1 where "
    "trained weights are merged.",
    "Methods at inference leave the knowledge in the weights: these figures are about what the served model says.",
)


def columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The figures that some row has: name and title."""
    return [(name, title) for name, title in SHOWN if any(name in row.figures for row in rows)]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Reference points first, then by score, rows without figures last."""

    def place(row: Row) -> tuple[int, float]:
        if row.name in POINTS:
            return (0, POINTS.index(row.name))
        return (1, -row.figures["score"].mean) if "score" in row.figures else (2, 0.0)

    return sorted(rows, key=place)


def interval(row: Row, name: str) -> str:
    """The interval of a figure, empty where there is none."""
    of = row.figures[name]
    return "" if of.low == of.high else f"{figure(of.low)} to {figure(of.high)}"


def cost(value: float) -> str:
    """A cost with as many digits as matter."""
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cost_ratio(rows: Sequence[Row]) -> dict[str, Any] | None:
    """T3's unlearning time over that of the cheapest method that trains the model, selected settings; None without either."""
    from tempertilt.methods.registry import find_method
    from tempertilt.methods.trained import TrainedMethod

    ours = next((row for row in rows if row.name == OURS and row.costs), None)
    trained = [row for row in rows if row.costs and issubclass(find_method(row.method).method, TrainedMethod)]
    if ours is None or not trained:
        return None
    cheapest = min(trained, key=lambda row: row.costs["unlearn_seconds"])
    times = ours.costs["unlearn_seconds"], cheapest.costs["unlearn_seconds"]
    return {"t3_seconds": times[0], "cheapest": cheapest.name, "cheapest_seconds": times[1], "ratio": times[0] / times[1]}


def machines(rows: Sequence[Row]) -> list[str]:
    """What the reported trials ran on; times on several are not comparable."""
    return sorted({machine for row in rows for machine in row.machines})


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row: each figure with both intervals, then costs."""
    names = [name for name in HIGHER if any(name in row.figures for row in rows)]
    prices = sorted({name for row in rows for name in row.costs})
    parts = ("mean", "low", "high", "seed_low", "seed_high")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "method", "setting", "seeds", *(f"{n}_{p}" for n in names for p in parts), *prices, "failures"])
    for row in ranked(rows):
        figures = [getattr(row.figures[n], p) if n in row.figures else "" for n in names for p in parts]
        shown = ["" if isinstance(value, float) and math.isnan(value) else value for value in figures]
        line = [row.name, row.method, row.label, " ".join(map(str, row.seeds)), *shown]
        writer.writerow([*line, *(row.costs.get(name, "") for name in prices), "; ".join(row.failures)])
    return out.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """Two tables, figures and costs, then T3 against its rivals and what the figures mean."""
    shown = columns(rows)
    titles = " | ".join(f"{title} {_arrow(name)}".strip() for name, title in shown)
    lines = [f"| method | setting | {titles} | seeds |", "|---|---|" + "---|" * (len(shown) + 1)]
    for row in ranked(rows):
        cells = [_cell(row, name) for name, _ in shown]
        lines.append(f"| {row.name} | {row.label or '–'} | {' | '.join(cells)} | {len(row.seeds)} |")
    priced = [(name, title) for name, title in COSTS if any(name in row.costs for row in rows)]
    lines += ["", "| method | " + " | ".join(title for _, title in priced) + " |", "|---|" + "---|" * len(priced)]
    for row in ranked(rows):
        cells = [cost(row.costs[name]) if name in row.costs else "–" for name, _ in priced]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    lines += ["", *rival_lines(rows), ""]
    lines += [f"- {row.name} has a trial without a result: {failure.splitlines()[0]}" for row in rows for failure in row.failures]
    lines += [f"- {limit}" for limit in LIMITS] + [f"- Run on: {machine}." for machine in machines(rows)]
    return "\n".join(lines) + "\n"


def rival_lines(rows: Sequence[Row]) -> list[str]:
    """T3 against every other method as a Markdown table; nothing without T3."""
    ours = next((row for row in rows if row.name == OURS and row.figures), None)
    if ours is None:
        return []
    found = differences(ours, [row for row in ranked(rows) if row.name not in POINTS])
    names = list(dict.fromkeys(d.figure for d in found))
    lines = [f"{OURS} less each rival (95 % interval); bold where {OURS} does better, italic where the rival does.", ""]
    lines += ["| rival | " + " | ".join(f"{name} {_arrow(name)}" for name in names) + " |", "|---|" + "---|" * len(names)]
    for rival in dict.fromkeys(d.rival for d in found):
        cells = {d.figure: d for d in found if d.rival == rival}
        lines.append(f"| {rival} | " + " | ".join(_difference(cells[name]) if name in cells else "–" for name in names) + " |")
    if ratio := cost_ratio(rows):
        lines += ["", f"{OURS} unlearns in {ratio['t3_seconds']:.1f} s; the cheapest trained method, {ratio['cheapest']}, in "
                  f"{ratio['cheapest_seconds']:.1f} s: 1/{1 / ratio['ratio']:.1f} of the time."]  # fmt: skip
    return lines


def _difference(of: Any) -> str:
    text = f"{of.value:+.3f} ({of.low:+.3f} to {of.high:+.3f})"
    return {"first": f"**{text}**", "second": f"*{text}*", "open": text}[of.better]


def _arrow(name: str) -> str:
    return {True: "↑", False: "↓", None: ""}[HIGHER[name]]


def _cell(row: Row, name: str) -> str:
    if name not in row.figures:
        return "–"
    text = interval(row, name)
    return figure(row.figures[name].mean) + (f" ({text})" if text else "")


def to_latex(rows: Sequence[Row]) -> str:
    r"""A booktabs table of means and half widths of their intervals (needs \usepackage{booktabs})."""
    shown = columns(rows)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(shown) + 1)}}}", r"\toprule"]
    arrows = {"↑": r" $\uparrow$", "↓": r" $\downarrow$", "": ""}
    lines.append("method & " + " & ".join(_escape(title) + arrows[_arrow(n)] for n, title in shown) + r" & unlearn, s \\")
    lines.append(r"\midrule")
    for row in ranked(rows):
        cells = [_latex(row, name) for name, _ in shown]
        lines.append(
            f"{_escape(row.name)} & {' & '.join(cells)} & {cost(row.costs['unlearn_seconds']) if row.costs else '--'}" + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex(row: Row, name: str) -> str:
    if name not in row.figures:
        return "--"
    of = row.figures[name]
    text = figure(of.mean)
    mantissa, exponent = text.split("e") if "e" in text else (text, "")
    body = f"{mantissa} \\cdot 10^{{{int(exponent)}}}" if exponent else mantissa
    return f"${body} \\pm {1.96 * of.error:.3f}$" if not exponent and of.error > 0 else f"${body}$"


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text


def to_json(rows: Sequence[Row], config: dict[str, Any]) -> str:
    """Everything, with the configuration and the machines; each trial's `result.json` has its versions."""
    ours, rivals = next((row for row in rows if row.name == OURS), None), [row for row in rows if row.name not in POINTS]
    content = {
        "rows": [asdict(row) | {"figures": {name: _stated(of) for name, of in row.figures.items()}} for row in rows],
        "t3_against_rivals": [] if ours is None else [d._asdict() for d in differences(ours, rivals)],
        "cost_ratio": cost_ratio(rows),
        "config": config,
        "machines": machines(rows),
        "limits": LIMITS,
    }
    return json.dumps(_plain(content), indent=1, default=str) + "\n"


def _stated(of: Figure) -> dict[str, Any]:
    """A figure without its draws, which follow from the values by question in each trial's `metrics.json`."""
    return {name: value for name, value in of._asdict().items() if name != "draws"}


def _plain(value: Any) -> Any:
    """NaN as null: it is no JSON."""
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    return None if isinstance(value, float) and math.isnan(value) else value
