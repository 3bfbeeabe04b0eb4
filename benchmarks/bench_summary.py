"""Print the short table of docs/bench.md and the time that all trials took, from what `t3 bench` wrote.

python bench_summary.py results/bench_small
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

COLUMNS = (
    ("D", "ks_distance_mean", 3),
    ("forget quality", "forget_quality_mean", None),
    ("P(forget)", "forget_Q_A_Prob_mean", 3),
    ("ROUGE(forget)", "forget_Q_A_ROUGE_mean", 2),
    ("P(retain)", "retain_Q_A_Prob_mean", 3),
    ("utility of likelihoods", "likelihood_utility_mean", 3),
    ("unlearn, s", "unlearn_seconds", 0),
    ("decoding", "decoding", 2),
)


def main() -> None:
    """Read table.csv and the trials' results; print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the output folder of t3 bench")
    directory = parser.parse_args().directory
    titles = ["method", "setting", "score", *(title for title, _, _ in COLUMNS), "seeds"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    with (directory / "table.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            score, low, high = (_short(row[f"score_{part}"], 2) for part in ("mean", "low", "high"))
            cells = [row["name"], row["setting"] or "–", f"{score} ({low} to {high})"]
            cells += [_short(row[name], digits) for _, name, digits in COLUMNS]
            print(f"| {' | '.join(cells)} | {len(row['seeds'].split())} |")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("trials/*/result.json")]
    steps = ("load", "unlearn")
    hours = sum(r["evaluation_seconds"]["total"] + sum(r["seconds"][step] for step in steps) for r in results) / 3600
    print(f"\n{len(results)} trials: {hours:.1f} hours of loading, unlearning and evaluation, one trial after the other")


def _short(text: str, digits: int | None) -> str:
    """A number with so many digits; None is for p-values, with one digit where they are small."""
    if not text:
        return "–"
    value = float(text)
    if digits is None:
        return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
