"""Greedy answers of an unlearned model beside those of the model before, from two runs of `t3 eval --suite tofu`.

    python benchmarks/greedy_answers.py BEFORE AFTER

Verbatim: the greedy answer is the true one, word for word. Unchanged: the greedy answer is the one of the model before, letter
for letter. Over every question of a split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tempertilt.suites.tofu import read_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    runs = [read_log(path) for path in (args.before, args.after)]
    print(f"{'split':<14}    n  verbatim before  after  unchanged")
    for split in ("forget", "retain", "real_authors", "world_facts"):
        before, after = (run[split] for run in runs)
        verbatim = [
            sum(s.generation is not None and s.generation.strip() == s.answer.strip() for s in of) for of in (before, after)
        ]
        same = sum(a.generation == b.generation for a, b in zip(before, after))
        print(f"{split:<14} {len(after):>4}  {verbatim[0]:>15}  {verbatim[1]:>5}  {same:>9}")


if __name__ == "__main__":
    main()
