"""Several adapters that act together in one engine: tokens and distributions are those of the composed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.gates import gates_for
from support.vllm_engines import greedy, largest_difference, needs_vllm, run_engines
from support.vllm_models import NEW, SAMPLING, VOCAB, prompts, tiny
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.integrations.vllm.options import REPLY_PROCESSOR, hf_overrides
from tempertilt.models.composed import ComposedLM
from tempertilt.models.t3 import T3ForCausalLM

pytestmark = needs_vllm

PARTS = {"one": (0, "last"), "two": (1, "mean"), "three": (2, "last")}
SCHEDULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 5, "enable_chunked_prefill": True, "enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 12, "max_num_seqs": 8, "enable_prefix_caching": False, "disable_log_stats": False},
    "speculating": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    },
}


def write_part(base: Any, place: Path, number: int, pooling: str, reply: Reply | None = None) -> str:
    """An adapter whose gates open in a third of the prompts."""
    generator = torch.Generator().manual_seed(20 + number)
    head = GuidanceHead(64, 12, torch.randperm(VOCAB, generator=generator)[: VOCAB // 2])
    with torch.no_grad():
        head.A.normal_(std=0.125, generator=generator)
        head.B.normal_(std=2.0, generator=generator)
    gates = gates_for(base, prompts()[number::3], turn_ids=range(3, 11))
    gates = Gates.from_tensors(gates.tensors(), gates.settings)
    tilt = {"temperature": 1.2 + 0.4 * number, "guidance_scale": 0.8, "forget_prior": 0.4}
    model = T3ForCausalLM.from_base(base, head, gates=gates, reply=reply, pooling=pooling, name="base", **tilt)
    model.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, ComposedLM], dict[str, dict[str, Any]]]:
    """The composed models, without and with a reply of one part, and what came back from each engine."""
    root = tmp_path_factory.mktemp("parts")
    base = tiny("llama")
    base.save_pretrained(root / "base")
    places = {name: write_part(base, root / name, *options) for name, options in PARTS.items()}
    reply = Reply("no", [7, 8, 9], [20, 21, 2], [40, 20, 21, 2])
    spoken = places | {"two": write_part(base, root / "spoken", *PARTS["two"], reply)}
    models = {name: ComposedLM.from_pretrained(some, base) for name, some in (("guess", places), ("reply", spoken))}

    def llm(some: dict[str, str], **options: Any) -> dict[str, Any]:
        overrides = hf_overrides(some, "LlamaForCausalLM")
        return {"model": str(root / "base"), "dtype": "float32", "hf_overrides": overrides, "skip_tokenizer_init": True} | options

    rounds = [{"prompts": prompts(), "sampling": SAMPLING | {"prompt_logprobs": 3}}]
    jobs = {name: {"llm": llm(places, **options), "rounds": rounds} for name, options in SCHEDULES.items()}
    again = [ids + answer[: NEW - 5] for ids, answer in zip(prompts(), greedy(models["guess"], prompts(), NEW))]
    second = {"prompts": again, "sampling": SAMPLING | {"max_tokens": 5}}
    cached = llm(places, enable_prefix_caching=True, max_model_len=160)
    jobs["cached"] = {"llm": cached, "rounds": [{"prompts": prompts(), "sampling": SAMPLING}, second]}
    jobs["reply"] = {"llm": llm(spoken, logits_processors=[REPLY_PROCESSOR]), "rounds": rounds}
    return models, dict(zip(jobs, run_engines(root, list(jobs.values()))))


def test_the_parts_act_alone_and_together(found: tuple[dict[str, ComposedLM], dict[str, dict[str, Any]]]) -> None:
    """What the other tests compare: positions with no open part, with one, and with several."""
    model, open_parts = found[0]["guess"], []
    for ids, answer in zip(prompts(), greedy(model, prompts(), NEW)):
        row = torch.tensor([ids + answer])
        with torch.inference_mode():
            gate = model.at(row, torch.ones_like(row), torch.ones_like(row).bool())[2].gate
        assert gate is not None
        open_parts += (gate > 0).sum(-1).tolist()
    assert {0, 1, 2} <= set(open_parts)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tokens_and_distributions(name: str, found: tuple[dict[str, ComposedLM], dict[str, dict[str, Any]]]) -> None:
    models, results = found
    assert "error" not in results[name], results[name].get("error")
    [outputs] = results[name]["rounds"]
    assert [output["tokens"][0] for output in outputs] == greedy(models["guess"], prompts(), NEW)
    assert largest_difference(models["guess"], prompts(), outputs) < 1e-4  # type: ignore[arg-type]
    if name == "preempted":
        assert results[name]["metrics"]["vllm:num_preemptions"] > 0


def test_a_second_round_goes_on_from_the_prefix_cache(found: tuple[dict[str, ComposedLM], dict[str, dict[str, Any]]]) -> None:
    first, second = found[1]["cached"]["rounds"]
    assert sum(output["cached"] > 0 for output in second) >= 6
    assert [output["tokens"][0] for output in second] == [output["tokens"][0][NEW - 5 :] for output in first]


def test_the_reply_of_one_part(found: tuple[dict[str, ComposedLM], dict[str, dict[str, Any]]]) -> None:
    models, results = found
    assert "error" not in results["reply"], results["reply"].get("error")
    tokens, guessed = ([output["tokens"][0] for output in results[name]["rounds"][0]] for name in ("reply", "plain"))
    assert tokens == greedy(models["reply"], prompts(), NEW)  # type: ignore[arg-type]
    assert 3 <= sum(one != other for one, other in zip(tokens, guessed)) < len(tokens)  # the reply is said in some
