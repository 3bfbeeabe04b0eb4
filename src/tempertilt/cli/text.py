"""What the verbs print: before and after, side by side."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from tempertilt.fitting.before_after import Shown, Summary
from tempertilt.metrics.result import MetricResult


def changes(summaries: Mapping[str, Summary], shown: Sequence[Shown]) -> list[str]:
    """Answers before and after, then a table of likelihood and recall; lines."""
    lines = []
    for item in shown:
        lines += [
            f"[{item.set}] {clip(item.question)}",
            f"  before  {clip(item.before)}",
            f"  after   {clip(item.after)}",
            "",
        ]
    if summaries:
        lines += [f"{'set':<9}{'records':>8}{'P(answer) before':>19}{'after':>9}{'greedy recall before':>23}{'after':>9}"]
        for name, s in summaries.items():
            lines += [
                f"{name:<9}{s.n:>8}{s.base_probability:>19.4f}{s.unlearned_probability:>9.4f}"
                f"{_share(s.base_recalled, s.n):>23}{_share(s.unlearned_recalled, s.n):>9}"
            ]
        lines += [
            "P(answer): mean over records of exp(mean log-probability of the answer's tokens). Greedy recall: records whose",
            "answer greedy decoding gives word for word.",
            "",
        ]
    return lines


def labelled(name: str, texts: Sequence[str], width: int = 130) -> list[str]:
    """Texts beside a name of at most 12 letters, wrapped."""
    indent = " " * 13
    body = [line for text in texts for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)]
    return [f"{name:<13}{body[0][13:]}", *body[1:]] if body else []


def metric_table(results: Mapping[str, MetricResult]) -> list[str]:
    """One line for each metric: value, interval, samples, missing ones."""
    lines = [f"{'metric':<28}{'value':>11}  {'95 % interval':<24}{'n':>6}{'missing':>9}"]
    for name, result in results.items():
        interval = "" if result.interval is None else f"{_figure(result.interval[0])} to {_figure(result.interval[1])}"
        arrow = {True: "↑", False: "↓", None: " "}[result.higher_is_better]
        lines.append(f"{name:<28}{_figure(result.value):>11}{arrow} {interval:<24}{result.n:>6}{result.n_missing:>9}")
    lines.append("↑ higher, ↓ lower is better for a model that has unlearned; intervals are as each metric's protocol says")
    return lines + _notes(results)


def _notes(results: Mapping[str, MetricResult]) -> list[str]:
    """What else there is to know of some metrics, a line each."""
    notes = []
    if quality := results.get("forget_quality"):
        notes.append(
            f"forget_quality: KS statistic {quality.details['statistic']:.4f}, n {quality.n} against "
            f"{quality.details['n_reference']}; the floor for these n is {quality.details['floor']:.2e}"
        )
    if leak := results.get("forget_leak_at_n"):
        chances = ", ".join(f"{k}: {_figure(value)}" for k, value in leak.details["by_k"].items())
        bound = _figure(leak.details["upper_bound_95"])
        notes.append(f"leak@k by k: {chances}; at k = {leak.details['k']} at most {bound} (95 % bound)")
    perplexity = results.get("forget_reference_perplexity")
    if perplexity and "ratio" in perplexity.details:
        own, ratio = perplexity.details["reference_own"], perplexity.details["ratio"]
        notes.append(f"forget_reference_perplexity: {ratio:.2f} times that of the reference's own answers, {_figure(own)}")
    return notes


def _figure(value: float) -> str:
    return f"{value:.2e}" if value != 0 and abs(value) < 1e-3 else f"{value:.4f}"


def _share(count: int, n: int) -> str:
    return f"{count}/{n}"


def clip(text: str, width: int = 220) -> str:
    """One line, shortened at a word."""
    return textwrap.shorten(text, width, placeholder=" …") if text.strip() else "(nothing)"


def side_by_side(left: str, right: str, titles: tuple[str, str] = ("base", "unlearned")) -> str:
    """Two texts in columns as wide as the terminal allows, or below each other where it is narrow."""
    width = shutil.get_terminal_size((100, 24)).columns
    if width < 60:
        return f"{titles[0]}: {left}\n{titles[1]}: {right}"
    column = (width - 3) // 2
    columns = [_wrap(f"{titles[0]}\n{left}", column), _wrap(f"{titles[1]}\n{right}", column)]
    height = max(map(len, columns))
    rows = zip(*(lines + [""] * (height - len(lines)) for lines in columns))
    return "\n".join(f"{a:<{column}} | {b}".rstrip() for a, b in rows)


def _wrap(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in (textwrap.wrap(part, width) or [""])]
