"""The wrapper: threads, several wrappers on one base, copies, caches by both names, gradients through a cache."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from support.architectures import build, random_head
from support.gates import random_gates
from support.tiny import make_llama
from tempertilt.errors import TemperTiltError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.frozen import switched_off, watch
from tempertilt.models.t3 import T3ForCausalLM


def unlearned(base: LlamaForCausalLM, seed: int, pooling: str = "mean") -> T3ForCausalLM:
    generator = torch.Generator().manual_seed(seed)
    head = GuidanceHead(32, 5, range(0, 320, 2))
    with torch.no_grad():
        head.A.normal_(generator=generator, std=0.3)
        head.B.normal_(generator=generator, std=2.0)
    gates = random_gates(32, seed=seed)
    return T3ForCausalLM.from_base(base, head, gates=gates, pooling=pooling, temperature=1.5, guidance_scale=0.8)


def in_threads(*jobs: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.integration
def test_threads_with_adapters_on_one_base_get_their_own_numbers() -> None:
    """Two adapters, one of them in two threads, and the plain base: 300 passes each, every one as alone."""
    base = make_llama()
    models = [unlearned(base, 1), unlearned(base, 2), unlearned(base, 2), base]
    texts = [torch.randint(3, 320, (1, 12), generator=torch.Generator().manual_seed(i)) for i in range(20)]
    with torch.inference_mode():
        alone = [[model(input_ids=ids).logits for ids in texts] for model in models]
    wrong = [0] * len(models)

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for i in range(300):
                    logits = models[number](input_ids=texts[i % 20]).logits
                    wrong[number] += not torch.equal(logits, alone[number][i % 20])

        return run

    in_threads(*(job(number) for number in range(len(models))))
    assert wrong == [0] * len(models)


def test_what_one_thread_sets_another_does_not_see() -> None:
    model = unlearned(make_llama(), 1)
    ids = torch.randint(3, 320, (1, 9))
    with torch.inference_mode():
        on, off = model(input_ids=ids).logits, model.base(input_ids=ids).logits
    inside, done = threading.Event(), threading.Event()

    def switch_off() -> None:
        with model.disable(), torch.inference_mode():
            inside.set()
            done.wait(10)
            assert torch.equal(model(input_ids=ids).logits, off)

    def use() -> None:
        inside.wait(10)
        try:
            with torch.inference_mode():
                assert torch.equal(model(input_ids=ids).logits, on) and not model.is_disabled
        finally:
            done.set()

    in_threads(switch_off, use)


def test_watch_sees_the_states_of_a_module_and_of_no_other() -> None:
    base = make_llama()
    ids = torch.randint(3, 320, (1, 7))
    states: list[Tensor] = []
    handle = base.model.layers[1].register_forward_hook(
        lambda _m, _i, output: states.append(output if isinstance(output, Tensor) else output[0])
    )
    with watch(base.model.layers[1]) as first, watch(base.model.layers[1]) as second, watch(base.model.layers[0]) as other:
        base(input_ids=ids)
    handle.remove()
    assert first.states is not None and torch.equal(first.states, states[0]) and torch.equal(second.states, states[0])
    assert other.states is not None and not torch.equal(other.states, states[0])
    base(input_ids=ids + 1)
    assert torch.equal(first.states, states[0])  # a capture that is over takes nothing more


def test_a_copy_reads_its_own_base() -> None:
    model = unlearned(make_llama(), 1)
    ids = torch.randint(3, 320, (1, 9))
    before = model(input_ids=ids).logits
    twin = copy.deepcopy(model)
    stored = io.BytesIO()
    pickle.dump(model, stored)
    stored.seek(0)
    third = pickle.load(stored)
    assert torch.equal(twin(input_ids=ids).logits, before) and torch.equal(third(input_ids=ids).logits, before)
    with torch.no_grad():
        twin.base.model.layers[0].mlp.down_proj.weight.mul_(2)
    assert torch.equal(model(input_ids=ids).logits, before)
    changed = twin(input_ids=ids).logits
    assert not torch.allclose(changed, before)
    fresh = T3ForCausalLM(twin.base, twin.head, twin.adapter_config, twin.gates)
    assert torch.equal(fresh(input_ids=ids).logits, changed)


def test_resizing_embeddings_is_refused_in_a_sentence() -> None:
    with pytest.raises(TemperTiltError, match="can't be resized"):
        unlearned(make_llama(), 1).resize_token_embeddings(400)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_that_the_base_filled_alone_is_refused(name: str) -> None:
    model = unlearned(make_llama(), 1)
    ids = torch.randint(3, 320, (1, 9))
    cache = DynamicCache(config=model.config)
    model.base(input_ids=ids[:, :7], past_key_values=cache, use_cache=True)
    with pytest.raises(TemperTiltError, match="filled by the base model alone"):
        model(input_ids=ids[:, 7:], use_cache=True, **{name: cache})


def test_both_names_of_a_cache_go_on_with_the_same_numbers() -> None:
    model = unlearned(make_llama(), 1)
    ids = torch.randint(3, 320, (1, 9))
    whole = model(input_ids=ids).logits[:, 7:]
    for name in ("cache", "past_key_values"):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :7], use_cache=True, **{name: cache})
        torch.testing.assert_close(
            model(input_ids=ids[:, 7:], use_cache=True, **{name: cache}).logits, whole, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_gradients_through_a_cache_are_those_of_the_whole(pooling: str) -> None:
    model = unlearned(make_llama(), 1, pooling)
    ids = torch.randint(3, 320, (1, 9))

    def gradient(parts: list[Tensor]) -> Tensor:
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        cache, total, start = DynamicCache(config=model.config), torch.zeros(()), 0
        for part in parts:
            stop = start + part.shape[1]
            logits = model(inputs_embeds=embeddings[:, start:stop], use_cache=True, cache=cache).logits
            total, start = total + logits.log_softmax(-1)[..., 5].sum(), stop
        total.backward()
        assert embeddings.grad is not None
        return embeddings.grad

    torch.testing.assert_close(gradient([ids[:, :4], ids[:, 4:]]), gradient([ids]), atol=1e-3, rtol=1e-3)


def test_guidance_scale_of_a_call_is_the_tilt_s() -> None:
    model = unlearned(make_llama(), 1)
    ids = torch.randint(3, 320, (1, 9))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    called = model.generate(ids, guidance_scale=0.0, **options)
    model.guidance_scale = 0.0
    assert torch.equal(called, model.generate(ids, **options))
    model.guidance_scale = 0.8
    assert not torch.equal(called, model.generate(ids, **options)) and model.guidance_scale == 0.8


def test_any_model_can_be_switched_off() -> None:
    base = build("llama")
    model = T3ForCausalLM.from_base(base, random_head(base))
    ids = torch.randint(3, 100, (1, 6))
    plain = base(input_ids=ids).logits
    for some in (base, model):
        with switched_off(some):
            assert torch.equal(some(input_ids=ids).logits, plain)
    assert not torch.equal(model(input_ids=ids).logits, plain)
