"""Four adapters and the base in one vLLM engine: each request's numbers are those of its own model alone through transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from support.gates import gates_for
from support.vllm_engines import greedy, largest_difference, needs_vllm, run_engines
from support.vllm_models import ARCHITECTURES, NEW, SAMPLING, prompts, tiny
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.integrations.vllm import hf_overrides
from tempertilt.integrations.vllm.options import REPLY_PROCESSOR, SCHEDULER, WORKER
from tempertilt.models.composed import ComposedLM
from tempertilt.models.t3 import T3ForCausalLM

pytestmark = needs_vllm

NAMES = ("ann", "bob", "eve", "joe")
POOLING = {"ann": "mean", "bob": "last", "eve": "mean", "joe": "mean", "zoe": "mean", "wide": "mean"}
RANK = {"ann": 12, "bob": 4, "eve": 6, "joe": 12, "zoe": 8, "wide": 14}
HEADER, ANSWER, TAIL = [7, 8, 9], [20, 21, 20, 21, 22, 2], [40, 41, 20, 21, 22, 2]
SCHEDULES: dict[str, dict[str, Any]] = {
    "plain": {"enable_prefix_caching": False},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 5, "enable_chunked_prefill": True, "enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 12, "max_num_seqs": 8, "enable_prefix_caching": False, "disable_log_stats": False},
    "speculating": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
        "disable_log_stats": False,
    },
}
HAPPENED = {"preempted": "vllm:num_preemptions", "speculating": "vllm:spec_decode_num_accepted_tokens"}


def adapter(base: Any, name: str, directory: Path, source: str) -> T3ForCausalLM:
    """A random adapter on a base, saved under its name; each opens at other prompts and pulls at other tokens."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    head = GuidanceHead(64, RANK[name], torch.randperm(160, generator=generator)[:110])
    with torch.no_grad():
        head.A.normal_(std=0.125, generator=generator)
        head.B.normal_(std=2.0, generator=generator)
    gates = gates_for(base, prompts(), turn_ids=range(3, 11), seed=len(name) + ord(name[0]))
    gates = Gates.from_tensors(gates.tensors(), gates.settings)
    tilt = {"temperature": 1.3 + RANK[name] / 20, "guidance_scale": 0.9, "forget_prior": 0.4}
    model = T3ForCausalLM.from_base(base, head, gates=gates, pooling=POOLING[name], name=source, **tilt)
    model.save_pretrained(directory / name)
    return model


class Found:
    """The models by name, None for the base, what was asked of which, and what came back from each engine."""

    def __init__(self, root: Path) -> None:
        self.base = tiny("llama")
        source = str(root / "base")
        self.base.save_pretrained(source)
        self.models = {name: adapter(self.base, name, root, source) for name in (*NAMES, "zoe", "wide")}
        self.spoken = adapter(self.base, "bob", root / "spoken", source)
        self.spoken.set_reply(Reply("no", HEADER, ANSWER, TAIL))
        self.spoken.save_pretrained(root / "spoken" / "bob")
        served = {name: str(root / name) for name in NAMES} | {"base": None}
        self.asked = [ids for ids in prompts(8, 50) for _ in range(4)]  # 32: each prompt of four models, in turn
        self.named = [[*NAMES, "base"][i % 5] for i in range(len(self.asked))]
        rounds = [{"prompts": self.asked, "models": self.named, "sampling": SAMPLING}]
        llm = {"model": source, "dtype": "float32", "skip_tokenizer_init": True, "worker_cls": WORKER, "scheduler_cls": SCHEDULER}

        def overrides(models: dict[str, Any]) -> dict[str, Any]:
            return {"hf_overrides": hf_overrides(None, ARCHITECTURES["llama"][0], models=models)}

        llm |= overrides(served)
        jobs: dict[str, dict[str, Any]] = {name: {"llm": llm | how, "rounds": rounds} for name, how in SCHEDULES.items()}
        # a second round goes on from the first, and a third asks every prompt of another model
        again = [ids + answer[: NEW - 7] for ids, answer in zip(self.asked, self.expected(self.asked, self.named))]
        second = {"prompts": again, "models": self.named, "sampling": SAMPLING | {"max_tokens": 7}}
        self.others = self.named[1:] + self.named[:1]
        third = {"prompts": again, "models": self.others, "sampling": SAMPLING | {"max_tokens": 7, "prompt_logprobs": None}}
        self.again = again
        cached = {"enable_prefix_caching": True, "max_model_len": 160}
        jobs["cached"] = {"llm": llm | cached, "rounds": [*rounds, second, third]}
        jobs["nobody"] = {
            "llm": llm,
            "rounds": [{"prompts": self.asked[:3], "models": [None, "zed", "ann"], "sampling": SAMPLING | {"ignore_eos": False}}],
        }
        one = {"prompts": self.asked[:6], "models": ["zoe"] * 6, "sampling": SAMPLING}
        add = ["add_model", "zoe", {"adapter": str(root / "zoe")}]
        jobs["added"] = {
            "llm": llm,
            "rounds": [
                one | {"calls": [add, ["add_model", "ann", add[2]], ["add_model", "wide", {"adapter": str(root / "wide")}]]},
                one | {"calls": [["remove_model", "zoe"], add], "models": ["zoe"] * 5 + ["zed"]},
                one | {"calls": [["add_model", "zed", add[2]]]},
            ],
        }
        spoken = served | {"bob": str(root / "spoken" / "bob")}
        talked = [ids + (HEADER if i % 3 else HEADER + ANSWER[: i % 2]) for i, ids in enumerate(self.asked)]
        self.talked = talked
        jobs["reply"] = {
            "llm": llm | overrides(spoken) | {"logits_processors": [REPLY_PROCESSOR]},
            "rounds": [{"prompts": talked, "models": self.named, "sampling": SAMPLING}],
        }
        self.together = {name: str(root / name) for name in ("ann", "eve")}
        together = {"hr": self.together, "bob": served["bob"]}
        self.pairs = ["hr" if i % 2 else "bob" for i in range(len(self.asked))]
        jobs["parts"] = {"llm": llm | overrides(together), "rounds": [rounds[0] | {"models": self.pairs}]}
        jobs["own worker"] = {"llm": llm | {"worker_cls": "auto"}, "rounds": rounds}
        jobs["own scheduler"] = {"llm": {key: value for key, value in llm.items() if key != "scheduler_cls"}, "rounds": rounds}
        self.results = dict(zip(jobs, run_engines(root, list(jobs.values()))))

    def rounds(self, name: str) -> list[list[dict[str, Any]]]:
        assert "error" not in self.results[name], self.results[name]["error"]
        return list(self.results[name]["rounds"])

    def expected(self, asked: list[list[int]], named: list[str], new: int = NEW) -> list[list[int]]:
        """The answer of each prompt by whole passes of its own model alone."""
        return [greedy(self.models.get(name) or Base(self.base), [ids], new)[0] for ids, name in zip(asked, named)]  # type: ignore[arg-type]

    def difference(self, asked: list[list[int]], named: list[str], outputs: list[dict[str, Any]]) -> float:
        return max(
            largest_difference(self.models.get(name) or Base(self.base), [ids], [output])  # type: ignore[arg-type]
            for ids, name, output in zip(asked, named, outputs)
        )


class Base:
    """A base where an unlearned model is expected."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return self.model(input_ids=input_ids, use_cache=use_cache)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    yield Found(tmp_path_factory.mktemp("choices"))


def test_the_models_differ(found: Found) -> None:
    """What the other tests tell apart: every two models give other answers to some prompt, and no gate is open everywhere."""
    asked = found.asked[::4]
    answers = {name: found.expected(asked, [name] * len(asked)) for name in (*NAMES, "base")}
    for one in answers:
        for other in answers:
            assert one == other or answers[one] != answers[other], (one, other)
    same = sum(a == b for name in NAMES for a, b in zip(answers[name], answers["base"]))
    assert 0 < same < len(NAMES) * len(asked)


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_request_follows_its_own_model(name: str, found: Found) -> None:
    """32 requests of five models in one batch: tokens, and log-probabilities within 1e-4."""
    [outputs] = found.rounds(name)
    assert [output["tokens"][0] for output in outputs] == found.expected(found.asked, found.named)
    assert found.difference(found.asked, found.named, outputs) < 1e-4
    if name in HAPPENED:
        assert found.results[name]["metrics"][HAPPENED[name]] > 0


def test_no_cached_prefix_of_one_model_is_used_for_another(found: Found) -> None:
    """The second round goes on from the cache of its own model; the third asks another model the same, and finds nothing."""
    first, second, third = found.rounds("cached")
    assert sum(output["cached"] > 0 for output in second) >= 20
    assert [output["tokens"][0] for output in second] == [output["tokens"][0][NEW - 7 :] for output in first]
    assert found.difference(found.again, found.named, second) < 1e-4
    assert [output["tokens"][0] for output in third] == found.expected(found.again, found.others, 7)
    assert found.difference(found.again, found.others, third) < 1e-4
    asked_before = {(tuple(ids), name) for ids, name in zip(found.again, found.named)}
    fresh = [
        output["cached"] for ids, name, output in zip(found.again, found.others, third) if not _shares(ids, name, asked_before)
    ]
    assert len(fresh) >= 4 and not any(fresh)


def _shares(ids: list[int], name: str, asked: set[tuple[tuple[int, ...], str]]) -> bool:
    """Whether a model was asked a text that begins with the same block of 32 tokens."""
    return any(other == name and list(given[:32]) == ids[:32] for given, other in asked)


def test_a_request_without_a_model_says_nothing(found: Found) -> None:
    """One that names none, or one that the engine does not have: an empty answer, and no number of the base."""
    [outputs] = found.rounds("nobody")
    for output, ids in zip(outputs[:2], found.asked):
        assert output["tokens"][0] == [2]
        distributions = F.log_softmax(found.base(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        seen = [value for row in output["logprobs"][0] for value in row.values()]
        assert max(seen) == 0.0 and sorted(seen)[-2] < -600
        assert not any(abs(float(distributions[-1].max()) - value) < 1e-3 for value in seen)
    assert outputs[2]["tokens"][0] == found.expected(found.asked[2:3], ["ann"])[0][: len(outputs[2]["tokens"][0])]


def test_models_are_added_and_removed_while_it_runs(found: Found) -> None:
    first, second, _ = found.rounds("added")
    assert [output["tokens"][0] for output in first] == found.expected(found.asked[:6], ["zoe"] * 6)
    assert all(output["tokens"][0] == [2] * NEW for output in second)
    refused = found.results["added"]["refused"]
    assert len(refused) == 4 and "has or had the name 'zed', or a request gave it" in refused[3]
    assert "has or had the name 'ann'" in refused[0] and "model 'wide' needs" in refused[1]
    assert "has or had the name 'zoe'" in refused[2]


def test_replies_of_one_among_others(found: Found) -> None:
    [outputs] = found.rounds("reply")
    models = found.models | {"bob": found.spoken}
    expected = [
        greedy(models.get(name) or Base(found.base), [ids], NEW)[0]  # type: ignore[arg-type]
        for ids, name in zip(found.talked, found.named)
    ]
    assert [output["tokens"][0] for output in outputs] == expected
    said = [any(answer[i : i + 6] in (ANSWER, TAIL) for i in range(NEW)) for answer in expected]
    assert any(said) and not any(spoken for spoken, name in zip(said, found.named) if name != "bob")


def test_parts_that_act_together_beside_another(found: Found) -> None:
    [outputs] = found.rounds("parts")
    parts = ComposedLM.from_pretrained(found.together, found.base)
    models: dict[str, Any] = {"hr": parts, "bob": found.models["bob"]}
    expected = [greedy(models[name], [ids], NEW)[0] for ids, name in zip(found.asked, found.pairs)]
    assert [output["tokens"][0] for output in outputs] == expected


def test_an_engine_that_would_mix_them_is_refused(found: Found) -> None:
    assert "worker_cls is 'vllm" in found.results["own worker"]["error"]
    assert "scheduler_cls is None" in found.results["own scheduler"]["error"]
