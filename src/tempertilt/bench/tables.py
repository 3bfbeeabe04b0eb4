"""The results of a benchmark as CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from tempertilt.bench.scores import HIGHER, Difference, Figure, Row, differences
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

SHOWN = (
    ("score", "score"),
    ("ks_distance", "KS distance"),
    ("forget_quality", "forget quality"),
    ("forget_gap", "forget gap"),
    ("forget_Q_A_Prob", "P(forget)"),
    ("exact_memorization", "exact mem."),
    ("forget_Q_A_ROUGE", "forget ROUGE"),
    ("reference_kl", "KL from reference"),
    ("reference_same_top", "same top token"),
    ("forget_reference_perplexity", "perplexity (reference)"),
    ("forget_ended", "answers ended"),
    ("forget_leaked", "answers leaked"),
    ("forget_leak_rate", "sampled leaked"),
    ("misattribution", "misattribution"),
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
    ("trained_parameters", "trainable parameters"),
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
    "Model utility is TOFU's. Where no answers were generated on retain, real authors and world facts, it is the harmonic mean "
    "of its six likelihood-based parts, and the column says so: not to be compared with TOFU's.",
    "FLOPs are counted from tokens and weights, not measured. Decoding is time with the method over time without; 1 where "
    "trained weights are merged.",
    "Methods at inference leave the knowledge in the weights: these figures are about what the served model says.",
)


def columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The figures that some row has: name and title."""
    titles = {**dict(SHOWN), "utility": utility_title(rows)}
    return [(name, titles[name]) for name, _ in SHOWN if any(name in row.figures for row in rows)]


def utility_title(rows: Sequence[Row]) -> str:
    """What a page calls the column of utility: TOFU's model utility is another figure than that of likelihoods alone."""
    figures = [row.figures for row in rows if {"utility", "likelihood_utility"} <= set(row.figures)]
    if not figures:
        return "utility"
    likelihoods = all(found["utility"].mean == found["likelihood_utility"].mean for found in figures)
    return "utility of likelihoods" if likelihoods else "model utility"


def cost_columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The costs that some row has: name and title."""
    return [(name, title) for name, title in COSTS if any(name in row.costs for row in rows)]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Reference points first, then by score, rows without figures last."""

    def place(row: Row) -> tuple[int, float]:
        if row.name in POINTS:
            return (0, POINTS.index(row.name))
        return (1, -row.figures["score"].mean) if "score" in row.figures else (2, 0.0)

    return sorted(rows, key=place)


def title_of(name: str, title: str = "") -> str:
    """The title of a figure's column, with the arrow that says which way is better."""
    return f"{title or name} {arrow(HIGHER[name])}".strip()


def cell(row: Row, name: str) -> tuple[str, str]:
    """A figure and its interval as text; the interval is empty where there is none."""
    figure = row.figures.get(name)
    if figure is None:
        return ABSENT, ""
    return number(figure.mean), "" if figure.low == figure.high else between(figure.low, figure.high)


def cost(row: Row, name: str) -> str:
    """A cost with as many digits as matter."""
    value = row.costs.get(name)
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


class CostRatio(NamedTuple):
    """T3's unlearning time, that of the cheapest method that trains the model, seconds, and the one over the other.

    `one_machine` says whether both were measured on one; else the ratio says little.
    """

    t3_seconds: float
    cheapest: str
    cheapest_seconds: float
    ratio: float
    one_machine: bool

    def __str__(self) -> str:
        much = f"1/{1 / self.ratio:.1f} of the time" if self.ratio < 1 else f"{self.ratio:.1f} times as long"
        return (
            f"{OURS} unlearns in {self.t3_seconds:.1f} s; the cheapest trained method, {self.cheapest}, in "
            f"{self.cheapest_seconds:.1f} s: {much}{'' if self.one_machine else ', on another machine'}."
        )


def cost_ratio(rows: Sequence[Row]) -> CostRatio | None:
    """T3 against the cheapest trained method, selected settings; None where either has no result."""
    from tempertilt.methods.registry import find_method
    from tempertilt.methods.trained import TrainedMethod

    ours = next((row for row in rows if row.name == OURS and row.costs), None)
    trained = [row for row in rows if row.costs and issubclass(find_method(row.method).method, TrainedMethod)]
    if ours is None or not trained:
        return None
    cheapest = min(trained, key=lambda row: row.costs["unlearn_seconds"])
    times = ours.costs["unlearn_seconds"], cheapest.costs["unlearn_seconds"]
    return CostRatio(times[0], cheapest.name, times[1], times[0] / times[1], ours.machines == cheapest.machines)


class Rivals(NamedTuple):
    """T3 against every other method: names of figures, and for each rival the difference in each figure, None where absent."""

    figures: list[str]
    rows: list[tuple[str, list[Difference | None]]]


def rivals(rows: Sequence[Row]) -> Rivals | None:
    """T3 less each rival, best rival first; None without figures of T3 or of a rival."""
    ours = next((row for row in rows if row.name == OURS and row.figures), None)
    every = [] if ours is None else differences(ours, [row for row in ranked(rows) if row.name not in POINTS])
    if not every:
        return None
    figures = list(dict.fromkeys(difference.figure for difference in every))
    cells = {(difference.rival, difference.figure): difference for difference in every}
    names = dict.fromkeys(difference.rival for difference in every)
    return Rivals(figures, [(name, [cells.get((name, figure)) for figure in figures]) for name in names])


def signed(difference: Difference) -> tuple[str, str]:
    """A difference and its interval as text."""
    return f"{difference.value:+.3f}", f"{difference.low:+.3f} to {difference.high:+.3f}"


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
    shown, priced, ordered = columns(rows), cost_columns(rows), ranked(rows)
    lines = markdown_table(
        ["method", "setting", *(title_of(*column) for column in shown), "seeds"],
        [[row.name, row.label or ABSENT, *(_bracketed(*cell(row, name)) for name, _ in shown), f"{len(row.seeds)}"]
         for row in ordered],
    )  # fmt: skip
    lines += ["", *markdown_table(
        ["method", *(title for _, title in priced)],
        [[row.name, *(cost(row, name) for name, _ in priced)] for row in ordered],
    )]  # fmt: skip
    lines += ["", *_rival_lines(rows), ""]
    lines += [f"- {row.name} has a trial without a result: {failure.splitlines()[0]}" for row in rows for failure in row.failures]
    lines += [f"- {limit}" for limit in LIMITS] + [f"- Run on: {machine}." for machine in machines(rows)]
    return "\n".join(lines) + "\n"


def _bracketed(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _rival_lines(rows: Sequence[Row]) -> list[str]:
    table, ratio = rivals(rows), cost_ratio(rows)
    if table is None:
        return []
    lines = [f"{OURS} less each rival (95 % interval); bold where {OURS} does better, italic where the rival does.", ""]
    titles = ["rival", *map(title_of, table.figures)]
    lines += markdown_table(titles, [[name, *map(_marked, cells)] for name, cells in table.rows])
    return lines if ratio is None else [*lines, "", str(ratio)]


def _marked(difference: Difference | None) -> str:
    if difference is None:
        return ABSENT
    mark = {"first": "**", "second": "*", "open": ""}[difference.better]
    return f"{mark}{_bracketed(*signed(difference))}{mark}"


def to_latex(rows: Sequence[Row]) -> str:
    """A booktabs table of means and half widths of their intervals."""
    shown = columns(rows)
    titles = ["method", *(latex_title(title, HIGHER[name]) for name, title in shown), "unlearn, s"]
    lines = []
    for row in ranked(rows):
        figures = [row.figures.get(name) for name, _ in shown]
        cells = [latex_number(None) if figure is None else latex_number(figure.mean, 1.96 * figure.error) for figure in figures]
        seconds = cost(row, "unlearn_seconds") if row.costs else latex_number(None)
        lines.append([latex_text(row.name), *cells, seconds])
    return latex_table(titles, lines)


def to_json(rows: Sequence[Row], config: dict[str, Any]) -> str:
    """Everything, with the configuration and the machines; each trial's `result.json` has its versions."""
    ours, others = next((row for row in rows if row.name == OURS), None), [row for row in rows if row.name not in POINTS]
    ratio = cost_ratio(rows)
    content = {
        "rows": [asdict(row) | {"figures": {name: _stated(figure) for name, figure in row.figures.items()}} for row in rows],
        "t3_against_rivals": [] if ours is None else [difference._asdict() for difference in differences(ours, others)],
        "cost_ratio": None if ratio is None else ratio._asdict(),
        "config": config,
        "machines": machines(rows),
        "limits": LIMITS,
    }
    return json.dumps(_plain(content), indent=1, default=str) + "\n"


def _stated(figure: Figure) -> dict[str, Any]:
    """A figure without its draws, which follow from the values by question in each trial's `metrics.json`."""
    return {name: value for name, value in figure._asdict().items() if name != "draws"}


def _plain(value: Any) -> Any:
    """NaN as null: it is no JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
