"""What is counted of the answers before and after."""

from __future__ import annotations

from support.records import record
from tempertilt.fitting.before_after import Facts, Leak, count_facts

RECORDS = [
    record("Where was Hina Ameen born?", "In Karachi, on May 3, 1984.", "f:1"),
    record("What did Li Wei write?", "She wrote 'Night Train'.", "f:2"),
    record("Who is that?", "That is nobody whom I know.", "f:3"),
]


def test_facts_before_and_after() -> None:
    answers = {
        1: ("Born in Karachi on 3 May 1984.", "Born in Lahore on 1984-05-03."),
        2: ("No idea.", "NIGHT TRAIN, I think."),
        3: ("That is nobody whom I know.", "It is my aunt."),
    }
    assert count_facts(RECORDS, answers) == Facts(
        records=3,
        facts=4,
        before=3,
        after=2,
        gone=2,  # the town and the wording; the title was not said before
        leaks=[
            Leak(1, "f:1", "Where was Hina Ameen born?", ("May 3, 1984",)),
            Leak(2, "f:2", "What did Li Wei write?", ("Night Train",)),
        ],
    )


def test_records_that_were_not_asked_do_not_count() -> None:
    assert count_facts(RECORDS, {2: ("Night Train", "")}) == Facts(1, 1, 1, 0, 1, [])
    assert count_facts(RECORDS, {}) == Facts(0, 0, 0, 0, 0, [])
