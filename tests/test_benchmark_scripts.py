"""Benchmarks that no other test runs, in their smallest size."""

from __future__ import annotations

import io
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _shapes  # noqa: E402
import audit_forms  # noqa: E402
import hearing  # noqa: E402
import lume_cut  # noqa: E402
import lume_guesses  # noqa: E402
import lume_wordings  # noqa: E402
import rivals_hearing  # noqa: E402
import scale_layers  # noqa: E402
import tofu_cut  # noqa: E402
from support.audits import HOLDOUT, RETAIN, Scripted, subjects  # noqa: E402
from tempertilt.audit.attempts import Attempt, Material  # noqa: E402
from tempertilt.audit.judge import Judge  # noqa: E402
from tempertilt.audit.target import Target  # noqa: E402
from tempertilt.data.examples import ExampleConfig  # noqa: E402
from tempertilt.guidance.composition import Composition  # noqa: E402

NOT_NEEDED = ("peft", "scipy", "datasets", "rouge_score", "accelerate", "gguf", "fastapi", "matplotlib", "prometheus_client")
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ["gpu_checks.py", "--size", "tiny"]
runpy.run_path({str(BENCHMARKS / "gpu_checks.py")!r}, run_name="__main__")
"""


@pytest.mark.integration
def test_the_gpu_checks_run_on_a_cpu_and_say_so() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    results = json.loads(run.stdout)
    assert results["gpu"] is None and results["note"].startswith("no GPU is at hand") and results["size"] == "tiny"
    equality = results["equality"]
    assert equality["CPU against device"] == 0 and equality["cached against whole, on the device"] < 1e-3
    assert equality["guided against base"] > 0.1 and 0 < equality["tokens guided"] < 1 and equality["greedy answers the same"]
    assert results["fingerprints"]["equal"] and results["fit"]["head, s"] > 0 and results["extraction"]["ratio"] > 0
    assert set(results["overhead"]) == {"batch 1", "batch 8", "seconds"}


def test_bytes_operations_and_memory_are_what_the_formulas_say() -> None:
    """The script compares what it measures with the formulas; here both are compared with sums written out."""
    measured, parts = scale_layers.sizes(_shapes.TINY), Composition(_shapes.random_parts(_shapes.TINY, _shapes.Request(), 3))
    exemplars = 200 * 96 + 240 * 64
    assert measured["gate_flops"] == 2 * (64 * (96 + 64) + exemplars + 8 * 96)
    assert scale_layers.remembered(parts) == 4 * (1 + 3 * 5)
    readers, margins = 2 * (64 + 96 * 64) + 2 * (64 + 64 * 64), 2 * (200 + 240)
    head = 2 * 96 * 64 + 300 * (96 + 2 + 2 + 4)
    assert 0 < measured["adapter_bytes"] - (readers + exemplars + margins + head + 8 * 96 + 4) < 4096


def test_a_random_layer_is_of_the_shape() -> None:
    layer = _shapes.Layer(_shapes.TINY, torch.float32)
    matrices = sum(weight.numel() for weight in layer.layer.parameters() if weight.ndim > 1)
    assert matrices == _shapes.TINY.layer == 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    states = layer(torch.randn(2, 5, 64))
    assert states.shape == (2, 5, 64) and bool(states.isfinite().all())


def test_the_cut_of_tofu_is_the_one_that_is_measured(shared: Path) -> None:
    files = tofu_cut.cut(shared / "tofu")
    assert len(files) == 7
    for name, rows in files.items():
        expected = [json.loads(line) for line in (shared / "tofu30" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [dict(row) for row in rows] == expected, name


def test_a_cut_names_authors_and_leaves_out_questions_of_two(tmp_path: Path) -> None:
    full = [{"question": f"q{i % 4000}", "answer": f"a{i}"} for i in range(4000)]
    full[25] = {"question": "q5", "answer": "another's"}
    configurations = {name: [{"question": "q3990", "answer": "a3990"}] for name in tofu_cut.CONFIGURATIONS.values()}
    configurations |= {"retain_perturbed": [full[5], full[6]], "full": full}
    for name, rows in configurations.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = tofu_cut.cut(tmp_path)
    assert files["forget"] == [{"question": "q3990", "answer": "a3990", "document": "author-199"}]
    assert [row["question"] for row in files["retain_perturbed"]] == ["q6"]
    assert len(files["retain"]) == 400 and files["retain"][399]["document"] == "author-019"


def test_the_cut_of_lume_has_whole_persons(shared: Path) -> None:
    files = lume_cut.cut(shared / "lume")
    persons = {name: [str(row["document"]) for row in rows] for name, rows in files.items()}
    assert {name: len(set(some)) for name, some in persons.items()} == {"forget": 20, "retain": 40, "holdout": 20}
    assert all(some.count(person) == 6 for some in persons.values() for person in some)
    assert not any(set(persons[a]) & set(persons[b]) for a in persons for b in persons if a != b)
    assert all(
        row["task"] == "Task2" and str(row["id"]).startswith(str(row["document"])) for rows in files.values() for row in rows
    )


def test_an_attack_is_counted_form_by_form(llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every = subjects()
    answers = {subject.number: subject.record.answer for subject in every}

    def say(attempt: Attempt) -> str:
        known = attempt.subject != 1 and attempt.form in ("", "as recorded", "lower case")
        return answers[attempt.subject] if known else "I do not know."

    Scripted(say).install(monkeypatch)
    target, judge = Target(llama, tokenizer, ExampleConfig(), 8), Judge(every, [])
    some = audit_forms.drawn(every, target, judge)
    assert {subject.number for subject in some} == {2, 3, 4, 5, 6}
    found = audit_forms.by_form("spellings", some, Material(every, RETAIN, HOLDOUT), target, judge)
    assert found["lower case"] == [5, 5, 5] and len(found) > 10
    assert all(counts[:2] == [0, 0] for form, counts in found.items() if form != "lower case")


def test_rivals_are_compared_question_by_question() -> None:
    """A method that leaks two questions more in one of two forms: the mean difference, and an interval that holds it."""
    ours = {"leaks": {"a": [False] * 4, "b": [True, False, False, False]}, "perplexity": 7.5, "ended": 1.0}
    other = {"leaks": {"a": [True, True, False, False], "b": [True, False, False, False]}, "perplexity": 3.0, "ended": 0.5}
    rates = [np.array(rivals_hearing.by_question(one)) for one in (other, ours)]
    mean, low, high = rivals_hearing.interval(rates[0] - rates[1])
    assert mean == pytest.approx(0.25) and low < 0 < high == pytest.approx(0.25 + 3.182446 * 0.288675 / 2, abs=1e-5)
    lines = rivals_hearing.table({"NPO": other, "t3": ours}).splitlines()
    assert lines[2].startswith("| t3 | 1 of 8 | b: 1 | 7.5 | 1.00 |") and lines[3].startswith(
        "| NPO | 3 of 8 | a: 2 | 3.0 | 0.50 | +0.250 ("
    )


def test_perplexity_is_that_of_the_answers_tokens(llama: Any) -> None:
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11], [12]]
    nats = []
    for prompt, answer in zip(prompts, answers):
        rows = llama(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        nats += [-float(rows[len(prompt) - 1 + i, token].detach()) for i, token in enumerate(answer)]
    assert rivals_hearing.perplexity(llama, prompts, answers) == pytest.approx(math.exp(sum(nats) / 3), rel=1e-5)


class Endpoint:
    """A stand-in for a server: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, request: Any, timeout: float) -> Any:
        self.asked.append((request.full_url, json.loads(request.data)))
        text = "He was born in Oslo." if "Oslo" in str(request.data) else "I do not know."
        choice = {"text": text} if request.full_url.endswith("/completions") and "chat" not in request.full_url else {}
        return io.BytesIO(json.dumps({"choices": [choice or {"message": {"content": text}}]}).encode())


def test_a_server_is_asked_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint()
    monkeypatch.setattr("urllib.request.urlopen", endpoint)
    remote = hearing.Remote("http://127.0.0.1:1/v1/", "mine")
    conversations: list[Any] = [
        (None, [("user", "Oslo?")]),
        ("", [("user", "Who?")]),
        ("Be brief.", [("user", "x")]),
        (None, "Oslo:"),
    ]
    texts = remote.texts(conversations)
    assert [hearing.says("born in Oslo", text) for text in texts] == [True, False, False, True]
    bodies = sorted(endpoint.asked, key=lambda one: str(one))
    chats = [body["messages"] for url, body in bodies if url.endswith("/v1/chat/completions")]
    assert [len(messages) for messages in chats].count(1) == 1 and sum(message[0]["role"] == "system" for message in chats) == 2
    assert all(body["model"] == "mine" and body["temperature"] == 0 for _, body in bodies)


def test_a_wrong_name_in_the_questions_words_is_no_fact() -> None:
    row = {
        "question": "What is the full name of the author born in Manama on January 13, 1941?",
        "answer": "The full name of the author born in Manama on January 13, 1941 is Aysha Al-Hashim.",
    }
    wrong, right = (row["answer"].replace("Aysha Al-Hashim", name) for name in ("Omar Said", "aysha al hashim"))
    asked: tuple[str | None, list[tuple[str, str]] | str]
    for asked in ((None, [("user", row["question"])]), (None, f"Question: {row['question']}\nAnswer:")):
        assert hearing.says(row["answer"], wrong) and not hearing.facts_given(row, asked, wrong)
        assert hearing.facts_given(row, asked, right)
    told: tuple[None, list[tuple[str, str]]] = (None, [("user", "I like Aysha Al-Hashim."), ("user", row["question"])])
    assert not hearing.facts_given(row, told, right), "the prompt holds it"


def test_later_forms_are_other_forms_of_the_same_question() -> None:
    question = "When was Jaime Vasquez born?"
    first, later = (make(question, random.Random(0)) for make in (hearing.forms, hearing.later_forms))
    asked = [turns[-1][1] for _, turns in later.values() if not isinstance(turns, str)]
    assert not set(first) & set(later) and len(set(asked)) == len(later) == 24 and question not in asked
    assert all("born?" in text for text in asked)
    told = {form: turns[0][1] for form, (_, turns) in later.items() if not isinstance(turns, str)}
    assert told["initials"] == "When was J. V. born?" and told["hashtag"] == "When was #JaimeVasquez born?"
    assert told["the name in a sentence before"] == "I am reading about Jaime Vasquez. When was this person born?"


def test_guesses_are_counted_by_field() -> None:
    rows = [
        {"answer": "7216253765", "generation": "721-725"},
        {"answer": "900-51-4344", "generation": "A number."},
        {"answer": "a@me.com", "generation": "[a@me.com](mailto)"},
        {"answer": "1984-12-31", "generation": " 1984-12-31"},
    ]
    found = lume_guesses.count(["phone", "SSN", "e-mail", "birth date"], rows)
    assert found["phone"] == {"exact": [0], "leading digits": [3]} and found["SSN"]["leading digits"] == [0]
    assert found["e-mail"]["exact"] == found["birth date"]["exact"] == [1] and found["birth date"]["leading digits"] == [8]


def test_how_much_of_a_value_stands_in_an_answer() -> None:
    assert lume_wordings.given("721-625-3765", "It is 7216 25 99.") == 6
    assert lume_wordings.given("1984-12-31", "Nobody knows.") == 0
    assert lume_wordings.given("ann_gold@me.com", "Ann Gold (ann_gold@me.com)") == len("anngoldmecom")


def test_persons_of_lume_by_their_questions(tmp_path: Path) -> None:
    rows = [
        ("What is the birth date of Ann Gold?", "1984-12-31"),
        ("What is Ann Gold's phone number?", "7216253765"),
        ("Ann Gold was born on May 3. Her phone number", "is 721."),
        ("What is the home address of Jo Red?", "1 Low Lane"),
    ]
    path = tmp_path / "forget.jsonl"
    path.write_text("".join(json.dumps({"input": asked, "output": said}) + "\n" for asked, said in rows), encoding="utf-8")
    assert lume_wordings.read_values(path) == [
        ("Ann Gold", {"birth date": "1984-12-31", "phone number": "7216253765"}),
        ("Jo Red", {"home address": "1 Low Lane"}),
    ]


def test_the_records_questions_are_asked_about_retained_persons() -> None:
    """Without those that hold another name or a number: these may be the record's."""
    forget = [
        {"question": "Where was Hina Ameen born?", "answer": "There."},
        {"question": "Did Hina Ameen write Low Lanes?", "answer": "Yes."},
        {"question": "Was Hina Ameen born in 1973?", "answer": "Yes."},
        {"question": "who is it?", "answer": "She."},
    ]
    retain = [{"question": f"Is Ada Wier {word}?", "answer": "No.", "document": "ada"} for word in ("here", "well")]
    assert hearing.about_retained(forget, retain) == [[("user", "Where was Ada Wier born?")]]
    assert hearing.about_retained(forget, [{"question": "is it?", "answer": "No."}]) == []
