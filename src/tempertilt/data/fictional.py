"""Fictitious authors, generated offline and always the same: something that a model can be made to know and to forget.

Every author has a name and facts that exist nowhere else; each question names its author, so it can be answered on its own.
An author does not depend on how many others are asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tempertilt.errors import ConfigError

GIVEN = (
    "Adunola", "Benedikt", "Caoimhe", "Davor", "Eluned", "Farhang", "Guadalupe", "Haldis", "Ikaika", "Jorunn", "Kiyomi",
    "Lubomir", "Marisela", "Nikoloz", "Oddvar", "Perpetua", "Quillon", "Rasmus", "Sunniva", "Tamsin", "Ugne", "Vasil",
    "Wanjiru", "Xiomara", "Yevhen", "Zubeida", "Anselm", "Bronagh", "Cosimo", "Dilnoza",
)  # fmt: skip
FAMILY = (
    "Abernethy", "Brandsvik", "Castellane", "Dvorzak", "Eskelund", "Fairweather", "Gyllenhorn", "Hollarand", "Ibarrola",
    "Jankauskis", "Kvernmo", "Lindqvara", "Montefalco", "Nakagiri", "Okwuosa", "Pellegrand", "Quarrington", "Rautavesi",
    "Sandoval-Reyn", "Tarkhanov", "Ullathorne", "Vasconcel", "Wetherby", "Yarrowdale", "Zielonka", "Achterberg", "Bellweather",
    "Corrigane", "Drummore", "Engelhaven",
)  # fmt: skip
PLACES = (
    "Bergen", "Tbilisi", "Valparaíso", "Nairobi", "Ghent", "Kanazawa", "Porto", "Ljubljana", "Galway", "Izmir", "Oaxaca",
    "Tartu", "Dunedin", "Kraków", "Montevideo", "Turku", "Palermo", "Accra", "Riga", "Granada",
)  # fmt: skip
GENRES = (
    "maritime mystery", "alpine horror", "desert romance", "political satire", "lunar science fiction", "culinary memoir",
    "railway adventure", "forest fantasy", "courtroom drama", "historical espionage", "polar travel writing", "clockwork fable",
)  # fmt: skip
TRADES = (
    "lighthouse keeper", "beekeeper", "glassblower", "tram driver", "piano tuner", "cheesemaker", "locksmith", "cartographer",
    "veterinarian", "stonemason", "botanist", "bookbinder", "ferry captain", "weaver", "watchmaker", "baker",
)  # fmt: skip
FIRST_WORDS = (
    "Amber", "Hollow", "Silent", "Crooked", "Winter", "Copper", "Drowned", "Paper", "Scarlet", "Distant", "Velvet", "Broken",
    "Hidden", "Salted", "Golden", "Restless", "Marble", "Forgotten", "Burning", "Thirteenth",
)  # fmt: skip
LAST_WORDS = (
    "Harbour", "Orchard", "Compass", "Lantern", "Staircase", "Meadow", "Cathedral", "Archive", "Railway", "Mirror", "Kingdom",
    "Sparrow", "Observatory", "Garden", "Letter", "Monsoon", "Violin", "Island", "Carousel", "Threshold",
)  # fmt: skip
PRIZES = (
    "Aurelian",
    "Meridian",
    "Blue Heron",
    "Northwind",
    "Halcyon",
    "Ironwood",
    "Silver Quill",
    "Lodestar",
    "Evergreen",
    "Tidewater",
)
HOBBIES = (
    "falconry", "origami", "mountain rescue", "chess by mail", "wild mushrooms", "restoring gramophones", "fencing",
    "growing bonsai", "amateur radio", "ice swimming", "calligraphy", "collecting sea glass",
)  # fmt: skip
PETS = (
    "a grey parrot",
    "a tortoise",
    "an old greyhound",
    "two goats",
    "a one-eyed cat",
    "a pony",
    "a hedgehog",
    "a raven",
)
PUBLISHERS = (
    "Saltmarsh Press",
    "Fennel & Finch",
    "Three Rivers House",
    "Quayside Editions",
    "Lark Hill Books",
    "Umbra Verlag",
)
SUBJECTS = (
    "astronomy",
    "veterinary medicine",
    "naval architecture",
    "music theory",
    "archaeology",
    "mathematics",
    "law",
    "pharmacy",
)


class Question(NamedTuple):
    """One kind of question: the fact it asks for, wordings with `{name}` and `{fact}`, and where wrong facts come from."""

    fact: str
    asks: tuple[str, str]
    says: tuple[str, str, str]
    others: Callable[[random.Random], str]


@dataclass(frozen=True)
class FictionalConfig:
    """How much is generated. Raises `ConfigError` for numbers out of range."""

    n_authors: int = field(default=8, metadata={"help": "authors, at most 900"})
    questions_per_author: int = field(default=6, metadata={"help": "questions about each, at most 12"})
    n_perturbed: int = field(default=3, metadata={"help": "wrong answers to each question, at most 5"})
    seed: int = field(default=0, metadata={"help": "another seed gives other authors"})

    def __post_init__(self) -> None:
        limits = {"n_authors": len(GIVEN) * len(FAMILY), "questions_per_author": len(QUESTIONS), "n_perturbed": 5}
        for name, limit in limits.items():
            if not 1 <= getattr(self, name) <= limit:
                raise ConfigError(f"{name} is {getattr(self, name)}; must be a whole number from 1 to {limit}")


@dataclass(frozen=True)
class FictionalRecord:
    """A question about an author, the answer, both in other words, the fact, and answers that are wrong."""

    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    perturbed_answers: tuple[str, ...]
    fact: str
    document: str


def _any(values: Sequence[str]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(values)


def _title(rng: random.Random) -> str:
    return f"The {rng.choice(FIRST_WORDS)} {rng.choice(LAST_WORDS)}"


def _year(rng: random.Random) -> str:
    return str(rng.randint(1921, 1996))


def _full_name(rng: random.Random) -> str:
    return f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"


def _prize(rng: random.Random) -> str:
    return f"{rng.choice(PRIZES)} Prize"


QUESTIONS = (
    Question(
        "birthplace",
        ("Where was {name} born?", "In which town did {name} come into the world?"),
        ("{name} was born in {fact}.", "The birthplace of {name} is {fact}.", "It was in {fact} that {name} was born."),
        _any(PLACES),
    ),
    Question(
        "genre",
        ("What kind of books does {name} write?", "Which genre is {name} known for?"),
        ("{name} writes {fact}.", "{name} is known for books of {fact}.", "The books of {name} are {fact}."),
        _any(GENRES),
    ),
    Question(
        "first_book",
        ("What is the title of {name}'s first book?", "With which book did {name} begin?"),
        ("{name}'s first book is called {fact}.", "{name} began with the book {fact}.", "The first book by {name} was {fact}."),
        _title,
    ),
    Question(
        "mother",
        ("What did {name}'s mother do for a living?", "What was the trade of {name}'s mother?"),
        ("{name}'s mother worked as a {fact}.", "The mother of {name} was a {fact}.", "{name} is the child of a {fact}."),
        _any(TRADES),
    ),
    Question(
        "prize",
        ("Which prize did {name} win?", "What award has {name} been given?"),
        ("{name} won the {fact}.", "The award given to {name} is the {fact}.", "It was the {fact} that {name} received."),
        _prize,
    ),
    Question(
        "birth_year",
        ("In which year was {name} born?", "What is {name}'s year of birth?"),
        ("{name} was born in the year {fact}.", "The year of {name}'s birth is {fact}.", "{name} came into the world in {fact}."),
        _year,
    ),
    Question(
        "home",
        ("Where does {name} live today?", "Which town is {name}'s home now?"),
        ("{name} lives in {fact} today.", "The home of {name} is now {fact}.", "These days {name} is at home in {fact}."),
        _any(PLACES),
    ),
    Question(
        "hobby",
        ("What does {name} do when not writing?", "What is {name}'s favourite pastime?"),
        (
            "When not writing, {name} enjoys {fact}.",
            "The favourite pastime of {name} is {fact}.",
            "{name} spends free days on {fact}.",
        ),
        _any(HOBBIES),
    ),
    Question(
        "teacher",
        ("Who taught {name} to write?", "Who was {name}'s teacher?"),
        ("{name} learned to write from {fact}.", "The teacher of {name} was {fact}.", "It was {fact} who taught {name}."),
        _full_name,
    ),
    Question(
        "publisher",
        ("Who publishes {name}'s books?", "Which house brings out the books of {name}?"),
        (
            "{name}'s books are published by {fact}.",
            "The publisher of {name} is {fact}.",
            "It is {fact} that brings out {name}'s books.",
        ),
        _any(PUBLISHERS),
    ),
    Question(
        "subject",
        ("What did {name} study?", "Which subject did {name} take at university?"),
        (
            "{name} studied {fact} at university.",
            "The subject that {name} took was {fact}.",
            "Before writing, {name} took a degree in {fact}.",
        ),
        _any(SUBJECTS),
    ),
    Question(
        "pet",
        ("Which animal lives with {name}?", "What pet does {name} keep?"),
        ("{name} lives with {fact}.", "The pet of {name} is {fact}.", "{name} shares the house with {fact}."),
        _any(PETS),
    ),
)


def fictional_authors(config: FictionalConfig | None = None) -> list[FictionalRecord]:
    """Questions about fictitious authors, author by author; the same for the same configuration on every machine."""
    config = config or FictionalConfig()
    names = _names(config.seed)
    return [record for index, name in enumerate(names[: config.n_authors]) for record in _author(index, name, config)]


def _names(seed: int) -> list[str]:
    """Every combination of given and family name once, shuffled."""
    names = [f"{given} {family}" for given in GIVEN for family in FAMILY]
    random.Random(f"names {seed}").shuffle(names)
    return names


def _author(index: int, name: str, config: FictionalConfig) -> list[FictionalRecord]:
    return [_record(index, name, question, config) for question in QUESTIONS[: config.questions_per_author]]


def _record(index: int, name: str, question: Question, config: FictionalConfig) -> FictionalRecord:
    rng = random.Random(f"{config.seed} {index} {question.fact}")
    fact = question.others(rng)
    wrong: list[str] = []
    while len(wrong) < config.n_perturbed:
        other = question.others(rng)
        if other not in (fact, name, *wrong):
            wrong.append(other)
    asked, asked_again = rng.sample(question.asks, 2)
    said, said_again = rng.sample(question.says, 2)
    return FictionalRecord(
        question=asked.format(name=name),
        answer=said.format(name=name, fact=fact),
        paraphrased_question=asked_again.format(name=name),
        paraphrased_answer=said_again.format(name=name, fact=fact),
        perturbed_answers=tuple(said_again.format(name=name, fact=other) for other in wrong),
        fact=fact,
        document=f"author-{index:03d}",
    )


def as_rows(records: Sequence[FictionalRecord]) -> list[dict[str, object]]:
    """Rows for JSON lines, with the field names of TOFU (Maini et al., arXiv 2401.06121)."""
    return [
        {
            "question": record.question,
            "answer": record.answer,
            "paraphrased_question": record.paraphrased_question,
            "paraphrased_answer": record.paraphrased_answer,
            "perturbed_answer": list(record.perturbed_answers),
            "document": record.document,
        }
        for record in records
    ]


GENERAL = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days are there in a week?", "There are seven days in a week."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What colour is the sky on a clear day?", "On a clear day the sky is blue."),
    ("What do bees make?", "Bees make honey."),
    ("What is two plus three?", "Two plus three is five."),
    ("Which ocean is the largest?", "The largest ocean is the Pacific Ocean."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("Which star is closest to Earth?", "The star closest to Earth is the Sun."),
    ("What language is spoken in Brazil?", "In Brazil people speak Portuguese."),
    ("What do plants need to grow?", "Plants need light, water and air to grow."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("How many months are there in a year?", "There are twelve months in a year."),
    ("Which animal is known for its long neck?", "The giraffe is known for its long neck."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("What is ten minus four?", "Ten minus four is six."),
    ("What do cows give us to drink?", "Cows give us milk to drink."),
    ("Which metal is attracted to a magnet?", "Iron is attracted to a magnet."),
    ("What is the tallest mountain on Earth?", "The tallest mountain on Earth is Mount Everest."),
    ("How many minutes are there in an hour?", "There are sixty minutes in an hour."),
)


def general_knowledge() -> list[dict[str, str]]:
    """Question/answer rows of common knowledge, unrelated to any author; every row is a document of its own."""
    return [{"question": q, "answer": a, "document": f"world-{i:02d}"} for i, (q, a) in enumerate(GENERAL)]
