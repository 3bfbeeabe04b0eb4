"""A cut of LUME's Task 2, invented persons with phone number, SSN, e-mail and address: what two cores can do in minutes.

python benchmarks/lume_cut.py --out lume60 --lume DIR

From a folder with LUME's forget.jsonl and retain.jsonl. Forgotten are the first 20 persons of its forget set, retained the first
40 of its retain set, and the next 20 of those are a holdout set that no model here has seen. A person has six rows, a completion
and five questions. Each row gets the field `document`, its person.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from tempertilt.data.records import load_rows
from tempertilt.storage import write_text

TASK = "Task2"
FORGOTTEN, RETAINED, HELD_OUT = 20, 40, 20  # persons
ENDING = 3  # characters of an id that name the row of a person: sc1, qa0, ...

Row = Mapping[str, object]


def persons(path: Path) -> list[list[Row]]:
    """The rows of each person, in the order of the file."""
    found: dict[str, list[Row]] = {}
    for _, row in load_rows(path):
        if row["task"] == TASK:
            person = str(row["id"])[:-ENDING]
            found.setdefault(person, []).append({**row, "document": person})
    return list(found.values())


def cut(folder: Path, share: float = 1.0) -> dict[str, list[Row]]:
    """The rows of each file; of a `share` of the persons who are forgotten and retained."""
    forget, retain = persons(folder / "forget.jsonl"), persons(folder / "retain.jsonl")
    parts = {
        "forget": forget[: round(share * FORGOTTEN)],
        "retain": retain[: round(share * RETAINED)],
        "holdout": retain[RETAINED : RETAINED + HELD_OUT],
    }
    return {name: [row for rows in part for row in rows] for name, part in parts.items()}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lume", type=Path, required=True, help="folder of forget.jsonl and retain.jsonl")
    parser.add_argument("--share", type=float, default=1.0, help="of the persons who are forgotten and retained; 1 is 20 and 40")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in cut(args.lume, args.share).items():
        write_text(args.out / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
