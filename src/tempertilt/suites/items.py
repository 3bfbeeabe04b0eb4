"""Items of a suite, what its plan measures on them, and the tokens of their prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from tempertilt.config.options import Options, option
from tempertilt.data.examples import ExampleConfig, answer_ids, build_examples, encode_prompt, turn_end_id
from tempertilt.data.records import Record
from tempertilt.errors import DataError
from tempertilt.models.limits import check_ids, check_length
from tempertilt.models.scoring import Question

ItemKind = Literal["question", "completion", "text"]


@dataclass(frozen=True)
class Item:
    """A question of a split with its right answer, a paraphrase of it, and wrong ones.

    Attributes:
        answer: empty where there is none: then there is nothing to score.
        source: where it was read.
        kind: "question" (of a chat), "completion" (a prompt and what follows, plain), or "text" (all in `answer`, no question).
        group: which part of its split it belongs to: a task, a person, a subject.
    """

    question: str
    answer: str
    paraphrase: str | None
    perturbed: tuple[str, ...]
    source: str
    kind: ItemKind = "question"
    group: str = ""

    @property
    def content(self) -> dict[str, Any]:
        """What decides how it is measured, JSON-ready."""
        values = asdict(self) | {"source": ""}
        return {name: value for name, value in values.items() if name not in NEWER or value != NEWER[name]}


NEWER = {"kind": "question", "group": ""}
"""Values that a key leaves out: those of before these fields."""


@dataclass(frozen=True)
class MeasureConfig(Options):
    """How samples are measured."""

    max_new_tokens: int = option(200, "length of a generated answer, tokens", ge=1, advanced=True)
    generation_batch: int = option(64, "prompts generated from at a time", ge=1, advanced=True)
    batch_tokens: int = option(0, "positions in a scoring pass; 0 = 1024 on a CPU, 8192 on a GPU", ge=0, advanced=True)
    draws: int = option(0, "answers sampled at temperature 1 for each forget and retain question; 0 = none", ge=0)
    seed: int = option(0, "seed of the sampled answers", ge=0, advanced=True)


@dataclass(frozen=True)
class Plan:
    """Which splits get what.

    Attributes:
        generated: a greedy answer.
        token_level: what is kept of every answer token.
        drawn: sampled answers, and perplexities under the base.
        standardised: standardised log-probabilities of the answer's tokens.
        unended: no end after their answers, which go on in what they were taken from.
        gated: the highest gate value, where the model has gates.
        lengths: tokens of generated answers, where the protocol sets them; `max_new_tokens` where that is less.
        cut: true answers cut to these lengths.
    """

    generated: tuple[str, ...]
    token_level: tuple[str, ...]
    drawn: tuple[str, ...]
    standardised: tuple[str, ...] = ("forget", "holdout")
    unended: tuple[str, ...] = ()
    gated: tuple[str, ...] = ()
    lengths: tuple[tuple[str, int], ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, JSON-ready."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def encoding(self, split: str) -> dict[str, bool]:
        """How the questions of a split become tokens: arguments of `questions_of`."""
        return {"standardise": split in self.standardised, "ended": split not in self.unended}

    def length(self, split: str, config: MeasureConfig) -> int:
        """The most tokens of a generated answer."""
        return min(config.max_new_tokens, dict(self.lengths).get(split, config.max_new_tokens))


def questions_of(
    items: Sequence[Item], tokenizer: Any, examples: ExampleConfig, *, standardise: bool = False, ended: bool = True
) -> list[Question]:
    """Token ids of each item's prompt and answers: the answer, its paraphrase if any, the wrong ones.

    Args:
        standardise: also score the answers' tokens as `AnswerScore.standardised` has it.
        ended: with the token that ends an answer.
    """
    ends = set() if ended else end_ids(tokenizer)
    return [_question(item, tokenizer, examples, standardise, ends) for item in items]


def end_ids(tokenizer: Any) -> set[int]:
    """The tokens that may end an answer."""
    return {end for end in (turn_end_id(tokenizer), tokenizer.eos_token_id) if end is not None}


def _question(item: Item, tokenizer: Any, config: ExampleConfig, standardise: bool, ends: set[int]) -> Question:
    if not item.answer:
        prompt = tuple(encode_prompt(_record(item, ""), tokenizer, config))
        return Question(prompt, (prompt[-1:],))  # an answer is needed, and is not scored
    texts = [item.answer, *([] if item.paraphrase is None else [item.paraphrase]), *item.perturbed]
    examples = build_examples([_record(item, text) for text in texts], tokenizer, config)
    if len(examples) != len(texts):
        raise DataError(f"{item.source}: an answer is longer than max_length ({config.max_length} tokens)")
    prompts = {tuple(example.input_ids[: len(example) - example.n_scored].tolist()) for example in examples}
    if len(prompts) != 1:
        raise DataError(f"{item.source}: the chat template puts other tokens before different answers to one question")
    answers = [tuple(answer_ids(example).tolist()) for example in examples]
    answers = [ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids for ids in answers]
    return Question(prompts.pop(), tuple(answers), int(standardise))


def _record(item: Item, answer: str) -> Record:
    where = {"document": item.source, "source": item.source}
    if item.kind == "text":
        return Record.from_text(answer, **where)
    make = Record.from_completion if item.kind == "completion" else Record.from_question
    return make(item.question, answer, **where)


def cut_answers(split: str, items: Sequence[Item], tokenizer: Any, plan: Plan, config: MeasureConfig) -> Sequence[Item]:
    """The items, their true answers cut to the length of a generated one where the plan has it so.

    As in MUSE (arXiv 2407.06460), the token that some tokenizers put at the beginning of a text counts.
    """
    if split not in plan.cut:
        return items
    length = plan.length(split, config)
    ids = [tokenizer(item.answer).input_ids[:length] for item in items]
    return [replace(item, answer=str(tokenizer.decode(row, skip_special_tokens=True))) for item, row in zip(items, ids)]


def check_questions(model: Any, tokenizer: Any, items: Sequence[Item], questions: Sequence[Question]) -> None:
    """`DataError`, naming where the question was read, if the model can't take the tokens of one with its answers."""
    for item, question in zip(items, questions):
        for ids in ((*question.prompt, *answer) for answer in question.answers):
            check_ids(model, tokenizer, ids, item.source)
            check_length(model, len(ids), item.source)
