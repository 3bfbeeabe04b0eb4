"""Every bound of the theory against exact evaluation: cases, violations and the worst ratio of each.

python -m benchmarks.theory_sweep [--output FILE]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks._print import header, save
from benchmarks.theory_sweep import TOLERANCE, SweepGrid, sweep


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "theory_sweep.json")
    args = parser.parse_args()
    header("theory sweep: measured / bound of upper bounds, bound / measured of lower bounds")
    started = time.perf_counter()
    grid = SweepGrid()
    summaries = {name: check.summary() for name, check in sweep(grid).items()}
    seconds = time.perf_counter() - started
    for name, of in summaries.items():
        print(f"{name:<56}{of['cases']:>6} cases  worst {of['worst_ratio']:.6f}  median {of['median_ratio']:.2g}")
    violations = sum(of["violations"] for of in summaries.values())
    cases = sum(of["cases"] for of in summaries.values())
    print(f"{violations} violations (ratio above 1 + {TOLERANCE:g}) in {cases} cases, {seconds:.0f} s")
    save(args.output, {"seconds": seconds, "tolerance": TOLERANCE, "grid": asdict(grid), "checks": summaries})


if __name__ == "__main__":
    main()
