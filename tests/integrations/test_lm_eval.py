"""The command `python -m tempertilt.integrations.lm_eval`, on a tiny local task."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from support.warm import run_module, run_warm
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra lm-eval")

MODULE = "tempertilt.integrations.lm_eval"
TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files: {data}
  cache_dir: {cache}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROWS: list[dict[str, Any]] = [
    {"question": f"The painter number {i} wrote", "choices": ["a book", "the sea", "in 1975"], "label": i % 3} for i in range(3)
]


@pytest.fixture()
def adapter(tiny_dir: Path, tmp_path: Path) -> Path:
    head = GuidanceHead(32, 4, range(0, 320, 3))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head.A.normal_(generator=generator)
        head.B.normal_(generator=generator)
    model = T3ForCausalLM.from_base(LlamaForCausalLM.from_pretrained(tiny_dir), head, temperature=1.5, name=str(tiny_dir))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def lm_eval(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Run the command; its exit status and what it printed."""
    status = run_warm(run_module, MODULE, arguments, log=tmp_path / "log.txt")
    return status, (tmp_path / "log.txt").read_text()


@pytest.mark.integration
def test_the_command_knows_the_model_and_scores_with_the_tilt(tiny_dir: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks").mkdir()
    task = TASK.format(data=tmp_path / "rows.jsonl", cache=tmp_path / "datasets")
    (tmp_path / "tasks" / "colours.yaml").write_text(task)
    arguments = ["--model", "t3", "--model_args", f"adapter={adapter}", "--device", "cpu", "--batch_size", "2"]
    arguments += ["--tasks", "colours", "--include_path", str(tmp_path / "tasks")]
    status, output = lm_eval(tmp_path, *arguments, "--output_path", str(tmp_path / "out"), "--log_samples")
    assert status == 0, output
    samples = [json.loads(line) for line in next((tmp_path / "out").rglob("samples_*.jsonl")).read_text().splitlines()]
    assert len(samples) == 3

    model = T3ForCausalLM.from_pretrained(adapter, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    for sample in samples:
        for choice, response in zip(sample["doc"]["choices"], sample["filtered_resps"], strict=True):
            expected = log_likelihood(model, tokenizer, sample["doc"]["question"], " " + choice)
            assert float(response[0]) == pytest.approx(expected, abs=1e-3)
    with model.disable():
        base = log_likelihood(model, tokenizer, ROWS[0]["question"], " " + ROWS[0]["choices"][0])
    assert float(samples[0]["filtered_resps"][0][0]) != pytest.approx(base, abs=1e-2), "the tilt is on"


def log_likelihood(model: T3ForCausalLM, tokenizer: Any, prompt: str, answer: str) -> float:
    whole, start = tokenizer(prompt + answer).input_ids, len(tokenizer(prompt).input_ids)
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(start, len(whole)))


@pytest.mark.integration
def test_an_adapter_that_is_missing_is_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    status, output = lm_eval(tmp_path, "--model", "t3", "--model_args", f"adapter={missing}", "--tasks", "arc_easy")
    assert status == 2 and missing in output.splitlines()[-1] and "Traceback" not in output


def test_without_the_harness_the_extra_is_named(tmp_path: Path) -> None:
    assert run_warm(import_without_lm_eval, log=tmp_path / "log.txt") == 0, (tmp_path / "log.txt").read_text()


def import_without_lm_eval() -> int:
    import importlib
    import sys

    sys.modules["lm_eval"] = None  # type: ignore[assignment]
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        print(error)
        return 0 if "tempertilt[lm-eval]" in str(error) else 1
    return 1


def test_no_file_of_the_package_runs_when_python_starts() -> None:
    source = Path(__file__).resolve().parents[2] / "src"
    assert not list(source.rglob("*.pth"))
