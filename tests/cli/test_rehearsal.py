"""What `t3 unlearn` prints of a rehearsal."""

from __future__ import annotations

from dataclasses import replace

from tempertilt.cli.rehearsal import NOT_TAUGHT, rehearsal_lines
from tempertilt.suites.rehearsal import Choice, Distance, Rehearsal

REHEARSAL = Rehearsal(
    source="holdout",
    records=40,
    unseen=39,
    taught=Distance(3.456, 0.512, 0.521, 0.987),
    unlearned=Distance(2.104, 0.604, 0.083, 0.551),
    reference_auc=0.493,
    answers=24,
    facts=60,
    facts_reference=2,
    facts_taught=57,
    facts_unlearned=3,
    retain_answers=24,
    retain_unchanged=23,
    guidance_scale=1.25,
    choices=(Choice(1.0, 2.2), Choice(1.25, 2.104)),
    seconds={"teach": 60.0},
)


def test_every_figure_stands_in_its_column() -> None:
    lines = rehearsal_lines(REHEARSAL)
    assert lines[0].startswith("rehearsal    40 holdout records that the model had never seen") and max(map(len, lines)) <= 130
    table = {line[13:43].strip(): line[43:].split() for line in lines}
    assert table[""] == ["taught", "unlearned", "reference"]
    assert table["facts that come out"][:5] == ["57", "3", "2", "of", "60,"]
    assert table["KL to the reference, nats"][:3] == ["3.46", "2.10", "0"]
    assert table["same most likely token"] == ["0.51", "0.60", "1"]
    assert table["KS distance of log p"] == ["0.52", "0.08", "0"]
    assert table["membership AUC"][:5] == ["0.99", "0.55", "0.49", "against", "39"]
    assert any("retain answers unchanged: 23 of 24" in line for line in lines)
    assert lines[-1].strip() == "guidance scale 1.25, by the KL, of 1 (2.20 nats), 1.25 (2.10 nats)"


def test_records_that_were_hardly_learned_are_said() -> None:
    lines = rehearsal_lines(replace(REHEARSAL, facts_taught=20, choices=()))
    assert NOT_TAUGHT in lines[-1] and not any("guidance scale" in line for line in lines)
    assert NOT_TAUGHT not in " ".join(rehearsal_lines(REHEARSAL))
