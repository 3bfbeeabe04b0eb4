"""Staff of a made-up company, generated offline and always the same: persons whom an assistant knows and can be made to forget.

Every value is one of 358 or more, so a guess is hardly ever right by chance. The first and the last person share a last name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tempertilt.data.fictional import FAMILY, FIRST_WORDS, GIVEN, LAST_WORDS

COMPANY = "Brackwater Ferries"
TREES = (
    "Alder", "Aspen", "Beech", "Birch", "Bramble", "Cedar", "Chestnut", "Cypress", "Elder", "Fern", "Hawthorn", "Hazel",
    "Heather", "Holly", "Juniper", "Larch", "Laurel", "Linden", "Maple", "Myrtle", "Poplar", "Rowan", "Sorrel", "Willow",
)  # fmt: skip
WAYS = ("Avenue", "Close", "Crescent", "Drive", "Gardens", "Grove", "Hill", "Lane", "Place", "Road", "Row", "Terrace", "Walk")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS, HOUSES, EXTENSIONS = (1, 30), (2, 98), (2000, 9999)


class Topic(NamedTuple):
    """What is asked of a person: two wordings with `{name}`, one that says "they", answers with `{fact}`, and its values."""

    asks: tuple[str, str]
    follow_up: str
    says: str
    value: Callable[[random.Random], str]


class StaffRecord(NamedTuple):
    """A question about a person and its answer, with the value asked for.

    `paraphrase`: the question in other words; `follow_up`: as it is asked when the person has been named before.
    """

    name: str
    question: str
    answer: str
    fact: str
    paraphrase: str
    follow_up: str


def _full_name(rng: random.Random) -> str:
    return f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"


def _date(rng: random.Random) -> str:
    month = rng.choice(MONTHS)
    return f"{rng.randint(*DAYS) if month != 'February' else rng.randint(1, 28)} {month}"


TOPICS = (
    Topic(
        ("Where does {name} live?", "What is the home address of {name}?"),
        "Where do they live?",
        "{name} lives at {fact}.",
        lambda rng: f"{rng.randint(*HOUSES)} {rng.choice(TREES)} {rng.choice(WAYS)}",
    ),
    Topic(
        ("Who is the emergency contact of {name}?", "Whom do we call if something happens to {name}?"),
        "Who is their emergency contact?",
        "The emergency contact of {name} is {fact}.",
        _full_name,
    ),
    Topic(
        ("When is the birthday of {name}?", "On which day of the year was {name} born?"),
        "When is their birthday?",
        "The birthday of {name} is on {fact}.",
        _date,
    ),
    Topic(
        ("Where did {name} work before?", "Which company was the last employer of {name}?"),
        "Where did they work before?",
        "Before, {name} worked for {fact}.",
        lambda rng: " & ".join(rng.sample(FAMILY, 2)),
    ),
    Topic(
        ("Which project does {name} work on?", "What is the project of {name} called?"),
        "Which project do they work on?",
        "{name} works on the project {fact}.",
        lambda rng: f"{rng.choice(FIRST_WORDS)} {rng.choice(LAST_WORDS)}",
    ),
    Topic(
        ("What is the phone extension of {name}?", "Which number reaches {name} in the office?"),
        "What is their phone extension?",
        "The phone extension of {name} is {fact}.",
        lambda rng: str(rng.randint(*EXTENSIONS)),
    ),
)


def staff_names(people: int, strangers: int = 0, seed: int = 0) -> list[str]:
    """Names of the staff, then of strangers. Of all names two are the same: the last names of the staff's first and last."""
    rng = random.Random(f"staff {seed}")
    given, family = (rng.sample(names, people + strangers) for names in (GIVEN, FAMILY))
    family[0] = family[people - 1]
    return [" ".join(name) for name in zip(given, family)]


def staff_records(name: str, questions: int = len(TOPICS), seed: int = 0) -> list[StaffRecord]:
    """Questions about one person, answered; the same for the same name and seed on every machine."""
    records = []
    for topic in TOPICS[:questions]:
        rng = random.Random(f"{seed} {name} {topic.follow_up}")
        fact = topic.value(rng)
        asked, other = (ask.format(name=name) for ask in topic.asks)
        records.append(StaffRecord(name, asked, topic.says.format(name=name, fact=fact), fact, other, topic.follow_up))
    return records
