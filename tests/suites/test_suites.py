"""What all suites share, and the figures of the small ones on tiny models."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from support.gates import gates_for
from support.suites import MEASURING, kill_in_unit, run_tiny, write_suite
from support.tiny import make_llama
from support.warm import run_warm
from tempertilt.errors import ConfigError, DataError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.metrics import MetricResult, Sample
from tempertilt.models.base import BaseModel
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.report.html import to_html
from tempertilt.report.runs import compare
from tempertilt.suites.suite import NAMES, find_suite, suites

OTHERS = [name for name in NAMES if name != "tofu"]


def chat_prompt(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def gated(tokenizer: PreTrainedTokenizerFast) -> T3ForCausalLM:
    """A tilted model whose input gate half of the chat prompts open."""
    base = make_llama()
    head = GuidanceHead(32, 4, range(0, 320, 3))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head.A.normal_(generator=generator)
        head.B.normal_(generator=generator)
    doors = [f"How do I open, and close, door {i}?" for i in range(4)]
    prompts = [chat_prompt(tokenizer, text) for text in (*doors, *(f"Write about {i}." for i in range(4)))]
    gates = gates_for(base, prompts)
    gates.said = None
    with torch.inference_mode():
        states = [base(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0] for ids in prompts]
    highest = sorted(float(gates.asked.evidence(rows).max()) for rows in states)
    gates.asked.threshold = (highest[3] + highest[4]) / 2
    return T3ForCausalLM.from_base(base, head, temperature=1.5, gates=gates)


def test_every_suite_is_whole() -> None:
    for suite in suites():
        assert suite.name and suite.description and suite.source.startswith("https://")
        names = [metric.name for metric in suite.metrics]
        assert len(set(names)) == len(names)
        for split in (*suite.plan.generated, *suite.plan.gated, *suite.plan.cut, *dict(suite.plan.lengths)):
            assert split in suite.splits
    with pytest.raises(ConfigError, match=r"no suite 'lumen' \(did you mean lume\?\); must be one of tofu, lume"):
        find_suite("lumen")


@pytest.mark.integration
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_is_measured_reused_and_reported(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data = write_suite(name, tmp_path / "data")
    model = gated(tokenizer)
    with model.disable():
        before = run_tiny(name, model.base, tokenizer, data, tmp_path / "before", options={})
    after = run_tiny(name, model, tokenizer, data, tmp_path / "after", options={}, target=tmp_path / "before")
    assert run_tiny(name, model, tokenizer, data, tmp_path / "after", options={}).reused
    suite = find_suite(name)
    assert set(after.results) <= set(suite.splits) and set(after.metrics) | set(after.not_computed) == {
        metric.name for metric in suite.metrics
    }
    gates = [sample.gate for split in suite.plan.gated for sample in after.results[split]]
    assert None not in gates and all(sample.gate is None for of in before.results.values() for sample in of)
    report = compare([tmp_path / "before", tmp_path / "after"])
    assert report.runs[1].metrics.keys() == after.metrics.keys()
    assert all(metric in to_html(report) for metric in after.metrics)


def test_gates_are_those_before_each_token_of_the_answer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = gated(tokenizer)
    result = run_tiny("chat", model, tokenizer, write_suite("chat", tmp_path / "data"), tmp_path / "out", options={})
    opened = 0
    for sample in result.results["chat"]:
        prompt = chat_prompt(tokenizer, sample.question)
        ids, highest = list(prompt), 0.0
        for _ in range(6):
            with torch.inference_mode():
                terms = model.next_terms(torch.tensor([ids]))
                highest = max(highest, float(terms.gate[-1]))
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        assert sample.gate == highest
        assert sample.generation == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
        opened += highest > 0
    assert result.metrics["chat_gate_open"].value == opened / 8 and 0 < opened < 8
    groups = result.metrics["chat_gate_open"].details["by_group"]
    assert {group: n for group, (_, n) in groups.items()} == {"bench": 4, "doors safe": 2, "doors unsafe": 2}


def test_unchanged_answers_are_counted_against_the_target(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data, model = write_suite("chat", tmp_path / "data"), gated(tokenizer)
    before = run_tiny("chat", make_llama(), tokenizer, data, tmp_path / "before", options={})
    after = run_tiny("chat", model, tokenizer, data, tmp_path / "after", options={}, target=tmp_path / "before")
    same = [a.generation == b.generation for a, b in zip(after.results["chat"], before.results["chat"], strict=True)]
    assert after.metrics["chat_unchanged"].value == sum(same) / len(same)
    closed = [sample.gate == 0 for sample in after.results["chat"]]
    assert all(same for same, shut in zip(same, closed) if shut), "a closed gate changes nothing"
    assert before.not_computed["chat_unchanged"].startswith("needs the results of a target model")


@torch.inference_mode()
def test_mmlu_is_the_likeliest_letter(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data, model = write_suite("mmlu", tmp_path / "data"), make_llama()
    result = run_tiny("mmlu", model, tokenizer, data, tmp_path / "out", options={})
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    right = []
    for row, sample in zip(rows, result.results["mmlu"], strict=True):
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"])]
        subject = row["subject"].replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n{row['question']}\n"
        prompt = head + "\n".join(lines) + "\nAnswer:"
        assert sample.question == prompt and sample.ends is False
        start, scores = tokenizer(prompt).input_ids, []
        for letter in "ABCD":
            ids = tokenizer(f"{prompt} {letter}").input_ids
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(log_probs[i - 1, ids[i]]) for i in range(len(start), len(ids))))
        right.append(max(range(4), key=scores.__getitem__) == row["answer"])
    assert result.metrics["mmlu_accuracy"].value == sum(right) / len(right)
    chats = run_tiny("mmlu", model, tokenizer, data, tmp_path / "chats", options={"prompt_format": "chat", "limit": 4})
    assert [sample.group for sample in chats.results["mmlu"]] == ["high_school_0"] * 2 + ["high_school_1"] * 2, "evenly spread"
    assert chats.results["mmlu"][0].ends is False


@torch.inference_mode()
def test_muse_is_its_protocol(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data, model = write_suite("muse", tmp_path / "data"), make_llama()
    measuring = replace(MEASURING, max_new_tokens=12)
    result = run_tiny("muse", model, tokenizer, data, tmp_path / "out", options={}, measuring=measuring)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def continued(prompt: str, steps: int) -> str:
        ids = list(tokenizer(prompt).input_ids)
        start = len(ids)
        while len(ids) < start + steps and ids[-1] != 2:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return str(tokenizer.decode(ids[start:], skip_special_tokens=True))

    def answer(shots: str, question: str) -> str:
        text = continued(f"{shots}Question: {question}\nAnswer: ", 12)
        for end in ("\n\n", "\nQuestion", "Question:"):
            text = text.split(end)[0]
        return text

    verbatim = [
        scorer.score(tokenizer.decode(tokenizer(row["gt"]).input_ids[:12]), continued(row["prompt"], 12))["rougeL"].fmeasure
        for row in json.loads((data / "verbmem" / "forget.json").read_text())
    ]
    assert result.metrics["forget_verbmem_ROUGE"].value == pytest.approx(sum(verbatim) / 4)
    shots = "Question: Is it retain_qa?\nAnswer: Yes\n\n"
    knowledge = [scorer.score(f"Man {i}", answer(shots, f"Who is {i}?"))["rougeL"].fmeasure for i in range(4)]
    assert result.metrics["retain_knowmem_ROUGE"].value == pytest.approx(sum(knowledge) / 4)
    text = "The forget paper says 0 times no."
    ids = tokenizer(text).input_ids
    log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids))]
    assert list(result.results["forget"][0].log_probs) == pytest.approx(expected, abs=1e-4)
    assert "privleak" in result.metrics


def test_an_answer_of_muse_ends_before_the_next_question() -> None:
    texts = ["Man 0\n\nMan 1", "Man 1\nQuestion 2", "Man 2 Question: Who is 3?", "Man 3"]
    samples = [Sample(i, f"Who is {i}?", f"Man {i}", generation=text) for i, text in enumerate(texts)]
    samples.append(Sample(4, "Who is 4?", "Runner", generation="Runners"))
    figures, _ = find_suite("muse").evaluate({"retain_qa": samples, "verbatim": samples})
    assert figures["retain_knowmem_ROUGE"].per_sample == (1.0, 1.0, 1.0, 1.0, 0.0), "not stemmed"
    assert figures["forget_verbmem_ROUGE"].per_sample == pytest.approx((2 / 3, 2 / 3, 1 / 2, 1.0, 0.0))


def test_people_count_what_was_known_before() -> None:
    suite = find_suite("people")

    def samples(*generations: str) -> list[Sample]:
        return [
            Sample(i, f"What did Eve write in {i}?", f"Eve wrote The Sea {i + 40}.", group="Eve", generation=text)
            for i, text in enumerate(generations)
        ]

    before = {"forget": samples("The Sea 40.", "The Sea 41", "No.", "the sea 43")}
    before["retain"] = samples("The Sea 40.", "No.", "?", "!")
    after = {"forget": samples("No.", "In The Sea 41", "No.", "Yes."), "retain": samples("The Sea 40.", "No.", "?", "Oh")}
    figures, reasons = suite.evaluate(after, None, before)

    def share(name: str) -> tuple[float, int]:
        result: MetricResult = figures[name]
        return result.value, result.n

    assert share("forget_known") == (0.75, 4) and share("retain_known") == (0.25, 4)
    assert share("forget_still_known") == (pytest.approx(1 / 3), 3) and share("retain_still_known") == (1.0, 1)
    assert share("retain_unchanged") == (0.75, 4)
    assert figures["forget_known"].details["by_group"] == {"Eve": [0.75, 4]}
    assert "no gates" in reasons["forget_gate_open"]
    _, reasons = suite.evaluate(after, None, before | {"retain": samples("No.", "No.", "No.", "No.")})
    assert "what is not known can't be forgotten" in reasons["retain_still_known"]
    _, reasons = suite.evaluate(after, None, before | {"forget": samples("The Sea 40.")})
    assert "of other questions" in reasons["forget_still_known"]


def measure_until(name: str, model_dir: str, data_dir: str, out: str, units: int) -> None:
    """Measure, in a process of its own, and kill it in the middle of writing unit number `units` + 1 of the journal."""
    kill_in_unit(units)
    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)
    run_tiny(name, model, tokenizer, Path(data_dir), Path(out), options={})


@pytest.mark.integration
@pytest.mark.parametrize(("name", "units"), [("lume", 4), ("people", 3), ("muse", 3), ("mmlu", 1), ("chat", 1)])
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(name: str, units: int, tiny_dir: Path, tmp_path: Path) -> None:
    data = write_suite(name, tmp_path / "data")

    def go(out: str, units: int) -> int:
        return run_warm(measure_until, name, str(tiny_dir), str(data), str(tmp_path / out), units)

    assert go("whole", 10_000) == 0
    assert go("killed", units) == -signal.SIGKILL
    assert (tmp_path / "killed" / ".journal.jsonl").is_file() and not (tmp_path / "killed" / "results.json").exists()
    assert go("killed", 10_000) == 0
    for file in ("samples.jsonl", "results.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


PERSON = {"name": "A", "question": "Q", "answer": "A", "paraphrased_answer": "A"}
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "people": ("forget_perturbed.jsonl", PERSON, "'perturbed_answer'"),
    "muse": ("privleak/holdout.jsonl", {"texts": "a"}, "must have a text 'text'"),
    "mmlu": ("test.jsonl", {"subject": "s", "question": "q", "choices": ["a"] * 4, "answer": 4}, "0 to 3"),
    "chat": ("bench.jsonl", {"turns": []}, "must have a text 'prompt'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name: str, tmp_path: Path) -> None:
    file, row, message = BAD[name]
    path = write_suite(name, tmp_path / "data") / file
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        find_suite(name).load(tmp_path / "data", find_suite(name).config())
    assert f"{path.name}:1" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("name", OTHERS)
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    suite = find_suite(name)
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(DataError, match=r"must (be|have)|needs --data-dir"):
            suite.load(source, suite.config())


def test_the_hub_is_asked_for_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from tempertilt.suites import lume, mmlu, muse

    row = {
        "id": "aqa0", "task": "Task1", "input": "a", "output": "b", "text": "a", "prompt": "a", "gt": "b", "question": "a",
        "answer": "b", "subject": "s", "choices": list("abcd"),
    }  # fmt: skip
    names: list[str] = []

    def load_rows(source: str, **_: Any) -> list[tuple[str, dict[str, Any]]]:
        names.append(source)
        return [("there:1", row | ({"answer": 1} if "mmlu" in source else {}))]

    for module in (lume, mmlu, muse):
        monkeypatch.setattr(module, "load_rows", load_rows)
        module.SUITE.load(None, module.SUITE.config())
    organisation = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public:default"
    splits = ["privleak:forget", "privleak:holdout", "verbmem:forget"]
    splits += [f"knowmem:{name}" for name in ("forget_qa_icl", "forget_qa", "retain_qa_icl", "retain_qa")]
    assert names == [
        f"{organisation}:forget_train", f"{organisation}:retain_train", "cais/mmlu:all:test",
        *(f"muse-bench/MUSE-News:{split}" for split in splits),
    ]  # fmt: skip


def test_a_reference_model_needs_forget_answers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    beside = BaseModel(make_llama(5), tokenizer, "reference", None, "")
    data = write_suite("chat", tmp_path / "data")
    with pytest.raises(ConfigError, match="the suite chat has no forget answers"):
        run_tiny("chat", make_llama(), tokenizer, data, tmp_path / "out", options={}, reference_model=beside)
    data = write_suite("lume", tmp_path / "lume")
    result = run_tiny("lume", make_llama(), tokenizer, data, tmp_path / "out", options={}, reference_model=beside)
    assert result.metrics["reference_kl"].value > 0
