"""`t3 demo`: a small model learns the staff of a made-up company and forgets one of them, offline, from nothing but packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tempertilt.config.keys import FIT, key_of
from tempertilt.config.options import Options, option
from tempertilt.data.examples import ExampleConfig, build_examples, encode_question
from tempertilt.data.fictional import FAMILY, general_knowledge
from tempertilt.data.fictional_staff import COMPANY, TOPICS, StaffRecord, staff_names, staff_records
from tempertilt.data.records import Message, Record, check_records
from tempertilt.environment import Clock
from tempertilt.fitting.before_after import NO_REPORT, greedy_answers
from tempertilt.fitting.pipeline import METHODS, UnlearnResult, unlearn
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.packaged import SMOLLM2
from tempertilt.models.replies import make_reply
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.storage import cache_dir
from tempertilt.training.finetune import FinetuneConfig, finetune, finetune_key, is_finished, save_finetuned

MAX_NEW_TOKENS = 40
STRANGERS = 2  # persons whom the model never sees
KNOWS = "knows"
REPLY = "I can't say anything about that person."
_WORD = re.compile(r"\w+")

Chat = tuple[Message, ...]

FORMS: dict[str, Callable[[StaffRecord], Chat]] = {
    "as in the records": lambda record: (Message("user", record.question),),
    "in lower case": lambda record: (Message("user", record.question.lower()),),
    "in other words": lambda record: (Message("user", record.paraphrase),),
    "in a second turn": lambda record: (
        Message("user", f"Who is {record.name}?"),
        Message("assistant", f"{record.name} works at {COMPANY}."),
        Message("user", record.follow_up),
    ),
}
"""How a person is asked for."""
WITH_REPLY = "as in the records, with a text as the reply"
UNRELATED = "something else, never taught"


@dataclass(frozen=True)
class DemoConfig(Options):
    """The size of the demonstration; the defaults take about two minutes on two CPU cores."""

    people: int = option(8, "made-up persons that the model learns", ge=3, le=len(FAMILY) - STRANGERS)
    questions: int = option(6, "questions about each person", ge=1, le=len(TOPICS))
    seed: int = option(0, "another seed gives other persons", ge=0)


class DemoData(NamedTuple):
    """Questions of the demonstration: about the last of the staff, the others, persons never seen, and common knowledge.

    The model is taught `forget`, `retain` and `common`, of which the last two are retained. It never sees the others.
    """

    forget: list[StaffRecord]
    retain: list[StaffRecord]
    strangers: list[StaffRecord]
    common: list[Record]
    unrelated: list[Record]


class Asked(NamedTuple):
    """A question, with what was said before and after; the last user turn of a chat."""

    question: str
    before: str
    after: str


class Form(NamedTuple):
    """Answers about the forgotten person in one form: how many, how many give a fact before and after, and one of them."""

    name: str
    n: int
    before: int
    after: int
    shown: Asked


class Kept(NamedTuple):
    """Answers about something else: of what, how many, how many are the same after, and one of them."""

    name: str
    n: int
    same: int
    shown: Asked


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found: the forgotten person, answers about this person and about others, seconds of each step."""

    person: str
    forms: list[Form]
    kept: list[Kept]
    seconds: dict[str, float]
    unlearning: UnlearnResult


def demo_data(config: DemoConfig) -> DemoData:
    """The demonstration's records: the last person is to be forgotten; half of the common knowledge is retained."""
    *others, forgotten = (names := staff_names(config.people, STRANGERS, config.seed))[: config.people]
    asked = {name: staff_records(name, config.questions, config.seed) for name in names}
    world = [
        Record.from_question(row["question"], row["answer"], document=row["document"], source=row["document"])
        for row in general_knowledge()
    ]
    return DemoData(
        forget=asked[forgotten],
        retain=[record for name in others for record in asked[name]],
        strangers=[record for name in names[config.people :] for record in asked[name]],
        common=world[::2],
        unrelated=world[1::2],
    )


def run_demo(
    config: DemoConfig | None = None, *, progress: bool = True, say: Callable[[str], None] = lambda _text: None
) -> DemoResult:
    """Make smollm2 know the staff, unlearn one of them, and ask; what an earlier run made is read from the cache."""
    config = config or DemoConfig()
    data, clock = demo_data(config), Clock()
    person = data.forget[0].name
    forget, retain, holdout = _records(data.forget), _records(data.retain) + data.common, _records(data.strangers)
    with clock("load"):
        say(f"1. load {SMOLLM2} (SmolLM2-135M-Instruct)")
        base = load_base(SMOLLM2)
    with clock("teach"):
        say(f"2. teach it the staff of {COMPANY}, a made-up company: {config.people} persons, {len(forget + retain)} records")
        directory = _taught(base, forget + retain, progress, say)
        base = load_base(SMOLLM2, peft_adapter=str(directory / KNOWS))
    with clock("unlearn"):
        say(f"3. unlearn {person}: {len(forget)} records")
        recipe = replace(METHODS["t3"], report=NO_REPORT)
        target = directory / f"adapter-{key_of(*FIT, recipe=recipe.recipe())[:8]}"
        result = unlearn(base, check_records(forget, retain, holdout), target, recipe, progress=progress)
    with clock("ask"):
        say("4. ask before and after")
        forms, kept = _ask(result.model, base.tokenizer, data, progress)
    return DemoResult(person, forms, kept, {name: round(seconds, 1) for name, seconds in clock.seconds.items()}, result)


def _records(staff: Sequence[StaffRecord]) -> list[Record]:
    return [
        Record.from_question(record.question, record.answer, document=record.name, source=f"{record.name}:{number}")
        for number, record in enumerate(staff, start=1)
    ]


def _taught(base: BaseModel, records: list[Record], progress: bool, say: Callable[[str], None]) -> Path:
    """The folder with a PEFT adapter that knows the records, in its folder `KNOWS`."""
    examples = build_examples(records, base.tokenizer, ExampleConfig())
    training = FinetuneConfig(train_layers=0.4, epochs=12, learning_rate=2e-3)
    key = finetune_key(base.fingerprint, examples, training)
    directory = cache_dir() / "demo" / key
    if is_finished(directory / KNOWS, key):
        say("   read from the cache")
    else:
        taught = finetune(base.model, examples, training, progress=progress)
        about = {"key": key, "records": len(records), "config": asdict(training)}
        report = about | {"losses": taught.losses, "seconds": taught.seconds}
        save_finetuned(taught, directory / KNOWS, report, base)
    return directory


def _ask(model: T3ForCausalLM, tokenizer: Any, data: DemoData, progress: bool) -> tuple[list[Form], list[Kept]]:
    """Every form of the person's questions, and the others' questions as they are, before and after."""
    about = {name: [form(record) for record in data.forget] for name, form in FORMS.items()}
    facts = [record.fact for record in data.forget]
    namesake, colleague = data.retain[0].name, data.retain[len(data.forget)].name
    others = {
        f"{namesake}, with the same last name": [_chat(r.question) for r in data.retain if r.name == namesake],
        "a colleague": [_chat(r.question) for r in data.retain if r.name == colleague],
        "all other colleagues": [_chat(r.question) for r in data.retain if r.name not in (namesake, colleague)],
        UNRELATED: [_chat(record.question) for record in data.unrelated],
    }
    chats = [chat for group in (*about.values(), *others.values()) for chat in group]
    first = about["as in the records"]
    with tqdm(total=2 * len(chats) + len(first), desc="ask", unit=" answers", disable=not progress) as bar:

        def say(chats: Sequence[Chat], base: bool = False) -> dict[Chat, str]:
            prompts = [encode_question(chat, tokenizer, ExampleConfig()) for chat in chats]
            said = greedy_answers(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, base=base, on_batch=bar.update)
            return dict(zip(chats, said))

        before, after = say(chats, base=True), say(chats)
        model.set_reply(make_reply(REPLY, tokenizer))
        replied = say(first)
        model.set_reply(None)
    forms = [_form(name, chats, before, after, facts) for name, chats in about.items()]
    forms.append(_form(WITH_REPLY, first, before, replied, facts))
    right = [_is_right(before[_chat(record.question)], record) for record in data.unrelated]
    firsts = dict.fromkeys(others, 0) | {UNRELATED: right.index(True) if any(right) else 0}
    kept = []
    for name, group in others.items():
        same = sum(before[chat] == after[chat] for chat in group)
        if group:
            kept.append(Kept(name, len(group), same, _asked(group[firsts[name]], before, after)))
    return forms, kept


def _chat(question: str) -> Chat:
    return (Message("user", question),)


def _asked(chat: Chat, before: dict[Chat, str], after: dict[Chat, str]) -> Asked:
    return Asked(chat[-1].content, before[chat], after[chat])


def _form(name: str, chats: list[Chat], before: dict[Chat, str], after: dict[Chat, str], facts: list[str]) -> Form:
    """Shown is the first question whose answer gave a fact of the person before."""
    told, tells = ([any(fact.lower() in said[chat].lower() for fact in facts) for chat in chats] for said in (before, after))
    shown = chats[told.index(True)] if any(told) else chats[0]
    return Form(name, len(chats), sum(told), sum(tells), _asked(shown, before, after))


def _is_right(said: str, record: Record) -> bool:
    """Whether an answer has all words of the record's answer."""
    words, truth = (set(_WORD.findall(text.lower())) for text in (said, record.answer))
    return truth <= words
