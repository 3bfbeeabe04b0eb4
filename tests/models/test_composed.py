"""Several parts on one base, against a loop over tokens and parts; one part against the adapter alone, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from support.composed import ComposedOracle
from support.gates import gates_for
from support.tiny import make_llama
from tempertilt.errors import AdapterError, ConfigError, TemperTiltError
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.composed import ComposedLM
from tempertilt.models.t3 import T3ForCausalLM

VOCAB, TURN = 320, 17
HEADER, ANSWER, TAIL = [7, 8], [9, 10, 9, 11, 2], [20, 21, 9, 10, 2]
REPLY = ("No.", HEADER, ANSWER, TAIL)
OTHER_REPLY = ("Nothing.", HEADER, [9, 12, 2], [20, 21, 12, 2])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 14, "pad_token_id": 2, "eos_token_id": None}


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(30, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [prompt(length, seed) for seed, length in enumerate((9, 14, 22, 11, 30, 17))]
TEXTS = [[*PROMPTS[0], *HEADER], [*PROMPTS[1], TURN, *prompt(6, 31), *HEADER], [*PROMPTS[2], *HEADER], [*PROMPTS[3], *TAIL[:3]]]


def make_head(seed: int) -> GuidanceHead:
    generator = torch.Generator().manual_seed(seed)
    head = GuidanceHead(32, 4, torch.randperm(VOCAB, generator=generator)[:40])
    with torch.no_grad():
        head.A.normal_(generator=generator)
        head.B.normal_(generator=generator)
    return head


def make_parts(base: Any, names: Iterable[str] = "abc", replies: Sequence[Any] = (None, None, None)) -> dict[str, Guidance]:
    """Three parts whose gates overlap: a and b share their readers, c pools its states and closes by itself."""
    gates = {
        "a": gates_for(base, PROMPTS, turn_ids=[TURN], seed=1),
        "b": gates_for(base, PROMPTS, seed=2, turn_ids=[TURN]),
        "c": gates_for(base, PROMPTS[:3], turn_ids=[TURN, TURN + 1], close_after=6, seed=3),
    }
    tilts = {"a": TiltConfig(1.3, 0.7, 0.5), "b": TiltConfig(2.1, 1.0, 0.9), "c": TiltConfig(0.8, 1.2, 0.3)}
    said = dict(zip("abc", replies))
    return {
        name: Guidance(
            make_head(ord(name)),
            gates[name],
            tilts[name],
            "mean" if name == "c" else "last",
            Reply(*said[name]) if said.get(name) else None,
        )
        for name in names
    }


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return make_llama()


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits


def assert_near(logits: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(logits.double().log_softmax(-1), wanted, atol=1e-4, rtol=1e-4)


CASES = {
    "one": ("a", (None,)),
    "two": ("ab", (None, None)),
    "three": ("abc", (None, None, None)),
    "a reply": ("abc", (REPLY, None, None)),
    "two replies": ("abc", (REPLY, OTHER_REPLY, None)),
    "three replies": ("abc", (OTHER_REPLY, REPLY, REPLY)),
}


@pytest.fixture(params=CASES)
def parts(request: pytest.FixtureRequest, base: LlamaForCausalLM) -> dict[str, Guidance]:
    return make_parts(base, *CASES[request.param])


def test_whole_sequences(base: LlamaForCausalLM, parts: dict[str, Guidance]) -> None:
    model, oracle, seen = ComposedLM(base, parts), ComposedOracle(base, parts), set()
    for text in TEXTS:
        assert_near(logits_of(model, text), oracle.log_probs(text))
        seen |= {len(numbers) for numbers in oracle.open}
    assert seen == set(range(len(parts) + 1))  # the gates overlap, and none is open somewhere


def test_batches_with_padding_and_cached_decoding(base: LlamaForCausalLM, parts: dict[str, Guidance]) -> None:
    model, oracle = ComposedLM(base, parts), ComposedOracle(base, parts)
    width = max(map(len, TEXTS))
    ids = torch.tensor([[2] * (width - len(text)) + text for text in TEXTS])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in TEXTS])
    out = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **GREEDY)
    for row, text in enumerate(TEXTS):
        answer = out.sequences[row, width:].tolist()
        wanted = oracle.log_probs([*text, *answer])[len(text) - 1 : -1]
        assert_near(torch.stack([step[row] for step in out.logits]), wanted)
        alone = torch.tensor([text])
        for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}):
            assert model.generate(alone, attention_mask=torch.ones_like(alone), **GREEDY, **options)[0].tolist() == text + answer


def test_beams(base: LlamaForCausalLM, parts: dict[str, Guidance]) -> None:
    model, oracle = ComposedLM(base, parts), ComposedOracle(base, parts)
    ids = torch.tensor([TEXTS[0]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=3, return_dict_in_generate=True, output_scores=True, **GREEDY
    )
    text = out.sequences[0].tolist()
    wanted = oracle.log_probs(text)[len(TEXTS[0]) - 1 : -1]
    total = wanted.gather(1, out.sequences[0, len(TEXTS[0]) :, None]).sum() / GREEDY["max_new_tokens"]
    assert float(out.sequences_scores[0]) == pytest.approx(float(total), abs=1e-3)


@pytest.mark.parametrize("reply", [None, REPLY])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_one_part_is_the_adapter_bit_for_bit(base: LlamaForCausalLM, name: str, reply: Any) -> None:
    part = make_parts(base, name, dict.fromkeys("abc", reply).values())[name]
    options = {"temperature": part.tilt.temperature, "guidance_scale": part.tilt.guidance_scale}
    options |= {"forget_prior": part.tilt.forget_prior, "pooling": part.pooling}
    alone = T3ForCausalLM.from_base(base, part.head, gates=part.gates, reply=part.reply, **options)
    model = ComposedLM(base, {name: part})
    for text in TEXTS:
        assert torch.equal(logits_of(model, text), logits_of(alone, text))
        ids = torch.tensor([text])
        ours, theirs = (
            m.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_logits=True, **GREEDY)
            for m in (model, alone)
        )
        assert torch.equal(ours.sequences, theirs.sequences) and torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_that_come_and_go_leave_the_others_as_they_are(dtype: torch.dtype) -> None:
    base = make_llama().to(dtype)
    parts = make_parts(base)
    kept, both = ComposedLM(base, {name: parts[name] for name in "ac"}), ComposedLM(base, parts)
    tensors = [(value, value.clone()) for part in parts.values() for value in part.state_dict().values()]
    again = ComposedLM(base, {name: part for name, part in both.parts.items() if name != "b"})
    touched = 0
    for text in TEXTS:
        ids = torch.tensor([text])
        expected, changed = logits_of(kept, text), logits_of(both, text)
        assert torch.equal(logits_of(again, text), expected)
        with torch.no_grad():
            _, _, context = both.at(ids, torch.ones_like(ids), torch.ones_like(ids).bool())
        assert context.gate is not None
        open_b = context.gate[:, 1] > 0
        touched += int(open_b.sum())
        assert torch.equal(changed[~open_b], expected[~open_b]) and not torch.equal(changed[open_b], expected[open_b])
    assert 0 < touched < sum(map(len, TEXTS))
    assert all(torch.equal(value, copy) for value, copy in tensors)


def test_without_parts_and_where_all_are_closed_it_is_the_base(base: LlamaForCausalLM) -> None:
    parts, none = make_parts(base), ComposedLM(base, {})
    model, oracle = ComposedLM(base, parts), ComposedOracle(base, parts)
    counts = []
    for text in (*TEXTS, prompt(12, 50), prompt(20, 51)):
        expected = logits_of(base, text)
        assert torch.equal(logits_of(none, text), expected)
        oracle.log_probs(text)
        closed = [t for t, numbers in enumerate(oracle.open) if not numbers]
        counts.append(len(closed))
        assert torch.equal(logits_of(model, text)[closed], expected[closed])
        with model.disable():
            assert torch.equal(logits_of(model, text), expected)
    assert sum(counts) > 5


def test_a_cache_of_other_parts_is_refused(base: LlamaForCausalLM) -> None:
    parts, cache = make_parts(base), DynamicCache(config=base.config)
    with torch.no_grad():
        ComposedLM(base, parts)(input_ids=torch.tensor([TEXTS[0]]), cache=cache, use_cache=True)
        with pytest.raises(TemperTiltError, match="filled under other parts or replies"):
            ComposedLM(base, {"a": parts["a"]})(input_ids=torch.tensor([[3]]), cache=cache, use_cache=True)


def test_parts_that_do_not_go_together(base: LlamaForCausalLM, tmp_path: Path) -> None:
    parts = make_parts(base)
    with pytest.raises(ConfigError, match="'x' has no gates"):
        ComposedLM(base, {"x": Guidance(make_head(1))})
    lower = Guidance(make_head(1), gates_for(base, PROMPTS, layer=2))
    with pytest.raises(ConfigError, match=r"'a' after 1, those of 'x' after 2"):
        ComposedLM(base, parts | {"x": lower})
    with pytest.raises(ConfigError, match="hidden size 16"):
        ComposedLM(base, {"x": Guidance(GuidanceHead(16, 2, [1]), parts["a"].gates)})
    alone = T3ForCausalLM.from_base(base, parts["a"].head, gates=parts["a"].gates)
    alone.save_pretrained(tmp_path)
    loaded = ComposedLM.from_pretrained({"a": tmp_path}, base)
    assert list(loaded.parts) == ["a"] and list(loaded.settings["parts"]) == ["a"]
    with pytest.raises(TemperTiltError, match="is not saved as one"):
        loaded.save_pretrained(tmp_path / "whole")
    with pytest.raises(AdapterError, match="was fitted on"):
        ComposedLM.from_pretrained({"a": tmp_path}, make_llama(seed=1))
