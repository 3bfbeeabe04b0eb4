"""Background text: what it is made of, what is left out, and its cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tempertilt.fitting.background as background
from tempertilt.data.examples import Example, ExampleConfig
from tempertilt.errors import TemperTiltError
from tempertilt.fitting.background import BackgroundConfig, background_examples, question_frame
from tempertilt.models.base import load_base

CONFIG = BackgroundConfig(background=6, background_tokens=12)


def texts(examples: list[Example]) -> list[list[int]]:
    return [example.input_ids.tolist() for example in examples]


def test_chats_of_the_model_in_the_frame_of_its_template(tiny_dir: Path) -> None:
    base = load_base(str(tiny_dir))
    head, tail = question_frame(base.tokenizer, ExampleConfig())
    found = background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), progress=False)
    assert len(found) == 6 and len({example.document for example in found}) == 6
    for example in found:
        ids, start = example.input_ids.tolist(), int(example.scored.argmax())
        assert ids[: len(head)] == head and ids[start - len(tail) : start] == tail and example.scored[start:].all()
    again = background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), progress=False)
    assert texts(again) == texts(found)


@pytest.mark.parametrize("spare", [2, 3, 9])
def test_questions_leave_positions_for_their_answers(tiny_dir: Path, spare: int) -> None:
    base = load_base(str(tiny_dir))
    head, tail = question_frame(base.tokenizer, ExampleConfig())
    base.model.config.max_position_embeddings = positions = len(head) + len(tail) + spare
    base.model.register_forward_hook(lambda _m, _i, out: out.logits.__setitem__((..., 2), -1e4))  # never stops by itself
    short = background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), progress=False)
    assert {len(example) for example in short} == {positions} and all(example.n_scored >= 1 for example in short)


def test_text_that_shares_a_run_with_a_forget_record_is_left_out(tiny_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = load_base(str(tiny_dir))
    found = background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), progress=False)
    forget = found[2]
    with caplog.at_level(logging.WARNING, "tempertilt"):
        fewer = background_examples(base.model, base.tokenizer, [forget], CONFIG, ExampleConfig(), progress=False)
    left = [example.document for example in fewer]
    assert found[2].document not in left and "left out" in caplog.text


def test_the_frame_is_not_what_a_text_is_about() -> None:
    head, tail = [5] * 20, [6] * 20
    question, answer = np.arange(100, 110), np.arange(200, 210)

    def example(question: np.ndarray, answer: np.ndarray) -> Example:
        ids = np.concatenate([head, question, tail, answer]).astype(np.int32)
        return Example(ids, np.arange(len(ids)) >= len(ids) - len(answer), "f", "f", 0)

    runs = background._runs(example(question, answer), head, tail)
    assert not runs & background._runs(example(question + 20, answer + 20), head, tail)
    assert runs & background._runs(example(question, answer + 20), head, tail)
    assert runs & background._runs(example(question + 20, answer), head, tail)
    assert background._runs(Example(answer, np.arange(10) >= 1, "t", "t", 0), head, tail)  # plain text has no frame


def test_what_was_written_once_is_read_again(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "cache_dir", lambda: tmp_path)
    base = load_base(str(tiny_dir))
    made = [
        background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), fingerprint=fingerprint, progress=False)
        for fingerprint in (base.fingerprint, None)
    ]
    monkeypatch.setattr(background, "generate_ids", None)
    read = background_examples(
        base.model, base.tokenizer, [], CONFIG, ExampleConfig(), fingerprint=base.fingerprint, progress=False
    )
    assert texts(read) == texts(made[0]) == texts(made[1])
    with pytest.raises(TypeError):  # another model's text is not taken
        background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), fingerprint="other", progress=False)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "list", "binary", "null"])
def test_a_damaged_cache_file_is_written_anew(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    monkeypatch.setattr(background, "cache_dir", lambda: tmp_path)
    base = load_base(str(tiny_dir))

    def examples() -> list[Example]:
        options = {"fingerprint": base.fingerprint, "progress": False}
        return background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), **options)

    made = texts(examples())
    [path] = (tmp_path / "background").iterdir()
    whole = path.read_bytes()
    digit = next(chr(byte).encode() for byte in whole if chr(byte) in "123456789")
    damaged = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "changed": whole.replace(digit, b"0", 1),
        "list": b"[1, 2]\n",
        "binary": b"\xff\xfe\x00",
        "null": b"null",
    }
    path.write_bytes(damaged[damage])
    assert texts(examples()) == made and "is damaged: it is written anew" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_file_that_must_not_be_read_is_named(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(background, "cache_dir", lambda: tmp_path)
    base = load_base(str(tiny_dir))
    options = {"fingerprint": base.fingerprint, "progress": False}
    background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), **options)
    [path] = (tmp_path / "background").iterdir()
    unreadable(path)
    with pytest.raises(TemperTiltError, match=r"cannot read .*: Permission denied"):
        background_examples(base.model, base.tokenizer, [], CONFIG, ExampleConfig(), **options)
