"""Adapters from strangers: whatever is changed in one, it is refused in a sentence, or the model says something.

`T3_FUZZ_EXAMPLES=10000 pytest tests/models/test_adapter_fuzz.py` tries as many.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import LlamaForCausalLM

from support.gates import random_gates
from support.tiny import make_llama
from tempertilt.errors import TemperTiltError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.models.adapter import CONFIG, WEIGHTS, load_adapter
from tempertilt.models.t3 import T3ForCausalLM

EXAMPLES = os.environ.get("T3_FUZZ_EXAMPLES")
PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
VALUES: list[Any] = [
    None,
    True,
    "",
    "x",
    "1",
    0,
    -1,
    3,
    1.5,
    10**30,
    10**400,
    1e308,
    1e-320,
    math.nan,
    math.inf,
    -math.inf,
    [],
    [[]],
    {},
    [1],
]
NUMBERS = [math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30, -1.0, 0.0]
DTYPES = [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64]
SHAPES: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.T if t.ndim == 2 else t[None],
    lambda t: t.flatten(),
    lambda t: t.flatten()[0],
    lambda t: t[:1],
    lambda t: t[:-1],
    lambda t: t[:0],
    lambda t: t[..., :-1],
    lambda t: torch.cat([t, t]),
    lambda t: t.flip(0),
]
Parts = tuple[dict[str, Any], dict[str, Tensor]]


@cache
def base() -> LlamaForCausalLM:
    return make_llama()


@cache
def make_adapter(bias: bool, gated: bool) -> Parts:
    """Configuration and tensors of an adapter with everything that one can have."""
    head = GuidanceHead(32, 4, range(0, 320, 3), "relu", 2, bias)
    head.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.B.normal_()
    gates = random_gates(32, close_after=9, turn_ids=[6]) if gated else None
    reply = Reply("No.", [1, 2], [20, 2], [3, 20, 2]) if gated else None
    model = T3ForCausalLM.from_base(base(), head, gates=gates, reply=reply, training={"config": {"system_prompt": "Hi."}})
    with TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return json.loads((Path(directory) / CONFIG).read_text()), load_file(Path(directory) / WEIGHTS)


def write(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    weights = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    (directory / WEIGHTS).write_bytes(weights)
    if "weights_sha256" in config:
        config = config | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    (directory / CONFIG).write_text(json.dumps(config))
    return directory


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def change_config(draw: Callable[[Any], Any], config: dict[str, Any]) -> None:
    """Another value, no value, or one more."""
    *outer, key = draw(st.sampled_from(list(places(config))))
    holder: Any = config
    for name in outer:
        holder = holder[name]
    kind = draw(st.sampled_from(["value", "value", "value", "none", "more"]))
    if kind == "value":
        holder[key] = draw(st.sampled_from(VALUES) | st.floats() | st.integers())
    elif kind == "none":
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"{key}_2"] = draw(st.sampled_from(VALUES))
    else:
        holder.append(draw(st.sampled_from(VALUES)))


def change_tensors(draw: Callable[[Any], Any], tensors: dict[str, Tensor]) -> None:
    """Other numbers, another type, shape, order or name, or none."""
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name].contiguous().clone()
    kind = draw(st.sampled_from(["number", "number", "all", "type", "shape", "none", "name", "order"]))
    kind = "type" if kind in ("order", "shape") and not (tensor.ndim and tensor.numel()) else kind
    if kind in ("number", "all"):
        chosen = slice(None) if kind == "all" or not tensor.numel() else draw(st.integers(0, tensor.numel() - 1))
        value = draw(st.sampled_from(NUMBERS) | st.floats(width=16))
        whole = not tensor.is_floating_point()
        tensor.view(-1)[chosen] = (round(max(-128, min(127, value))) if math.isfinite(value) else -1) if whole else value
        tensors[name] = tensor
    elif kind == "type":
        tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
    elif kind == "shape":
        tensors[name] = draw(st.sampled_from(SHAPES))(tensor)
    elif kind == "order":
        tensors[name] = tensor[torch.randperm(len(tensor), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))]
    else:
        del tensors[name]
        if kind == "name":
            tensors[draw(st.sampled_from([f"{name}.2", "hidden.1", "bias", "scale", "gate.said.mean", ""]))] = tensor


def use(directory: Path) -> None:
    """Load and use the adapter; fails where it is neither refused in a sentence nor usable."""
    try:
        model = T3ForCausalLM.from_pretrained(directory, base_model=base())
    except TemperTiltError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 1000
        event("refused")
        return
    with torch.inference_mode():
        assert bool(model(input_ids=PROMPT).logits.isfinite().all())
    assert isinstance(model.adapter_config.system_prompt, str | None)


SETTINGS = settings(
    max_examples=int(EXAMPLES or "200"),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.integration
@SETTINGS
@given(data=st.data(), bias=st.booleans(), gated=st.booleans())
def test_a_changed_adapter_is_refused_in_a_sentence_or_usable(data: st.DataObject, bias: bool, gated: bool) -> None:
    config, tensors = deepcopy(make_adapter(bias, gated))
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            change_config(data.draw, config)
        elif tensors:
            change_tensors(data.draw, tensors)
    with TemporaryDirectory() as directory:
        use(write(Path(directory), config, tensors))


Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


def fill(name: str, value: float) -> Change:
    return tensor(name, lambda tensors: torch.full_like(tensors[name], value))


def option(value: Any, *path: Any) -> Change:
    """Sets the value at a path of the configuration."""

    def change(config: dict[str, Any], _: dict[str, Tensor]) -> None:
        *outer, key = path
        for name in outer:
            config = config[name]
        config[key] = value

    return change


def tensor(name: str, make: Callable[[dict[str, Tensor]], Tensor]) -> Change:
    return lambda _, tensors: tensors.update({name: make(tensors)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill("A", math.nan), "tensors A hold values that are not finite numbers"),
        (fill("bias", math.inf), "tensors bias hold values that are not finite numbers"),
        (fill("scale", math.inf), "tensors B hold values that are not finite numbers"),
        (fill("hidden.0", 1e30), "so large that log-odds may be infinite"),
        (tensor("token_ids", lambda t: t["token_ids"].flip(0)), "must be whole numbers in ascending order"),
        (tensor("token_ids", lambda t: t["token_ids"].float()), "must be whole numbers in ascending order"),
        (tensor("A", lambda t: t["A"][0]), r"'A' is \(32,\); must be \(rank, hidden size\)"),
        (tensor("A", lambda t: t["A"][:, :0]), r"'A' is \(4, 0\); must be \(rank, hidden size\)"),
        (tensor("B", lambda t: t["B"].float()), r"'B' is float32 \(107, 4\); must be int8 \(107, 4\)"),
        (tensor("more", lambda t: t["A"]), r"'more' is float16 \(4, 32\); must be absent"),
        (fill("gate.asked.mean", math.nan), "gate.asked.mean hold values that are not finite"),
        (fill("gate.said.margins", math.inf), "gate.said.margins hold values that are not finite"),
        (fill("gate.asked.margins", 5.0), "gate.asked.margins holds 5; must be from -1 to 1"),
        (tensor("gate.asked.mean", lambda t: t["gate.asked.mean"][0]), "must be 1 or 2"),
        (tensor("gate.turns.headers", lambda t: t["gate.turns.headers"][:, :5]), "headers of turns have 5 numbers; must be 32"),
        (tensor("gate.turns.token_ids", lambda t: t["gate.turns.token_ids"][:0]), "knows turns by 0 tokens"),
        (option(1.5, "gate", "layer"), "must be whole numbers"),
        (option("1", "gate", "layer"), "gate cannot be read"),
        (option(None, "gate", "asked", "threshold"), "gate cannot be read"),
        (option(["layer", "asked", "said"], "gate"), "gate is .*; must be"),
        (option(["relu"], "activation"), "activation is .*; must be one of"),
        (option(None, "base_model"), "base_model is None; must be a text"),
        (option("32", "hidden_size"), "hidden_size is '32'; must be a whole number"),
        (option([], "training"), "training is .*; must be a mapping"),
        (option(5, "training", "config", "system_prompt"), "system_prompt a text or null"),
        (option(1e308, "guidance_scale"), "guidance_scale is 1e.308; must be a number >= 0 and <= 1e.06"),
        (option(1e-300, "temperature"), "temperature is 1e-300; must be a number >= 0.001"),
        (option(math.nan, "forget_prior"), "forget_prior is nan; must be a number"),
        (option("123", "reply", "answer"), "lists of token ids"),
        (option(10**400, "gate", "asked", "threshold"), "gate cannot be read"),
        (option("", "gate", "turns", "threshold"), "gate cannot be read"),
        (option([-1], "reply", "tail"), "lists of token ids"),
        (option([3] * 5000, "reply", "header"), "the reply has 5002 tokens; must be at most 4096"),
    ],
)
def test_what_no_adapter_holds(tmp_path: Path, change: Change, message: str) -> None:
    config, tensors = deepcopy(make_adapter(True, True))
    load_adapter(write(tmp_path, config, tensors))
    change(config, tensors)
    with pytest.raises(TemperTiltError, match=message) as refused:
        load_adapter(write(tmp_path, config, tensors))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["thresholds", "margins", "reader", "exemplars"])
def test_a_gate_that_can_not_open_is_refused(tmp_path: Path, part: str) -> None:
    """The input gate alone can't open; the output gate opens only where the input gate comes near, or where it is sure."""
    config, tensors = deepcopy(make_adapter(True, True))
    sure = config["gate"]["said"].pop("sure_threshold")
    changes = {
        "margins": fill("gate.asked.margins", 1.0),
        "reader": fill("gate.asked.reader", 0.0),
        "exemplars": fill("gate.asked.exemplars", 0),
        "thresholds": option(1.0, "gate", "asked", "threshold"),
    }
    changes[part](config, tensors)
    if part == "thresholds":
        load_adapter(write(tmp_path, config, tensors))  # the output gate opens it still
        config["gate"]["said"]["threshold"] = 1e30
    with pytest.raises(TemperTiltError, match="gate never opens"):
        load_adapter(write(tmp_path, config, tensors))
    config["gate"]["said"]["sure_threshold"] = sure
    load_adapter(write(tmp_path, config, tensors))


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(TemperTiltError, match="cannot be read"):
        load_adapter(tmp_path)


def test_a_threshold_that_no_tensor_could_hold_is_never_passed(tmp_path: Path) -> None:
    config, tensors = deepcopy(make_adapter(True, True))
    config["gate"]["said"]["threshold"] = 10**30
    model = T3ForCausalLM.from_pretrained(write(tmp_path, config, tensors), base_model=base())
    assert bool(model(input_ids=PROMPT).logits.isfinite().all())
