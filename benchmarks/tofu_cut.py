"""The 30-author cut of TOFU that is measured here: what two cores can do in minutes.

python benchmarks/tofu_cut.py --out tofu30 [--tofu DIR]

From the hub (`locuslab/TOFU`; no model here has seen its holdout05), or from a folder with the files of
its configurations. Retained are the authors 0 to 19, forgotten 190 to 199, which is TOFU's forget05. Each row gets the field
`document`, its author; an author has 20 rows. A question of two authors in the same words is left out of the retain questions.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tempertilt.data.records import load_rows
from tempertilt.storage import write_text

HUB = "locuslab/TOFU"
PER_AUTHOR, RETAINED = 20, 400  # rows
CONFIGURATIONS = {
    "forget": "forget05",
    "holdout": "holdout05",
    "forget_perturbed": "forget05_perturbed",
    "retain_perturbed": "retain_perturbed",
    "real_authors_perturbed": "real_authors_perturbed",
    "world_facts_perturbed": "world_facts_perturbed",
}
"""The file of the cut, and the configuration that it is of."""

Row = Mapping[str, object]


def cut(folder: Path | None) -> dict[str, list[Row]]:
    """The rows of each file; from the hub if no folder is given."""

    def rows(name: str) -> list[Row]:
        source = f"{HUB}:{name}" if folder is None else str(folder / f"{name}.jsonl")
        return [row for _, row in load_rows(source)]

    full = rows("full")
    authors: dict[object, str] = {}
    for i, row in enumerate(full):
        authors.setdefault(row["question"], f"author-{i // PER_AUTHOR:03}")
    twice = {question for question, n in Counter(row["question"] for row in full).items() if n > 1}
    files = {name: rows(configuration) for name, configuration in CONFIGURATIONS.items()}
    files["retain"] = full[:RETAINED]
    files["retain_perturbed"] = [row for row in files["retain_perturbed"] if row["question"] not in twice]
    for name in ("forget", "retain", "forget_perturbed", "retain_perturbed"):
        files[name] = [dict(row) | {"document": authors[row["question"]]} for row in files[name]]
    return files


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tofu", type=Path, help="folder of the files full.jsonl, forget05.jsonl, ...; default: the hub")
    args = parser.parse_args()
    files = cut(args.tofu)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_text(args.out / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
