"""The command of lm-evaluation-harness with our model, on a tiny local task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

pytest.importorskip("lm_eval")

TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files: {data}
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
ROWS = [
    {"question": f"The painter number {i} wrote", "choices": ["a book", "the sea", "in 1975"], "label": i % 3} for i in range(6)
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


def test_the_command_knows_the_model_and_scores_with_the_tilt(tiny_dir: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "t3", "--device", "cpu", "--tasks", "colours"]
    command += ["--model_args", f"pretrained={tiny_dir},adapter={adapter}", "--include_path", str(tmp_path / "tasks")]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples", "--batch_size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    samples = [json.loads(line) for line in next((tmp_path / "out").rglob("samples_*.jsonl")).read_text().splitlines()]
    assert len(samples) == 6

    model = T3ForCausalLM.from_pretrained(adapter, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    for sample in samples:
        for choice, response in zip(sample["doc"]["choices"], sample["filtered_resps"], strict=True):
            expected = log_likelihood(model, tokenizer, sample["doc"]["question"], " " + choice)
            assert float(response[0]) == pytest.approx(expected, abs=1e-3)
    with model.disable():
        base = log_likelihood(model, tokenizer, ROWS[0]["question"], " " + ROWS[0]["choices"][0])  # type: ignore[arg-type, index, operator]
    assert float(samples[0]["filtered_resps"][0][0]) != pytest.approx(base, abs=1e-2), "the tilt is on"


def log_likelihood(model: T3ForCausalLM, tokenizer: object, prompt: str, answer: str) -> float:
    whole, start = tokenizer(prompt + answer).input_ids, len(tokenizer(prompt).input_ids)  # type: ignore[operator]
    with torch.no_grad():
        law = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(law[i - 1, whole[i]]) for i in range(start, len(whole)))


def test_other_commands_are_left_alone() -> None:
    code = "import sys; print('lm_eval' in sys.modules or 'tempertilt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
