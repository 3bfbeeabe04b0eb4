"""Random edits of a ledger and its adapters, each of which `t3 requests verify` must find.

python ledger_edits.py --edits 1000

A ledger with nine events is copied for each edit. Rows are edited by somebody who takes the triggers away and puts them back, so
that the schema shows nothing. "By content alone" are edits that are found without the checksum of the ledger file's bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _ledgers import make_ledger
from _print import header
from tempertilt.requests import Fault, Ledger
from tempertilt.requests.ledger import verify

COLUMNS = ("time", "by", "kind", "request", "payload", "version", "machine", "previous", "hash")
Edit = Callable[[Path, random.Random], None]


@contextmanager
def without_triggers(directory: Path) -> Iterator[sqlite3.Connection]:
    """The ledger file, open for any change; the triggers are put back at the end."""
    connection = sqlite3.connect(directory / "ledger.sqlite")
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    yield connection
    for _, sql in triggers:
        connection.execute(sql)
    connection.commit()
    connection.close()


def flip_byte(path: Path, rng: random.Random) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def flip_database(directory: Path, rng: random.Random) -> None:
    flip_byte(directory / "ledger.sqlite", rng)


def flip_head(directory: Path, rng: random.Random) -> None:
    flip_byte(directory / "ledger.head", rng)


def part_file(directory: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in (directory / "parts").rglob("*") if path.is_file()))


def flip_adapter(directory: Path, rng: random.Random) -> None:
    flip_byte(part_file(directory, rng), rng)


def delete_file(directory: Path, rng: random.Random) -> None:
    part_file(directory, rng).unlink()


def add_file(directory: Path, rng: random.Random) -> None:
    part_file(directory, rng).with_name("more.bin").write_bytes(rng.randbytes(8))


def swap_parts(directory: Path, rng: random.Random) -> None:
    """Two requests' parts change places."""
    one, other = rng.sample(sorted((directory / "parts").iterdir()), 2)
    one.rename(directory / "aside")
    other.rename(one)
    (directory / "aside").rename(other)


def truncate(directory: Path, rng: random.Random) -> None:
    path = directory / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[: -rng.randrange(1, path.stat().st_size)])


def delete_row(directory: Path, rng: random.Random) -> None:
    """Any row, or all from one on."""
    with without_triggers(directory) as connection:
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        comparison = rng.choice(["=", ">="])
        connection.execute(f"DELETE FROM events WHERE sequence {comparison} ?", (rng.randrange(1, count + 1),))


def delete_last_row(directory: Path, rng: random.Random) -> None:
    with without_triggers(directory) as connection:
        connection.execute("DELETE FROM events WHERE sequence = (SELECT max(sequence) FROM events)")


def swap_rows(directory: Path, rng: random.Random) -> None:
    """Two events change places."""
    with without_triggers(directory) as connection:
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        one, other = rng.sample(range(1, count + 1), 2)
        for old, new in ((one, -1), (other, one), (-1, other)):
            connection.execute("UPDATE events SET sequence = ? WHERE sequence = ?", (new, old))


def change_date(directory: Path, rng: random.Random) -> None:
    with without_triggers(directory) as connection:
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        day = f"20{rng.randrange(10, 25)}-0{rng.randrange(1, 10)}-1{rng.randrange(10)}T09:30:00.000Z"
        connection.execute("UPDATE events SET time = ? WHERE sequence = ?", (day, rng.randrange(1, count + 1)))


def change_column(directory: Path, rng: random.Random) -> None:
    """One character of any column."""
    with without_triggers(directory) as connection:
        rows = connection.execute("SELECT sequence, " + ", ".join(f'"{name}"' for name in COLUMNS) + " FROM events").fetchall()
        sequence, *values = rng.choice(rows)
        place = rng.choice([i for i, value in enumerate(values) if value])
        text = list(values[place])
        at = rng.randrange(len(text))
        text[at] = chr(ord(text[at]) ^ 1)
        connection.execute(f'UPDATE events SET "{COLUMNS[place]}" = ? WHERE sequence = ?', ("".join(text), sequence))


def forge_chain(directory: Path, rng: random.Random) -> None:
    """A changed person, with this event's hash and those of all later ones made anew."""
    with without_triggers(directory) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM events ORDER BY sequence")]
        rows[rng.randrange(len(rows))]["by"] = "somebody else"
        previous = None
        for row in rows:
            content = {name: value for name, value in row.items() if name not in ("hash", "signature")}
            content |= {"payload": json.loads(row["payload"]), "previous": previous}
            previous = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
            row |= {"previous": content["previous"], "hash": previous}
        connection.execute("DELETE FROM events")
        names = list(rows[0])
        connection.executemany(
            f"INSERT INTO events ({', '.join(map(json.dumps, names))}) VALUES ({', '.join('?' * len(names))})",
            [tuple(row.values()) for row in rows],
        )


EDITS: dict[str, Edit] = {
    edit.__name__.replace("_", " "): edit
    for edit in (
        flip_database,
        flip_head,
        flip_adapter,
        delete_file,
        add_file,
        swap_parts,
        truncate,
        delete_row,
        delete_last_row,
        swap_rows,
        change_date,
        change_column,
        forge_chain,
    )
}


def edited(ledger: Path, copy: Path, edit: Edit, rng: random.Random) -> list[Fault]:
    """What `verify` finds in a copy of a ledger after an edit."""
    shutil.copytree(ledger, copy)
    try:
        edit(copy, rng)
        return verify(copy)
    finally:
        shutil.rmtree(copy)


def main() -> None:
    """Edit, verify, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, found, by_content, total = random.Random(args.seed), Counter[str](), Counter[str](), Counter[str]()
    header(f"{args.edits} random edits of a ledger")
    with tempfile.TemporaryDirectory() as work:
        ledger = make_ledger(Path(work)).directory
        print(f"{len(Ledger(ledger).events())} events; as it was made: {verify(ledger) or 'nothing is wrong'}")
        for _ in range(args.edits):
            name = rng.choice(list(EDITS))
            faults = edited(ledger, Path(work) / "copy", EDITS[name], rng)
            total[name] += 1
            found[name] += bool(faults)
            by_content[name] += any("its bytes are not" not in fault.what for fault in faults)
    print("| edit | edits | found | by content alone |\n|---|---|---|---|")
    for name in EDITS:
        print(f"| {name} | {total[name]} | {found[name]} | {by_content[name]} |")
    print(f"| all | {total.total()} | {found.total()} | {by_content.total()} |")
    if found != total:
        raise SystemExit("an edit was not found")


if __name__ == "__main__":
    main()
