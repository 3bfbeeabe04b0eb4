"""`t3 generate` and `t3 chat`: what they take as prompts, how they batch, and where they stop."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from support.ledger_parts import greedy, make_place
from support.tiny import make_llama
from tempertilt.cli import main
from tempertilt.cli.session import Session
from tempertilt.data.examples import ExampleConfig
from tempertilt.models.generation import Decoding

SHORT = ["--max-new-tokens", "4"]


def answers(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["generate", *flags, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    [line] = [line for line in captured.err.splitlines() if "error:" in line]
    assert "Traceback" not in captured.err
    return line


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_the_lines_of_files_and_pipes(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").write_bytes("\ufeffWho?\r\n\r\nWhere\u2028is\x85it?\r\n".encode())
    (tmp_path / "two").write_text("With \x00 and \x0b\n")
    files = ["--prompts-file", str(tmp_path / "one"), "--prompts-file", str(tmp_path / "two")]
    lines = ["Who?", "Where\u2028is\x85it?", "With \x00 and \x0b"]
    assert [row["prompt"] for row in answers(capsys, "--model", str(tiny_dir), *SHORT, *files)] == lines
    assert [row["prompt"] for row in answers(capsys, "--model", str(tiny_dir), *SHORT, *files, "--prompt", "A")] == ["A", *lines]
    data = (tmp_path / "one").read_bytes() + b"caf\xc3\xa9"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    assert [row["prompt"] for row in answers(capsys, "--model", str(tiny_dir), *SHORT)] == [*lines[:2], "café"]


def test_prompts_in_another_encoding_name_the_line(tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["generate", "--model", str(tiny_dir)]
    (tmp_path / "p").write_bytes(b"Who?\ncaf\xe9?\n")
    assert f"{tmp_path / 'p'}:2: not UTF-8 text" in refusal(capsys, *model, "--prompts-file", str(tmp_path / "p"))
    assert "--prompt has half of a surrogate pair" in refusal(capsys, *model, "--prompt", "a\udcff")
    assert "--system-prompt has half" in refusal(capsys, *model, "--prompt", "a", "--system-prompt", "\udcff")
    assert "cannot be read: Is a directory" in refusal(capsys, *model, "--prompts-file", str(tmp_path))


@pytest.mark.integration
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters(tiny_dir: Path, encoding: str) -> None:
    code = "import sys; from tempertilt.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "generate", "--model", str(tiny_dir), "--prompt", "Ж \u2028 é?", *SHORT]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    plain = subprocess.run(command, capture_output=True, env=environment)
    assert plain.returncode == 0 and rb"\u0416" in plain.stdout, plain.stderr
    as_json = subprocess.run([*command, "--json"], capture_output=True, env=environment)
    assert json.loads(as_json.stdout.decode(encoding))[0]["prompt"] == "Ж \u2028 é?"


# --- batches ---------------------------------------------------------------------------------------------------------

PROMPTS = ["Who wrote the book about the river?", "Where?", "What is the title of the first novel?", "Who is she?", "Why?"] * 3


@pytest.mark.parametrize("flags", [[], ["--num-beams", "2", "--num-return-sequences", "2"], ["--do-sample", "--seed", "5"]])
def test_batches_give_what_each_prompt_gives_alone(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    path = tmp_path / "prompts"
    path.write_text("\n".join(PROMPTS))
    sizes: list[int] = []
    plain = Session.answers

    def counting(self: Session, prompts: Any, *rest: Any, **options: Any) -> list[list[str]]:
        sizes.append(len(prompts))
        return plain(self, prompts, *rest, **options)

    monkeypatch.setattr(Session, "answers", counting)
    found = {}
    for size in ("1", "4", "64"):
        sizes.clear()
        options = ["--max-new-tokens", "9", *flags, "--batch-size", size]
        found[size] = answers(capsys, "--model", str(tiny_dir), "--prompts-file", str(path), *options)
        assert sum(sizes) == len(PROMPTS) and max(sizes) == (1 if "--do-sample" in flags else min(int(size), len(PROMPTS)))
    assert [row["prompt"] for row in found["1"]] == PROMPTS
    assert found["1"] == found["4"] == found["64"]
    assert len({tuple(row["answers"]) for row in found["1"]}) >= (2 if "--do-sample" in flags else 5)  # drawn ones may coincide


def test_answers_are_printed_in_order(tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag for prompt in PROMPTS[:4] for flag in ("--prompt", prompt)]
    assert main(["generate", "--model", str(tiny_dir), *flags, *SHORT, "--batch-size", "2"]) == 0
    assert [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("> ")] == PROMPTS[:4]


def test_batches_are_smaller_where_texts_are_long(tiny_dir: Path) -> None:
    session = Session(make_llama(), AutoTokenizer.from_pretrained(tiny_dir), ExampleConfig(), 0)
    prompts = [[5] * n for n in (10, 4000, 20, 3999, 10)]
    assert session.plan_batches(prompts, Decoding(96), 16) == [[1, 3, 2, 0], [4]]
    assert session.plan_batches(prompts, Decoding(96, num_beams=2), 16) == [[1, 3], [2, 0, 4]]
    assert session.plan_batches(prompts, Decoding(96), 2) == [[1, 3], [2, 0], [4]]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretching = Session(make_llama(rope_parameters=rope), session.tokenizer, ExampleConfig(), 0)
    assert stretching.plan_batches(prompts[:2], Decoding(96), 16) == [[1], [0]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0; must be a whole number >= 1"),
        (["--num-return-sequences", "0"], "--num-return-sequences is 0; must be"),
        (["--num-return-sequences", "2"], "--num-return-sequences is 2; needs --do-sample, or as many --num-beams"),
    ],
)
def test_options_out_of_range(tiny_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert message in refusal(capsys, "generate", "--model", str(tiny_dir), "--prompt", "a", *flags)


# --- what the model can't take ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with learned positions, 64 of them."""
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2)
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(path)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


LONG = "Where does the painter live? " * 6


def test_prompts_beyond_the_positions(gpt2_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["generate", "--model", str(gpt2_dir), "--system-prompt", ""]
    message = refusal(capsys, *model, "--prompt", LONG)
    assert (
        message.startswith(f"t3 generate: error: --prompt {LONG[:29] + '…'!r} has ")
        and "the model has positions for 64" in message
    )
    assert "and the model has positions for 64" in refusal(capsys, *model, "--prompt", LONG, "--raw")
    (tmp_path / "p").write_text(f"Who?\n\n{LONG}\n")
    assert f"{tmp_path / 'p'}:3 has " in refusal(capsys, *model, "--prompts-file", str(tmp_path / "p"))
    assert len(answers(capsys, *model[1:], "--prompt", "Who?", "--max-new-tokens", "500")) == 1


def test_a_chat_that_outgrows_the_positions(
    gpt2_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = "Where does the painter live?\n" * 6
    chat = ["chat", "--model", str(gpt2_dir), "--max-new-tokens", "4", "--system-prompt", ""]
    monkeypatch.setattr(sys, "stdin", io.StringIO(talk))
    message = refusal(capsys, *chat)
    assert "the chat has " in message and "the model has positions for 64" in message and "/reset begins again" in message
    terminal = io.StringIO(talk + "/reset\nWho?\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(chat) == 0
    captured = capsys.readouterr()
    assert captured.err.count("/reset begins again") >= 2 and captured.err.count("> ") == 9


def test_a_token_without_an_embedding(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    model = ["--model", str(tmp_path / "model")]
    for flags in ([], ["--raw"]):
        message = refusal(capsys, "generate", *model, "--prompt", "say <|tool|>", *flags)
        assert "--prompt 'say <|tool|>': the model has no embedding for token 320 ('<|tool|>'), only 320 rows" in message
    rows = [{"question": f"Who is {i}?", "answer": "The <|tool|>."} for i in range(3)]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = ["--output-dir", str(tmp_path / "out")]
    message = refusal(capsys, "unlearn", *model, "--forget", str(tmp_path / "f.jsonl"), *out)
    assert f"{tmp_path / 'f.jsonl'}:1: the model has no embedding for token 320" in message
    message = refusal(capsys, "finetune", *model, "--data", str(tmp_path / "f.jsonl"), *out)
    assert f"{tmp_path / 'f.jsonl'}:1: the model has no embedding for token 320" in message
    monkeypatch.setattr(sys, "stdin", io.StringIO("say <|tool|>\n"))
    assert "no embedding for token 320" in refusal(capsys, "chat", *model)


def test_unlearning_near_the_end_of_the_positions(
    gpt2_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Shown answers are cut where positions end; the report is written; the same command again is reused."""
    for name, who in (("forget", "painter"), ("retain", "teacher")):
        rows = [{"question": f"Where does {who} {i} live?", "answer": f"{who} {i} lives by the sea."} for i in range(4)]
        rows.append({"question": f"{LONG} {who}?", "answer": "She does."})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [flag for name in ("forget", "retain") for flag in (f"--{name}", str(tmp_path / f"{name}.jsonl"))]
    command = [
        "unlearn",
        "--model",
        str(gpt2_dir),
        *files,
        "--background",
        "4",
        "--system-prompt",
        "",
        "--epochs",
        "2",
        "--rank",
        "2",
    ]
    command += ["--show", "5", "--output-dir", str(tmp_path / "out"), "-q", "--json"]
    for reused in (False, True):
        assert main(command) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["reused"] is reused and len(report["answers"]) == 8
        assert (tmp_path / "out" / "unlearn.json").is_file() and (tmp_path / "out" / "adapter_config.json").is_file()
        assert "the model's positions end within 10 of the 10 answers, or before them" in caplog.text


def test_the_parts_of_a_ledger_that_act_here(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))
    place = make_place(tmp_path / "place", tiny_dir)
    place.add("a")
    place.add("b", tenant="acme")
    flags = [
        "--ledger",
        str(place.ledger.directory),
        "--device",
        "cpu",
        "--prompt",
        PROMPTS[0],
        "--raw",
        "--max-new-tokens",
        "12",
    ]

    def expected(*names: str) -> str:
        return greedy(place.alone(*names), place.base.tokenizer, PROMPTS[0], 12).strip()

    for scope, names in (("", "ab"), ("tenant=acme", "ab"), ("tenant=other", "a")):
        [row] = answers(capsys, *flags, "--scope", scope, "--compare")
        assert row["answers"] == [expected(*names)] and row["base_answers"] == [expected()]
    for flag, value in (("--adapter", "x"), ("--reply", "No."), ("--guidance-scale", "2")):
        assert "must be one" in refusal(capsys, "generate", *flags, flag, value)
