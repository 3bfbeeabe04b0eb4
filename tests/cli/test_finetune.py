"""`t3 finetune`: the folder that it writes is one that others can use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoTokenizer

from support.records import write_jsonl
from support.tiny import question_rows
from tempertilt.cli import main
from tempertilt.models.base import load_base
from tempertilt.training.finetune import PEFT_CONFIG, REPORT, is_finished


def test_the_folder(tiny_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base whose tokenizer has no padding token, named by a relative path."""
    shutil.copytree(tiny_dir, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))
    write_jsonl(tmp_path / "d.jsonl", *question_rows(6, "sea"))
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "d.jsonl", "--output-dir", "out", "--epochs", "3", "--train-batch-size", "3", "-q"]
    assert main(["finetune", "--model", "base", *flags]) == 0

    out = tmp_path / "out"
    peft = json.loads((out / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == str(tmp_path / "base")
    assert peft["target_modules"] == sorted(peft["target_modules"]) != []
    ids = torch.tensor([AutoTokenizer.from_pretrained(out)("What did sea number 1 write?").input_ids])
    other = AutoPeftModelForCausalLM.from_pretrained(out)
    base = load_base("base", peft_adapter="out", device="cpu")
    torch.testing.assert_close(base.model(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert "are not those of" not in caplog.text, "its tokenizer is the base's"
    card = (out / "README.md").read_text()
    assert f"LoRA adapter of {tmp_path / 'base'}" in card and "More Information Needed" not in card
    line = ElementTree.parse(out / "loss.svg").find("{*}polyline")
    assert line is not None and len(line.attrib["points"].split()) == 3 * 2


@pytest.mark.parametrize("text", ["", "[]", "null", '{"key": "x"}'])
def test_a_damaged_report_is_no_finished_run(tmp_path: Path, text: str) -> None:
    (tmp_path / REPORT).write_text(text)
    (tmp_path / PEFT_CONFIG).write_text("{}")
    assert not is_finished(tmp_path, "key")


def test_the_base_is_named_as_the_user_names_it(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias, not the place in our cache."""
    monkeypatch.setattr("tempertilt.models.base.packaged_dir", lambda _alias: tiny_dir)
    write_jsonl(tmp_path / "d.jsonl", *question_rows(3, "sea"))
    flags = ["--data", str(tmp_path / "d.jsonl"), "--output-dir", str(tmp_path / "out"), "--epochs", "1", "-q"]
    assert main(["finetune", "--model", "smollm2", *flags]) == 0
    peft = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == "smollm2"
    assert str(tiny_dir) not in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_on_a_merged_one_is_not_for_the_base(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the output nor the card gives a command that would put it on the base alone; what the card says loads it."""
    write_jsonl(tmp_path / "d.jsonl", *question_rows(6, "sea"))
    flags = ["--model", str(tiny_dir), "--data", str(tmp_path / "d.jsonl"), "--epochs", "4", "--learning-rate", "1e-2", "-q"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["finetune", *flags, "--output-dir", str(first)]) == 0
    assert f"--peft-adapter {first}" in capsys.readouterr().out and "--peft-adapter THIS" in (first / "README.md").read_text()
    assert main(["finetune", *flags, "--output-dir", str(second), "--peft-adapter", str(first)]) == 0
    assert f"--peft-adapter {second}" not in capsys.readouterr().out
    card = (second / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "--peft-adapter" not in card
    names: dict[str, Any] = {"PeftModel": PeftModel, "model": load_base(str(tiny_dir), device="cpu").model}
    exec(code.replace("THIS_DIRECTORY", str(second)), names)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tiny_dir)("What did sea number 1 write?").input_ids])
    base, merged = (
        load_base(str(tiny_dir), peft_adapter=peft_adapter, device="cpu").model for peft_adapter in (None, str(first))
    )
    models = names["model"], PeftModel.from_pretrained(merged, str(second)), PeftModel.from_pretrained(base, str(second))
    loaded, trained, alone = (model(input_ids=ids).logits for model in models)
    torch.testing.assert_close(loaded, trained, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(alone, trained, atol=1e-2)
