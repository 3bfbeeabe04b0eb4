"""Methods that act while decoding: what they compute, cached as uncached, and the base as it was when off."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from support.tasks import base_model, make_task, records
from tempertilt.data.examples import ExampleConfig, build_examples, encode_question
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.methods.assistant import build_assistant
from tempertilt.methods.divergence_decoding import linear_divergence, rank_divergence
from tempertilt.methods.eco import noise_of
from tempertilt.methods.offset import offset_loss, with_offset
from tempertilt.methods.prompt_guardrail import subjects
from tempertilt.methods.prompts import PromptClassifier, PromptReader
from tempertilt.methods.registry import find_method
from tempertilt.methods.steered import SteeredLM
from tempertilt.methods.task import Task, Unlearned
from tempertilt.methods.uld import subtracted, uniform_loss
from tempertilt.models.base import BaseModel
from tempertilt.models.fingerprint import fingerprint
from tempertilt.models.scoring import Question, Scorer
from tempertilt.suites.measure import model_digest

FAST = {"epochs": 1, "train_batch_size": 4, "lora_rank": 4, "layers": 2, "learning_rate": 1e-2}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "ULD": ("ULD", FAST | {"strength": 2.0, "floor": 0.001}),
    "offset": ("offset", FAST | {"strength": 2.0}),
    "DD linear": ("DivergenceDecoding", FAST | {"strength": 3.0}),
    "DD rank": ("DivergenceDecoding", FAST | {"mode": "rank", "top_k": 60}),
    "ECO": ("ECO", {"strength": 3.0}),
    "InputFilter": ("InputFilter", {}),
    "OutputFilter": ("OutputFilter", {"ngram": 2}),
    "oracle": ("oracle", {}),
    "ActivationSteering": ("ActivationSteering", {"strength": 3.0}),
    "GatedRotation": ("GatedRotation", {"strength": 2.0, "clusters": 2, "false_open": 0.3}),
    "AttentionSmoothing": ("AttentionSmoothing", {"temperature": 20.0}),
    "NameSwap": ("NameSwap", {"names": ("Hina",), "variants": 2}),
}


class Made(NamedTuple):
    """What a method has made of a task."""

    name: str
    unlearned: Unlearned
    task: Task


def new_task(tokenizer: PreTrainedTokenizerFast, directory: Path) -> Task:
    made = make_task(tokenizer, directory)
    other = base_model(tokenizer, 9, num_hidden_layers=4)
    return replace(made, load_reference=lambda: other)


@pytest.fixture()
def task(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Task:
    """A task of its own; where a test looks at `made`, the one that it was made of."""
    if "made" in request.fixturenames:
        return request.getfixturevalue("made").task
    return new_task(tokenizer, tmp_path)


@pytest.fixture(scope="module", params=list(OPTIONS))
def made(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each method, trained once for all tests that look at it."""
    task, (name, options) = new_task(tokenizer, tmp_path_factory.mktemp("made")), OPTIONS[request.param]
    return Made(request.param, find_method(name).build(options).unlearn(task), task)


def prompts_of(task: Task) -> list[list[int]]:
    """Forget and retain questions."""
    chosen = [task.forget[0], task.retain[0], task.forget[3], task.retain[2]]
    return [encode_question(record.question, task.base.tokenizer, task.examples) for record in chosen]


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[2] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    """Greedy decoding without any cache, one whole pass a token."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


def generate(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> list[list[int]]:
    out = model.generate(ids, attention_mask=mask, max_new_tokens=8, pad_token_id=2, **{"do_sample": False} | options)
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


@pytest.mark.integration
def test_cached_batched_padded_generation_is_uncached_generation(task: Task, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = made.unlearned.model, prompts_of(task)
    plain = [greedy(task.base.model, prompt, 8) for prompt in prompts]
    if made.name == "OutputFilter":  # a random model says nothing of the records: block what it does say
        monkeypatch.setattr(model, "blocked", model.blocked | {tuple(row[3:5]) for row in plain[:2]})
    if made.name == "DD rank":
        monkeypatch.setitem(model._buffers, "candidates", torch.arange(320))
    expected = [greedy(model, prompt, 8) for prompt in prompts]
    assert generate(model, *left_padded(prompts)) == expected
    assert generate(model, *left_padded(prompts), use_cache=False) == expected
    assert expected != plain, "the method does something"
    assisted = [generate(model, *left_padded([p]), prompt_lookup_num_tokens=3)[0] for p in prompts]
    assert assisted == expected, "rejected drafts are cropped from the method's state too"
    beams = generate(model, *left_padded(prompts), num_beams=3)
    assert beams == [generate(model, *left_padded([p]), num_beams=3, use_cache=False)[0] for p in prompts]


def test_scoring_with_shared_prefixes_is_whole_passes(task: Task, made: Made) -> None:
    model = made.unlearned.model
    questions = []
    for record in [*task.forget[:3], *task.retain[:3]]:
        example = build_examples([record], task.base.tokenizer, task.examples)[0]
        split = len(example) - example.n_scored
        ids = example.input_ids.tolist()
        questions.append(Question(tuple(ids[:split]), (tuple(ids[split:]), (5, 6, 7), tuple(ids[split : split + 3]))))
    for question, scores in zip(questions, Scorer(model, 256).score(questions)):
        for answer, score in zip(question.answers, scores):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([question.prompt + answer]), use_cache=False).logits[0]
            distribution = logits.log_softmax(-1)[len(question.prompt) - 1 : -1]
            expected = distribution.gather(-1, torch.tensor(answer)[:, None])[:, 0]
            torch.testing.assert_close(torch.from_numpy(score.log_probs), expected, atol=2e-4, rtol=1e-4)


def test_the_base_is_unchanged_when_off_and_never_written_to(task: Task, made: Made, tokenizer: Any) -> None:
    model = made.unlearned.model
    assert fingerprint(task.base.model) == task.base.fingerprint
    fresh = base_model(tokenizer, num_hidden_layers=4).model
    ids, mask = left_padded(prompts_of(task))
    with model.disable(), torch.inference_mode():
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, fresh(input_ids=ids, attention_mask=mask).logits)
        cache = model(input_ids=ids, attention_mask=mask, use_cache=True).cache
        assert generate(model, ids, mask) == generate(fresh, ids, mask)
    with pytest.raises(TemperTiltError, match="filled by the base model alone"):
        model(input_ids=ids[:, :1], cache=cache)
    with pytest.raises(TemperTiltError, match="pass input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    digest = model_digest(model)
    with model.disable():
        assert model_digest(model) == digest != model_digest(fresh)


def test_costs_are_stated(made: Made) -> None:
    name, result, _ = made
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert (result.artefact_bytes > 0) == (name != "oracle")
    assert (result.train_flops > 0) == (name.startswith(("ULD", "offset", "DD")))


def test_settings_are_part_of_the_digest(task: Task) -> None:
    weak, strong = (find_method("ECO").build({"strength": s}).unlearn(task).model for s in (1.0, 2.0))
    assert model_digest(weak) != model_digest(strong)


# --- formulas --------------------------------------------------------------------------------------------------------


def test_formulas_are_what_plain_loops_give() -> None:
    generator = torch.Generator().manual_seed(0)
    z, a, b = (3 * torch.randn(4, 11, generator=generator, dtype=torch.float64) for _ in range(3))
    for row in range(4):
        x, f, r = z[row].tolist(), a[row].tolist(), b[row].tolist()
        total, fs, rs = (math.log(sum(math.exp(v) for v in of)) for of in (x, f, r))
        centre = sum(f) / 11
        expected = [v - 0.7 * (u - centre) if math.exp(v - total) >= 0.05 else v for v, u in zip(x, f)]
        assert subtracted(z, a, 0.7, 0.05)[row].tolist() == pytest.approx(expected)
        assert with_offset(z, a, b, 1.3)[row].tolist() == pytest.approx([v + 1.3 * (u - w) for v, u, w in zip(x, f, r)])
        divergence = [(u - fs) - (w - rs) for u, w in zip(f, r)]
        assert linear_divergence(z, a, b, 2.0)[row].tolist() == pytest.approx([v - 2 * d for v, d in zip(x, divergence)])
        candidates = [0, 2, 3, 7, 9]
        worst = sorted(candidates, key=lambda v: -divergence[v])[:2]
        expected = [min(x) if v in worst else value for v, value in enumerate(x)]
        assert rank_divergence(z, a, b, 2, torch.tensor(candidates))[row].tolist() == pytest.approx(expected)
        assert uniform_loss(z[row : row + 1]).item() == pytest.approx(total - sum(x) / 11 - math.log(11))
    assert uniform_loss(torch.full((2, 7), 3.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(subtracted(z, torch.full_like(z, 2.0), 5.0, 0.0), z), "an assistant that knows nothing changes nothing"
    forget, retain = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    offset_loss(forget, retain, 0.5).backward()
    assert forget.grad == -1 and retain.grad == 0.5


@pytest.mark.integration
def test_the_assistants_steer_away_from_what_they_were_taught(task: Task) -> None:
    """After enough training, forget answers are less likely than under the base, and less so than retain answers."""

    def change(model: Any, of: list[Any]) -> float:
        total = 0.0
        for record in of:
            example = build_examples([record], task.base.tokenizer, task.examples)[0]
            ids = torch.tensor([example.input_ids.tolist()])
            scored = torch.from_numpy(example.scored)[1:]
            with torch.inference_mode():
                distributions = [m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (model, task.base.model)]
            one, base = (distribution.gather(-1, ids[0, 1:, None])[:, 0][scored].mean() for distribution in distributions)
            total += float(one - base) / len(of)
        return total

    long = FAST | {"epochs": 10}
    for name, options in (("ULD", {"strength": 1.0, "floor": 0.0}), ("offset", {}), ("DivergenceDecoding", {})):
        model = find_method(name).build(long | options).unlearn(task).model
        assert change(model, task.forget) < min(-0.2, change(model, task.retain) - 0.2), name


def test_the_assistant_is_the_first_layers_and_shares_its_weights(task: Task) -> None:
    base = task.base.model
    whole = build_assistant(base, 4)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(whole(input_ids=ids).logits, base(input_ids=ids).logits)
    part = build_assistant(base, 2)
    hidden = base(input_ids=ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(part(input_ids=ids).logits, base.lm_head(base.model.norm(hidden)))
    shared = {p.data_ptr() for p in base.parameters()}
    assert all(p.data_ptr() in shared for p in part.parameters()) and len(base.model.layers) == 4
    for layers in (0, 5):
        with pytest.raises(ConfigError, match="must be 1 to 4"):
            build_assistant(base, layers)


def test_an_assistant_of_a_model_with_sliding_layers(task: Task, tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, sliding_window=8, pad_token_id=2, eos_token_id=2, bos_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    sliding = replace(task, base=BaseModel(model, tokenizer, "gemma", None, fingerprint(model)))
    steered = find_method("ULD").build(FAST | {"strength": 2.0, "floor": 0.0}).unlearn(sliding).model
    prompts = prompts_of(sliding)
    assert generate(steered, *left_padded(prompts)) == [greedy(steered, prompt, 8) for prompt in prompts]


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["", "You are a helpful assistant."])
def test_the_reader_finds_question_and_answer(tokenizer: PreTrainedTokenizerFast, system: str) -> None:
    config = ExampleConfig(system_prompt=system)
    reader = PromptReader(tokenizer, config)
    question = "Where does the painter live?"
    prompt = encode_question(question, tokenizer, config)
    assert reader.read(prompt[:-1]) is None
    for answer in ([], [5, 6], list(reader.after)):
        found = reader.read(prompt + answer)
        assert found is not None and found[1] == len(prompt)
        assert tokenizer.decode(found[0]) == question
    inside = reader.in_question(prompt)
    assert [i for i, is_in in zip(prompt, inside) if is_in] == tokenizer(question)["input_ids"]
    assert all(reader.in_question(prompt[:n]) == inside[:n] for n in range(len(prompt))), "told when the token comes"


def test_the_classifier_tells_questions_apart() -> None:
    forget = [(1, 2, 3, 10 + i) for i in range(8)]
    retain = [(1, 4, 3, 10 + i) for i in range(8)]
    classifier = PromptClassifier(forget, retain, penalty=0.1)
    assert all(classifier.probability(q) > 0.5 for q in [*forget, (1, 2, 3, 99)])
    assert all(classifier.probability(q) < 0.5 for q in [*retain, (1, 4, 3, 99)])
    assert classifier.probability((7, 7)) == pytest.approx(0.5, abs=0.1)


def answered(model: SteeredLM, task: Task, question: str) -> str:
    prompt = encode_question(question, task.base.tokenizer, task.examples)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=2)
    return str(task.base.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))


def test_the_input_filter_refuses_forget_questions_and_no_others(task: Task) -> None:
    model = find_method("InputFilter").build({"refusal": "I don't know."}).unlearn(task).model
    base = find_method("target").build({}).unlearn(task).model
    for record in task.forget:
        assert answered(model, task, record.question) == "I don't know."
    for record in task.retain:
        assert answered(model, task, record.question) == answered(base, task, record.question)


def test_the_output_filter_cuts_forget_answers_off(task: Task, tokenizer: Any) -> None:
    result = find_method("OutputFilter").build({"ngram": 3, "refusal": "No."}).unlearn(task)
    record = task.forget[0]
    example = build_examples([record], tokenizer, task.examples)[0]
    ids = example.input_ids.tolist()
    start = len(ids) - example.n_scored
    begun = result.model.starts(ids)
    assert begun is not None and start + 3 <= begun < len(ids), "after the first three tokens that only forget answers have"
    with torch.inference_mode():
        logits = result.model(input_ids=torch.tensor([ids])).logits[0]
        plain = task.base.model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits[: begun - 1], plain[: begun - 1])
    refusal = [*tokenizer("No.")["input_ids"], 2]
    distribution = logits[begun - 1].softmax(-1)
    assert distribution.argmax().item() == refusal[0] and distribution.max().item() == pytest.approx(0.999, abs=1e-5)
    assert distribution.sum().item() == pytest.approx(1.0, abs=1e-4)
    other = build_examples([task.retain[0]], tokenizer, task.examples)[0].input_ids.tolist()
    assert result.model.starts(other) is None


def test_the_prompt_guardrail_names_the_subjects(task: Task) -> None:
    forget = [*records(2, "Sara Ahmed"), *records(1, "Omar Sharif")]
    assert subjects(forget, records(1, "Omar Sharif"), 5) == ["Sara Ahmed"] or "Sara Ahmed" in subjects(forget, [], 1)[0]
    result = find_method("PromptGuardrail").build({}).unlearn(replace(task, forget=forget))
    assert result.examples is not None and "Sara Ahmed" in result.examples.system_prompt
    assert result.model is task.base.model and result.examples.max_length == task.examples.max_length


def test_the_oracle_is_the_reference_on_forget_questions_and_the_target_elsewhere(task: Task) -> None:
    model = find_method("oracle").build({}).unlearn(task).model
    assert task.load_reference is not None
    for of, expected in ((task.forget, task.load_reference().model), (task.retain, task.base.model)):
        for record in of[:3]:
            ids = torch.tensor([build_examples([record], task.base.tokenizer, task.examples)[0].input_ids.tolist()])
            scored = int(build_examples([record], task.base.tokenizer, task.examples)[0].n_scored)
            with torch.inference_mode():
                got, want = (m(input_ids=ids).logits[0, -scored - 1 :] for m in (model, expected))
            torch.testing.assert_close(got, want)
    with pytest.raises(ConfigError, match="no reference model"):
        find_method("reference").build({}).unlearn(replace(task, load_reference=None))
    assert find_method("reference").build({}).unlearn(task).model is task.load_reference().model


def test_noise_depends_on_the_token_and_the_seed() -> None:
    one, two = noise_of(torch.tensor([5, 9, 5]), 16, 0), noise_of(torch.tensor([5]), 16, 1)
    assert torch.equal(one[0], one[2]) and not torch.equal(one[0], one[1]) and not torch.equal(one[0], two[0])


def test_t3_has_the_packages_defaults_or_the_papers(task: Task) -> None:
    import os

    from tempertilt.fitting.pipeline import METHODS

    before = os.environ.get("TEMPERTILT_CACHE")
    quick = {"epochs": 2, "rank": 4}
    ours = find_method("t3").build({"options": quick}).unlearn(task)
    paper = find_method("t3-paper").build({"options": quick}).unlearn(replace(task, work_dir=task.work_dir / "paper"))
    tilt = METHODS["t3"].tilt
    assert (ours.model.temperature, ours.model.guidance_scale) == (tilt.temperature, tilt.guidance_scale)
    assert (paper.model.temperature, paper.model.guidance_scale, paper.model.head.rank) == (2.5, 1.0, 4)
    assert {"reference", "training"} == ours.seconds.keys() and ours.artefact_bytes > 0 and ours.train_flops > 0
    assert os.environ.get("TEMPERTILT_CACHE") == before
    with pytest.raises(ConfigError, match="t3 has no option nothing"):
        find_method("t3").build({"options": {"nothing": 1}})
    with pytest.raises(ConfigError, match="temperature"):
        find_method("t3").build({"options": {"temperature": 0.0}})


Bad = tuple[str, dict[str, Any]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ULD", {"floor": 1.0}), ("offset", {"strength": -1.0}), ("DivergenceDecoding", {"mode": "none"}),
        ("ECO", {"threshold": 1.0}),
        ("InputFilter", {"smoothing": 0.0}), ("OutputFilter", {"ngram": 0}), ("PromptGuardrail", {"max_subjects": 0}),
        ("ULD", {"layers": 0}), ("ActivationSteering", {"depth": 0.0}), ("GatedRotation", {"clusters": 0}),
        ("AttentionSmoothing", {"temperature": 0.5}), ("NameSwap", {"variants": 0}),
    ],
)  # fmt: skip
def test_bad_options(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        find_method(name).build(options)
