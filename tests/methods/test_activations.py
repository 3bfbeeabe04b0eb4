"""Methods that act on states, attention and names: formulas against plain loops, and where they act."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from support.tasks import make_task, records
from tempertilt.data.examples import encode_question
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.methods.activations import ChangedLayer, layer_at, mean_states
from tempertilt.methods.attention_smoothing import smoothed
from tempertilt.methods.gated_rotation import rotated
from tempertilt.methods.name_swap import Swap, swaps_of
from tempertilt.methods.registry import find_method
from tempertilt.methods.task import Task
from tempertilt.models.generation import generate_ids

NAMES = {"names": ("Hina",)}


@pytest.fixture()
def task(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Task:
    return make_task(tokenizer, tmp_path)


def layer_states(model: Any, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """States after a layer, from transformers' own record."""
    with torch.inference_mode():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]


def test_answer_states_are_means_over_the_predicting_positions(task: Task) -> None:
    base = task.base.model
    examples = task.examples_of(task.forget)
    rows = mean_states(base, examples, 1)
    for example, row in zip(examples, rows, strict=True):
        ids = torch.from_numpy(example.input_ids).long()[None]
        states = layer_states(base, ids, 1)
        places = [i - 1 for i, scored in enumerate(example.scored) if scored]
        torch.testing.assert_close(row, states[places].mean(0), atol=1e-5, rtol=1e-4)
    assert [layer_at(base, depth) for depth in (0.01, 0.5, 0.75, 1.0)] == [0, 1, 2, 3]


def test_a_changed_layer_changes_the_copy_alone(task: Task) -> None:
    base, ids = task.base.model, torch.arange(3, 20)[None]
    changed = ChangedLayer(base, 1)
    before = base(input_ids=ids).logits
    vector = torch.full((32,), 0.5)
    got = changed(lambda states: states + vector, lambda model: model(input_ids=ids).logits)
    states = layer_states(base, ids, 1)[None] + vector
    positions = base.model.rotary_emb(states, torch.arange(17)[None])
    for layer in base.model.layers[2:]:
        states = layer(states, position_embeddings=positions, attention_mask=None)
        states = states[0] if isinstance(states, tuple) else states
    torch.testing.assert_close(got, base.lm_head(base.model.norm(states)), atol=1e-4, rtol=1e-4)
    assert torch.equal(base(input_ids=ids).logits, before) and torch.equal(changed.model(input_ids=ids).logits, before)
    shared = {p.data_ptr() for p in base.parameters()}
    assert all(p.data_ptr() in shared for p in changed.model.parameters())


def test_steering_adds_the_difference_of_means(task: Task) -> None:
    model = find_method("ActivationSteering").build({"strength": 1.5, "depth": 0.5}).unlearn(task).model
    means = []
    for side in (task.retain, task.forget):
        rows = []
        for example in task.examples_of(side):
            states = layer_states(task.base.model, torch.from_numpy(example.input_ids).long()[None], 1)
            rows.append(states[[i - 1 for i, scored in enumerate(example.scored) if scored]].mean(0))
        means.append(torch.stack(rows).mean(0))
    torch.testing.assert_close(model.vector, 1.5 * (means[0] - means[1]), atol=1e-5, rtol=1e-4)
    still = find_method("ActivationSteering").build({"strength": 0.0}).unlearn(task).model
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(still(input_ids=ids).logits, task.base.model(input_ids=ids).logits)


def test_a_rotation_keeps_the_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    states = 3 * torch.randn(5, 8, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator, dtype=torch.float64), dim=-1)
    directions[2] = 0
    out = rotated(states, directions, 0.7)
    torch.testing.assert_close(out.norm(dim=-1), states.norm(dim=-1))
    assert torch.equal(out[2], states[2])
    for row in (0, 1, 3, 4):
        h, v = states[row].tolist(), directions[row].tolist()
        length = sum(x * x for x in h) ** 0.5
        moved = [x + 0.7 * length * y for x, y in zip(h, v)]
        size = sum(x * x for x in moved) ** 0.5
        assert out[row].tolist() == pytest.approx([x * length / size for x in moved])
    far = rotated(states, directions, 1e9)
    torch.testing.assert_close(far[0], directions[0] * states[0].norm())


def logits_of(model: Any, task: Task, question: str) -> torch.Tensor:
    prompt = encode_question(question, task.base.tokenizer, task.examples)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[*prompt, 5, 6, 7]])).logits[0]


def test_the_rotation_acts_behind_its_gate_and_after_the_question(task: Task) -> None:
    result = find_method("GatedRotation").build({"strength": 1.0, "false_open": 0.0, "clusters": 2}).unlearn(task)
    model, base = result.model, task.base.model
    opened = []
    for record in task.forget:
        prompt = encode_question(record.question, task.base.tokenizer, task.examples)
        own, plain = logits_of(model, task, record.question), logits_of(base, task, record.question)
        assert torch.equal(own[: len(prompt) - 1], plain[: len(prompt) - 1])
        opened.append(not torch.allclose(own[len(prompt) - 1 :], plain[len(prompt) - 1 :], atol=1e-3))
    assert sum(opened) >= 5
    for record in task.retain:
        assert torch.equal(logits_of(model, task, record.question), logits_of(base, task, record.question))
    assert result.details["clusters"] == 2
    assert torch.allclose(model.directions.norm(dim=-1), torch.ones(2))


def test_smoothed_attention_is_divided_by_the_temperature(task: Task) -> None:
    """One layer alone: its attention probabilities are those of divided logits."""
    base = task.base.model
    base.set_attn_implementation("eager")
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        weights = base(input_ids=ids, output_attentions=True).attentions[0]
        flat = smoothed(base, 3.0)(input_ids=ids, output_attentions=True).attentions[0]
        again = base(input_ids=ids, output_attentions=True).attentions[0]
    expected = (weights.clamp(min=1e-30).log() / 3).where(weights > 0, torch.tensor(float("-inf"))).softmax(-1)
    torch.testing.assert_close(flat, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(weights, again), "the base is as it was"
    same = find_method("AttentionSmoothing").build({"temperature": 1.0}).unlearn(task).model
    question = task.forget[0].question
    torch.testing.assert_close(logits_of(same, task, question), logits_of(base, task, question))


def test_smoothing_needs_an_attention_with_a_scale(task: Task) -> None:
    for layer in task.base.model.model.layers:
        del layer.self_attn.scaling
    with pytest.raises(ConfigError, match="without an attention whose scale can be set"):
        smoothed(task.base.model, 2.0)


def test_a_swap_is_told_by_the_tokens_before() -> None:
    swap = Swap.of([((10, 11, 12), (20, 21, 22)), ((10, 15), (30, 31)), ((40,), (41,))])
    ids = [1, 10, 11, 12, 2, 10, 15, 40, 12, 10, 11]
    assert swap.ids(ids) == [1, 20, 21, 22, 2, 20, 31, 41, 12, 20, 21]
    assert all(swap.ids(ids[:n]) == swap.ids(ids)[:n] for n in range(len(ids)))
    logits = torch.arange(50.0)[None]
    out = swap.logits(logits)
    assert out[0, 10] == 20 and out[0, 20] == 10 and out[0, 12] == 22 and out[0, 41] == 40 and out[0, 3] == 3
    assert out[0, 30] == 30 and out[0, 15] == 31, "a token is in one pair: the first"
    assert torch.equal(swap.logits(out), logits)


def test_named_questions_are_answered_as_if_others_stood_there(task: Task, tokenizer: PreTrainedTokenizerFast) -> None:
    model = find_method("NameSwap").build(NAMES | {"variants": 2}).unlearn(task).model
    base = task.base.model
    prompt = encode_question(task.forget[1].question, tokenizer, task.examples)
    answer = [*tokenizer(" Hina number", add_special_tokens=False)["input_ids"], 7]
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
        distributions = []
        for swap in swaps_of(["Hina"], tokenizer, 2, 0):
            other = base(input_ids=torch.tensor([swap.ids([*prompt, *answer])])).logits[0, len(prompt) - 1 :]
            order = torch.arange(other.shape[-1])
            for one, instead in swap.pairs.T.tolist():
                order[one], order[instead] = instead, one
            distributions.append(other[:, order].softmax(-1))
    torch.testing.assert_close(own.softmax(-1), (distributions[0] + distributions[1]) / 2, atol=1e-5, rtol=1e-4)
    for record in task.retain:
        assert torch.equal(logits_of(model, task, record.question), logits_of(base, task, record.question))
    words = swaps_of(["Hina Ameen"], tokenizer, 1, 0)[0].words
    assert all(len(one) == len(other) and one != other for one, other in words)
    assert {tokenizer.decode(list(one)).strip() for one, _ in words} == {"Hina", "Ameen"}


@pytest.mark.parametrize(("teacher", "options"), [("NameSwap", NAMES | {"variants": 1}), ("AttentionSmoothing", {})])
def test_a_distilled_model_learns_what_its_teacher_says(task: Task, teacher: str, options: dict[str, Any]) -> None:
    method = find_method("Distilled").build({"teacher": teacher, "teacher_options": options, "answer_tokens": 5})
    method.clock = Clock()
    model = find_method(teacher).build(options).unlearn(task).model
    torch.manual_seed(0)
    prompts = [encode_question(record.question, task.base.tokenizer, task.examples) for record in task.forget]
    rows = generate_ids(model, task.base.tokenizer, prompts, max_new_tokens=5, draws=1)
    texts = [task.base.tokenizer.decode(row, skip_special_tokens=True).strip() for [row] in rows]
    made = method.alternates(task)
    assert [record.question for record in made] == [record.question for record in task.forget]
    assert [record.answer for record in made if record.answer in texts] == [text for text in texts if text]
    with pytest.raises(ConfigError, match="must be one of NameSwap, AttentionSmoothing"):
        find_method("Distilled").build({"teacher": "ECO"})
    with pytest.raises(ConfigError, match="variants"):
        find_method("Distilled").build({"teacher_options": {"variants": 0}})


def test_names_are_found_or_must_be_given(task: Task) -> None:
    with pytest.raises(ConfigError, match="must be named, by names"):
        find_method("NameSwap").build({}).unlearn(task)
    found = find_method("NameSwap").build({}).unlearn(replace(task, forget=records(3, "Sara Ahmed")))
    assert any("Sara Ahmed" in name for name in found.model.settings["names"])
