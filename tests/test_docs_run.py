"""The blocks of README and docs run, page by page, in their order, with a tiny model in place of the model that they name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from support.doc_blocks import Block, blocks_of, shell, write_place
from tempertilt.audit import registry as attacks
from tempertilt.bench.config import read_config
from tempertilt.data.records import load_records
from tempertilt.methods import registry as methods
from tempertilt.models.t3 import T3ForCausalLM

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("**/*.md")) if blocks_of(path))]
NOT_RUN = {
    r"pip (un)?install|python -m venv|\. |make ": "they change the environment",
    r"docker |torchrun |accelerate launch|RAY_ADDRESS|t3 unlearn \.\.\.": "they need Docker, many devices, Ray",
    r"VLLM_|vllm |t3 serve --backend vllm|.*VLLM_CPU": "they need vLLM: see tests/integrations/vllm",
    r"t3 playground": "see tests/playground/test_browser.py",
    r"python -m tempertilt\.integrations\.lm_eval": "see tests/integrations/test_lm_eval.py",
    r"python benchmarks/": "it reads results of this repository, or the hub",
    r"t3 bench .*(--workers|--dry-run)": "hours; see tests/bench",
}  # fmt: skip
"""What is left out, by how a command begins, and why."""

pytestmark = pytest.mark.integration  # a page takes seconds


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def left_out(line: str) -> bool:
    return any(re.match(pattern, line) for pattern in NOT_RUN)


def what_runs(page: Path) -> list[Block]:
    """The blocks, without commands that are left out and without what needs vLLM."""
    blocks = [
        block._replace(text="\n".join(line for line in block.commands if not left_out(line))) if block.language == "sh" else block
        for block in blocks_of(page)
    ]
    return [block for block in blocks if block.text and "from vllm import" not in block.text]


def names_for_python(tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, Any]:
    """What Python blocks take as given."""
    rng = np.random.default_rng(0)
    likelihoods = {f"log_p_{side}": rng.normal(-40, 5, 200) for side in ("retain", "forget")}
    logits = {"logits_retain": rng.normal(4, 1, 200), "logits_forget": rng.normal(-4, 1, 200)}
    model = T3ForCausalLM.from_pretrained(folder / "adapter", device="cpu")
    prompt = tokenizer("Who is Jane Doe?")["input_ids"]
    records = load_records(folder / "person.jsonl")
    return (
        likelihoods | logits | {"model": model, "tokenizer": tokenizer, "prompt_ids": prompt, "records": records, "torch": torch}
    )


def without_own(patch: pytest.MonkeyPatch) -> None:
    """Registries without what the pages register, which other tests register, too."""
    for registry, everything, name, own in (
        (methods, methods.methods, "_METHODS", "Uniform"),
        (attacks, attacks.attacks, "_ATTACKS", "crossword"),
    ):
        patch.setattr(registry, name, {key: entry for key, entry in everything().items() if key != own})


@pytest.fixture(scope="module")
def whole_place(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TEMPERTILT_CACHE", str(folder / "cache"))
        write_place(folder, tiny_dir)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if what_runs(page)], ids=page_id)
def test_every_block_of_the_page_runs(
    page: Path, whole_place: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, blocks = tmp_path / "place", what_runs(page)
    without_own(monkeypatch)
    shutil.copytree(whole_place, folder)
    made = re.findall(r"--output-dir (\S+)", " ".join(block.text for block in blocks))
    for name in made:
        shutil.rmtree(folder / name, ignore_errors=True)
    for place in shell(folder, monkeypatch):
        given: dict[str, Any] = {}
        for block in blocks:
            if block.language == "python" and not given:
                given = names_for_python(tokenizer, folder)
            place.run(block, given)


def test_the_benchmark_with_a_method_of_ones_own_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    code, content = (re.search(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for kind in ("python", "yaml"))
    assert code and content and (ROOT / "examples" / "uniform.py").read_text(encoding="utf-8").endswith(code[1])
    (tmp_path / "bench.yaml").write_text(content[1])
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # a plugin is loaded once for each file: other tests have that one
    monkeypatch.chdir(tmp_path)
    without_own(monkeypatch)
    config = read_config(tmp_path / "bench.yaml")
    assert {contender.name for contender in config.contenders} >= {"Uniform", "NPO", "t3"}
    assert len(next(contender for contender in config.contenders if contender.name == "Uniform").settings) == 2


def test_most_commands_run() -> None:
    every = [line for page in PAGES for block in blocks_of(page) if block.language == "sh" for line in block.commands]
    run = [line for line in every if not left_out(line)]
    assert len(run) > 0.6 * len(every) and sum(line.startswith("t3 ") for line in run) > 40
