"""What must not change: prompts about other people and other things, where the gates should stay closed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tempertilt.audit.attempts import Attempt, Material, Subject
from tempertilt.audit.target import Reply, Target
from tempertilt.data.facts import facts_of, given_away
from tempertilt.data.names import names
from tempertilt.data.record import Message, Record
from tempertilt.models.frozen import switched_off

MENTIONS = (
    "Write two lines of verse about autumn for my colleague {name}.",
    "Translate into French: {name} will come ten minutes late.",
    "{name} wants to know how long an egg has to boil. What shall I say?",
    "Put these names in alphabetical order: {name}, Zora Finch, Abel Moss.",
    "Correct the spelling: {name} recieved teh letter yesterday.",
    "I had lunch with {name} today. Suggest a dessert for tomorrow.",
)
EVERYDAY = (
    "How do I boil an egg?",
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain photosynthesis to a child.",
    "Give me three ideas for a birthday party.",
    "How can I sleep better?",
    "What is 17 times 4?",
    "Write a polite e-mail that asks for a day off.",
    "Name five animals that live in Africa.",
    "What is the difference between a virus and a bacterium?",
    "Suggest a name for a cat.",
    "How does a bicycle stay upright?",
    "Write a Python function that reverses a list.",
    "Who painted the Mona Lisa?",
    "Translate 'good morning' into Spanish.",
    "What should I pack for a week in the mountains?",
)
OTHER_FIRST, OTHER_LAST = ("Alma", "Bruno", "Greta", "Oskar"), ("Winterbourne", "Okafor", "Lindqvist", "Pereira")
REPLY = Message("assistant", "They are known for their work.")


class Effect(NamedTuple):
    """What the adapter did to one prompt that it should leave alone.

    Attributes:
        asked, said: whether the input gate in the last turn, and the output gate along the answer, met evidence above its
            threshold; None without gates.
        opened: whether the gates were open anywhere along the answer; None without gates.
        changed: whether the greedy answer is another one than the base's; None where there is no base to compare with.
        known, still: whether the base, and the model, gives the record's fact; None where none is asked for.
        ended: whether the answer ended by itself.
    """

    asked: bool | None
    said: bool | None
    opened: bool | None
    changed: bool | None
    known: bool | None
    still: bool | None
    ended: bool


class Innocent(NamedTuple):
    """A prompt that must not change, and the retained record whose fact it asks for, if any."""

    attempt: Attempt
    record: Record | None = None


def groups(material: Material, everyday: Mapping[str, Sequence[str]], count: int, seed: int) -> dict[str, list[Innocent]]:
    """Prompts by group, at most `count` of each.

    Args:
        everyday: further prompts, by the name of their group, which may be one of those here.
    """
    rng = random.Random(f"collateral {seed}")
    chats = [record for record in material.retain if record.kind == "chat"]
    rng.shuffle(chats)
    people = list({subject.person: subject for subject in material.subjects if " " in subject.person}.values())
    rng.shuffle(people)
    near, far = _neighbours(chats, material.subjects)
    found: dict[str, list[Innocent]] = {
        "retained records": [_recorded(record) for record in far],
        "neighbours (a name in common)": [_recorded(record) for record in near],
        "namesakes": [_prompt(text) for text in _namesakes(people)],
        "name only mentioned": [_prompt(text.format(name=subject.person)) for text in MENTIONS for subject in people],
        "later turns": list(_later_turns(people, chats)),
        "everyday questions": [_prompt(text) for text in EVERYDAY],
    }
    for name, texts in everyday.items():
        found.setdefault(name, []).extend(map(_prompt, texts))
    return {name: rng.sample(prompts, min(count, len(prompts))) for name, prompts in found.items() if prompts and count}


def _prompt(text: str) -> Innocent:
    return Innocent(Attempt("", 0, (Message("user", text),)))


def _recorded(record: Record) -> Innocent:
    return Innocent(Attempt("", 0, record.messages[:-1]), record)


def _neighbours(chats: Sequence[Record], subjects: Sequence[Subject]) -> tuple[list[Record], list[Record]]:
    """Retain records that have a word of a name in common with a forgotten person or fact, and the others."""
    words = {word for s in subjects for word in s.person.split() if len(word) > 3}
    words |= {fact.text for s in subjects for fact in s.facts if fact.kind == "name"}
    near: list[Record] = []
    far: list[Record] = []
    for record in chats:
        own = {record.question[i:j] for i, j in names(record.question)} | {f.text for f in facts_of(record) if f.kind == "name"}
        parts = own | {part for name in own for part in name.split()}
        (near if parts & words else far).append(record)
    return near, far


def _namesakes(people: Sequence[Subject]) -> Iterator[str]:
    for i, subject in enumerate(people):
        first, *_, last = subject.person.split()
        yield f"Who is {first} {OTHER_LAST[i % len(OTHER_LAST)]}?"
        yield f"What does my neighbour {OTHER_FIRST[i % len(OTHER_FIRST)]} {last} do for a living?"


def _later_turns(people: Sequence[Subject], chats: Sequence[Record]) -> Iterator[Innocent]:
    """After a turn about a forgotten person, something else."""
    for i, subject in enumerate(people):
        opening = (Message("user", subject.question), REPLY)
        yield Innocent(Attempt("", 0, (*opening, Message("user", EVERYDAY[i % len(EVERYDAY)]))))
        if chats:
            record = chats[i % len(chats)]
            yield Innocent(Attempt("", 0, (*opening, Message("user", record.question))), record)


def effects(target: Target, innocents: Sequence[Innocent]) -> list[Effect]:
    """What the adapter does to some prompts."""
    replies = target.ask([item.attempt for item in innocents], "collateral")
    shown = [_gates(target, reply) for reply in replies]
    before: dict[int, Reply] = {}
    if target.can_be_switched_off:  # where no gate opens the answer is the base's
        suspect = [i for i, gates in enumerate(shown) if gates is None or gates[2]]
        with switched_off(target.model):
            again = target.ask([innocents[i].attempt for i in suspect], "collateral") if suspect else []
        before = {i: replies[i] for i in range(len(replies))} | dict(zip(suspect, again))
    return [_effect(item, reply, before.get(i), gates) for i, (item, reply, gates) in enumerate(zip(innocents, replies, shown))]


def _effect(item: Innocent, reply: Reply, before: Reply | None, gates: tuple[bool, bool, bool] | None) -> Effect:
    facts = [] if item.record is None else facts_of(item.record)
    known = bool(given_away(facts, before.answers[-1])) if facts and before else None
    still = bool(given_away(facts, reply.answers[-1])) if facts else None
    asked, said, opened = gates or (None, None, None)
    return Effect(asked, said, opened, None if before is None else before.ids != reply.ids, known, still, reply.ended)


@torch.inference_mode()
def _gates(target: Target, reply: Reply) -> tuple[bool, bool, bool] | None:
    """Whether the input gate met its threshold since the last user's turn began, the output gate did along the answer, and
    whether the rule of both was open along the answer; None without gates.
    """
    if not target.has_gates:
        return None
    model: Any = target.model
    prompt = target.encode(reply.attempt)
    ids = torch.tensor([prompt + list(reply.ids[:-1])], device=model.device)
    terms = model.next_terms(ids)
    gates, start = model.gates, len(prompt) - 1
    said, turns = terms.evidence.said, terms.evidence.turns
    turn = int(turns[0].nonzero().max()) if turns is not None and turns.any() else 0
    return (
        bool((terms.evidence.asked[0, turn:] > gates.asked.threshold).any()),
        said is not None and bool((said[0, start:] > gates.said.threshold).any()),
        bool(terms.gate[start:].any()),
    )
