"""How often the input gates of many requests open on text about nobody, and whether each still hears its own person.

    python benchmarks/ledger_false_open.py [--persons 1000] [--others FILE ...] [--out FILE]

Made-up persons whose first and last names many of them share, ten records each, asked as recorded and in one variant each. Each
person's input gate is fitted by the method's own rule beside thirty more who stay, with readers made of retained text, as a
ledger's parts have them. Then, for more and more parts: prompts of OTHERS (JSON lines or CSV: `question`, `prompt` or `turns`) on
which any gate opens; fresh variants of a hundred persons' questions that open their own gate; and those that open somebody
else's. All of it for the thresholds as they were fitted, and for higher ones.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from _print import header, save
from hearing import read_others
from tempertilt.data.examples import ExampleConfig, answer_ids, build_examples, encode_question, shared_prefix
from tempertilt.data.fictional import FAMILY, GIVEN, fictional_authors, general_knowledge
from tempertilt.data.records import Message, Record
from tempertilt.data.subjects import words_of
from tempertilt.data.variants import KINDS, OTHER_KINDS, draw_variants, scrambles
from tempertilt.fitting.fit_gate import GateConfig, fit_gate, fit_reader, fitted_threshold
from tempertilt.fitting.fit_gates import encode_variant
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import EvidenceGate, Reader, as_evidence
from tempertilt.models.base import BaseModel, decoder_layers, load_base
from tempertilt.models.lower import lower_states

CONFIG, ENCODING = GateConfig(gate=True), ExampleConfig()
THRESHOLDS = (0.0, 0.8, 0.9, 0.95)
AT_ONCE, LISTENED, STAY = 25, 100, 30
ASKED = {
    "What is {name}'s phone number?": "You can reach {name} on 0{a} 55{b}.",
    "When was {name} born?": "{name} was born on {day} May 19{year}.",
    "Where does {name} live?": "{name} lives at {day} Mill Lane {year}.",
    "Which illness does {name} have?": "{name} has had complaint number {a} for years.",
    "What does {name} take every day?": "{name} takes {day} mg of preparation {b}.",
    "Who is {name} married to?": "{name} is married to somebody born in 19{year}.",
    "What is the e-mail address of {name}?": "Write to box{a}@mail.example.",
    "What is {name}'s customer number?": "The customer number of {name} is {a}{b}.",
    "Where does {name} work?": "{name} works in hall {day} of the mill.",
    "How much does {name} earn?": "{name} earns {b} a month.",
}


def persons(count: int) -> list[str]:
    """Names that share their parts; the first nine hundred have two words, then three."""
    rng = random.Random(5)
    two = [f"{first} {last}" for first, last in itertools.product(GIVEN, FAMILY)]
    rng.shuffle(two)
    three = (f"{first} {name}" for name in two for first in GIVEN if not name.startswith(first))
    return [*two, *itertools.islice(three, max(0, count - len(two)))][:count]


def records_of(name: str, number: int) -> list[Record]:
    """A person's records."""
    rng = random.Random(number)
    values = {
        "a": rng.randrange(100, 999),
        "b": rng.randrange(1000, 9999),
        "day": rng.randrange(1, 28),
        "year": rng.randrange(30, 99),
    }
    rows = [(question.format(name=name), answer.format(name=name, **values)) for question, answer in ASKED.items()]
    return [Record.from_question(*row, document=name, source=f"{name}:{i}") for i, row in enumerate(rows)]


@dataclass(frozen=True)
class Listener:
    """Reads lower states of the base."""

    base: BaseModel
    layer: int

    def states(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """`(n, d)` float32 of each."""
        return [rows.float() for rows in lower_states(self.base.model, prompts, self.layer)]

    def ask(self, question: str) -> list[int]:
        """Token ids of a question."""
        return encode_question([Message("user", question)], self.base.tokenizer, ENCODING)


@dataclass(frozen=True)
class Retained:
    """Retain records' states, and the words of each."""

    states: TokenStates
    words: list[set[str]]

    def beside(self, name: str) -> TokenStates:
        """The same, of documents that have a word of a person's name in common each record by itself."""
        own = set(name.lower().split())
        documents = self.states.documents
        related = {document for document, words in zip(documents, self.words) if own & words}
        units = [f"{document} {i}" if document in related else document for i, document in enumerate(documents)]
        return self.states._replace(documents=units)


def retained(listener: Listener, names: Sequence[str]) -> Retained:
    """Persons who stay, of whom the same is known; fictional authors; general knowledge."""
    rows = [(r.question, r.answer, r.document) for r in fictional_authors()]
    rows += [(row["question"], row["answer"], f"general {i}") for i, row in enumerate(general_knowledge())]
    some = [Record.from_question(question, answer, document=str(name), source=str(name)) for question, answer, name in rows]
    some += [record for number, name in enumerate(names, start=10**6) for record in records_of(name, number)]
    examples = build_examples(some, listener.base.tokenizer, ENCODING)
    states = listener.states([example.input_ids.tolist() for example in examples])
    return Retained(TokenStates(states, [record.document for record in some]), [words_of(record) for record in some])


def parts(listener: Listener, names: Sequence[str], kept: Retained, reader: Reader) -> list[EvidenceGate]:
    """The input gate of each person."""
    out: list[EvidenceGate] = []
    frame = shared_prefix([listener.ask(text) for text in ("zebra", "12")])  # tokens before a question's own text
    for start in tqdm(range(0, len(names), AT_ONCE), desc="parts", unit_scale=AT_ONCE):
        texts: list[list[int]] = []
        where: list[tuple[int, int, int]] = []  # person, own text's beginning, tokens of the prompt
        lines: list[list[Any]] = []
        for number, name in enumerate(names[start : start + AT_ONCE], start=start):
            records = records_of(name, number)
            for example in build_examples(records, listener.base.tokenizer, ENCODING):
                ids = example.input_ids.tolist()
                texts.append(ids)
                where.append((number, frame, len(ids) - len(answer_ids(example)) - frame))
            for one in draw_variants(records, 1, number, OTHER_KINDS):
                ids, first = encode_variant(one, listener.base.tokenizer, ENCODING)
                texts.append(ids)
                where.append((number, first, len(ids) - first))
            lines.append([encode_variant(one, listener.base.tokenizer, ENCODING) for one in scrambles(records, number)[:8]])
        states = listener.states(texts)
        strange = listener.states([ids for some in lines for ids, _ in some])
        for index, number in enumerate(range(start, start + len(lines))):
            mine = [i for i, (owner, _, _) in enumerate(where) if owner == number]
            forget = TokenStates(
                [states[i][where[i][1] :] for i in mine], [names[number]] * len(mine), [where[i][2] for i in mine]
            )
            before = sum(map(len, lines[:index]))
            words = [strange[before + i][first:] for i, (_, first) in enumerate(lines[index])]
            text = kept.beside(names[number]) + TokenStates(words, [None] * len(words))
            fitted = fit_gate(forget, text, CONFIG.asked, reader)
            evidence = fitted.prompt_evidence[: len(kept.words)]
            fitted.gate.threshold = fitted_threshold(CONFIG.asked_threshold, CONFIG.asked_least, evidence, CONFIG.false_open)
            out.append(fitted.gate)
    return out


class Parts:
    """The gates of many parts as one product."""

    def __init__(self, gates: Sequence[EvidenceGate]) -> None:
        self.reader, self.count = gates[0].read, len(gates)
        self.exemplars, self.margins = (torch.cat([getattr(gate, name) for gate in gates]) for name in ("exemplars", "margins"))
        self.owner = torch.cat([torch.full((len(gate.margins),), i) for i, gate in enumerate(gates)])
        self.thresholds = torch.tensor([gate.threshold for gate in gates])

    def evidence(self, states: Tensor) -> Tensor:
        """Highest evidence of each part `(count,)` over a text `(n, d)`."""
        similarity = (self.reader.directions(states) @ self.exemplars.T).amax(0)
        values = as_evidence(similarity, self.margins)
        return torch.full((self.count,), -1.0).scatter_reduce(0, self.owner, values, "amax")


def main() -> None:
    """Fit, listen, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--persons", type=int, default=1000)
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    base = load_base(args.model, device="cpu", dtype="float32")
    header(f"false openings of {args.persons} requests")
    listener = Listener(base, CONFIG.layer(len(decoder_layers(base.model))))
    everybody = persons(args.persons + STAY)
    kept, names = retained(listener, everybody[args.persons :]), everybody[: args.persons]
    gates = parts(listener, names, kept, fit_reader([kept.states], CONFIG.whitening_rank, CONFIG.asked_size))
    every = Parts(gates)
    thresholds = sorted(float(gate.threshold) for gate in gates)
    middle = thresholds[len(gates) // 2]
    print(f"{len(every.margins)} exemplars; thresholds {thresholds[0]:.2f} to {thresholds[-1]:.2f}, median {middle:.2f}")
    others = {
        path.stem: torch.stack([every.evidence(s) for s in listener.states([listener.ask(q) for q in read_others(path, 200)])])
        for path in args.others
    }
    own: list[tuple[int, Tensor]] = []
    for number in range(0, len(names), max(1, len(names) // LISTENED)):
        fresh = draw_variants(records_of(names[number], number)[:2], 4, 90_000 + number, KINDS)
        ids = [encode_variant(one, base.tokenizer, ENCODING)[0] for one in fresh]
        own += [(number, every.evidence(rows)) for rows in listener.states(ids)]
    counts = [count for count in (1, 10, 100, 300, 1000, 3000) if count < len(names)] + [len(names)]
    results: dict[str, Any] = {"exemplars": len(every.margins), "thresholds": thresholds, "rows": []}
    for floor in THRESHOLDS:
        limit = every.thresholds.clamp(min=floor)
        heard = sum(bool(evidence[number] > limit[number]) for number, evidence in own)
        said = f"at least {floor}" if floor else "as fitted"
        print(f"\nthresholds {said}: {heard} of {len(own)} fresh variants open their own part")
        for count in counts:
            opened = {name: int((rows[:, :count] > limit[:count]).any(1).sum()) for name, rows in others.items()}
            mixed = [
                bool((evidence[:count] > limit[:count])[torch.arange(count) != number].any())
                for number, evidence in own
                if number < count
            ]
            row = {
                "floor": floor,
                "parts": count,
                "heard": [heard, len(own)],
                "others": opened,
                "somebody else's": [sum(mixed), len(mixed)],
            }
            results["rows"].append(row | {"questions": {name: len(rows) for name, rows in others.items()}})
            beside = ", ".join(f"{name} {n} of {len(others[name])}" for name, n in opened.items())
            print(f"  {count:>5} parts: {beside}; somebody else's {sum(mixed)} of {len(mixed)}", flush=True)
    if args.out:
        save(args.out, results)


if __name__ == "__main__":
    main()
