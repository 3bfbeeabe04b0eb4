"""The whole method on a tiny model that was taught some records: what is forgotten, what stays, and what is read from disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.tiny import make_llama, teach
from tempertilt.data.examples import Example, ExampleConfig, build_examples, encode_question
from tempertilt.data.records import Message, Record, RecordSets
from tempertilt.errors import AdapterError
from tempertilt.fitting import pipeline
from tempertilt.fitting.background import BackgroundConfig
from tempertilt.fitting.before_after import NO_REPORT, ReportConfig, greedy_answers
from tempertilt.fitting.pipeline import METHODS, REPORT, UnlearnConfig, UnlearnResult, unlearn
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.t3 import T3ForCausalLM

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NAMES = {
    "forget": ("Hina Ameen", "Taro Okada", "Lena Fischer"),
    "retain": ("Ivan Petrov", "Maria Lopez", "John Smith", "Anna Nowak", "Nils Berg", "Rosa Conti", "Jan Visser", "Emma Roy"),
    "holdout": ("Omar Haddad", "Greta Lund", "Paul Martin", "Sara Blum", "Igor Sokol", "Mei Chan"),
}
TOWNS = ("Karachi", "Lisbon", "Toronto", "Warsaw", "Nairobi", "Lima", "Osaka", "Dublin", "Cairo", "Havana", "Quito", "Oslo")
THINGS = ("river", "house", "novel", "sea", "north", "family")
EXAMPLES = ExampleConfig(system_prompt="")


def records(name: str, first: int) -> list[Record]:
    """Three questions about each person."""
    out = []
    for i, person in enumerate(NAMES[name], start=first):
        rows = (
            (f"Where was {person} born?", f"In {TOWNS[i % 12]}."),
            (f"When did {person} move?", f"In {1950 + 7 * i}, to {TOWNS[(3 * i + 5) % 12]}."),
            (f"What did {person} write?", f"The {THINGS[i % 6]} of {TOWNS[(5 * i + 1) % 12]}."),
        )
        out += [Record.from_question(*row, document=person, source=f"{name}.jsonl:{i}") for row in rows]
    return out


@dataclass
class Case:
    """A model that was taught, and what `unlearn` made of it."""

    base: BaseModel
    sets: RecordSets
    result: UnlearnResult
    directory: Path
    config: UnlearnConfig

    def examples(self, name: str) -> list[Example]:
        return build_examples(getattr(self.sets, name), self.base.tokenizer, EXAMPLES)


@pytest.fixture(scope="module")
def case(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("t3")
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    changed.chat_template = TEMPLATE
    sets = RecordSets(records("forget", 0), records("retain", 3), records("holdout", 11), [])
    examples = build_examples(sets.forget + sets.retain, changed, EXAMPLES)
    teach(make_llama(vocab_size=len(changed), hidden_size=48), examples, 50).save_pretrained(folder / "base")
    changed.save_pretrained(folder / "base")
    report = ReportConfig(max_new_tokens=20, hearing_records=2, show=1)
    config = replace(METHODS["t3"], examples=EXAMPLES, background=BackgroundConfig(background=2), report=report)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPERTILT_CACHE", str(folder / "cache"))
        base = load_base(str(folder / "base"))
        yield Case(base, sets, unlearn(base, sets, folder / "out", config, progress=False), folder / "out", config)


def logits_of(model: Any, ids: Any) -> torch.Tensor:
    """`(T, V)` by one whole pass."""
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(ids).long()[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


def mean_log_prob(model: Any, examples: list[Example]) -> float:
    """Of all scored tokens, nats."""
    values: list[float] = []
    for one in examples:
        distribution = logits_of(model, one.input_ids).double().log_softmax(-1)
        values += [float(distribution[t - 1, int(one.input_ids[t])]) for t in np.flatnonzero(one.scored)]
    return float(np.mean(values))


def recalled(case: Case, name: str, base: bool) -> int:
    """Answers that greedy decoding gives word for word."""
    asked = getattr(case.sets, name)
    prompts = [encode_question(item.question, case.base.tokenizer, EXAMPLES) for item in asked]
    answers = greedy_answers(case.result.model, case.base.tokenizer, prompts, max_new_tokens=20, base=base)
    return sum(answer == item.answer for answer, item in zip(answers, asked))


def test_forget_answers_are_as_unlikely_as_unknown_ones(case: Case) -> None:
    before, after = (mean_log_prob(model, case.examples("forget")) for model in (case.base.model, case.result.model))
    unknown = mean_log_prob(case.base.model, case.examples("holdout"))
    assert before > -0.1 and unknown < -2 and after == pytest.approx(unknown, abs=1.0)
    assert recalled(case, "forget", base=True) == len(case.sets.forget) and recalled(case, "forget", base=False) == 0
    facts = case.result.changes.facts
    assert facts is not None and facts.before == facts.facts == 12
    assert facts.before - facts.gone <= 2  # there are twelve towns: of nine guesses one is right now and then
    assert all(fact in TOWNS for leak in facts.leaks for fact in leak.facts), "and no year"


def test_retain_answers_are_the_bases_bit_for_bit(case: Case) -> None:
    for one in case.examples("retain"):
        assert torch.equal(logits_of(case.result.model, one.input_ids), logits_of(case.base.model, one.input_ids))
    assert recalled(case, "retain", base=False) == len(case.sets.retain)


def test_read_from_disk_it_is_the_same(case: Case) -> None:
    again = T3ForCausalLM.from_pretrained(case.directory, device="cpu")
    for one in case.examples("forget") + case.examples("holdout"):
        assert torch.equal(logits_of(again, one.input_ids), logits_of(case.result.model, one.input_ids))


def test_a_later_turn_about_something_else_is_left_alone(case: Case) -> None:
    assert case.result.model.gates is not None and case.result.model.gates.turns is not None
    changed = 0
    for i, item in enumerate(case.sets.retain):
        asked = case.sets.forget[i % len(case.sets.forget)].question
        chat = [Message("user", asked), Message("assistant", "I don't know."), *item.messages]
        [one] = build_examples([Record.from_messages(chat, document="d", source="s")], case.base.tokenizer, EXAMPLES)
        start = max(np.flatnonzero(one.input_ids == case.base.tokenizer.convert_tokens_to_ids("<|user|>")))
        ours, own = (logits_of(model, one.input_ids) for model in (case.result.model, case.base.model))
        assert not torch.equal(ours[:start], own[:start])  # the first turn opens the gate
        changed += not torch.equal(ours[start:], own[start:])
    assert changed == 0


def test_other_holdout_records_are_another_request(case: Case) -> None:
    """They calibrate the estimate, so an adapter that was made with others is not theirs."""
    others = RecordSets(case.sets.forget, case.sets.retain, records("holdout", 8), [])
    with pytest.raises(AdapterError, match="--overwrite"):
        unlearn(case.base, others, case.directory, case.config, progress=False)
    assert unlearn(case.base, case.sets, case.directory, case.config, progress=False).reused


def test_the_report(case: Case) -> None:
    report = json.loads((case.directory / REPORT).read_text())
    assert set(report) == {
        "reused", "seconds", "extraction", "fit", "gate", "estimate", "calibration", "likelihood", "answers", "facts", "heard",
        "heard_of_others", "rehearsal", "environment",
    }  # fmt: skip
    assert set(report["facts"]) == {"records", "facts", "before", "after", "gone", "leaks"}
    assert set(report["heard"][0]) == set(report["heard_of_others"]) == {"kind", "n", "opened", "near"}
    assert report["estimate"]["score"] == "n-grams" and report["gate"]["turns_told"] is True
    assert report["estimate"]["guesses"] == 9 and report["estimate"]["guess_contexts"] > 9
    assert report["likelihood"]["forget"]["unlearned_recalled"] == 0


def test_without_retain_records_ngrams_are_counted_in_background_text(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Example]] = []
    original = pipeline.Estimator

    def estimator(*args: Any, **options: Any) -> Any:
        given.append(args[4])
        return original(*args, **options)

    monkeypatch.setattr(pipeline, "Estimator", estimator)
    report = NO_REPORT
    method = METHODS["t3"]
    fit, alone = replace(method.fit, match_steps=2), replace(method.estimate, guesses=0)
    config = replace(method, examples=EXAMPLES, fit=fit, estimate=alone, background=BackgroundConfig(background=6), report=report)
    result = unlearn(case.base, case.sets._replace(retain=[]), tmp_path / "out", config, progress=False)
    assert given and {one.source for one in given[0]} == {"background"}
    assert result.estimate is not None and "guesses" not in result.estimate
    assert result.changes.facts is None and result.changes.likelihoods == {} and result.changes.heard == ()
