"""Traces against the definition of the three distributions, evaluated on whole sequences, and against `generate`."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch

from support.gates import gate_at
from support.oracle import Oracle
from support.tiny import make_llama
from tempertilt.errors import DataError
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.playground import page
from tempertilt.playground.trace import Candidate, Step, Tracer, choose, mean_probability

N = 14
PROMPT = torch.randint(5, 300, (9,), generator=torch.Generator().manual_seed(1)).tolist()
TILTS = [TiltConfig(2.5, 1.0), TiltConfig(1.0, 0.0), TiltConfig(1.3, 2.0), TiltConfig(0.7, 0.4)]


def make_head() -> GuidanceHead:
    head = GuidanceHead(32, 4, torch.arange(3, 200))
    torch.nn.init.normal_(head.B, generator=torch.Generator().manual_seed(5))
    return head


def make_gates(llama: Any, token: int) -> Gates:
    """A gate that opens at one token of the prompt."""
    with torch.no_grad():
        states = llama(input_ids=torch.tensor([PROMPT]), output_hidden_states=True).hidden_states[1][0]
    return Gates(1, gate_at(states[token][None], mean=states.mean(0), threshold=0.9))


@pytest.fixture()
def tracer(llama: Any, tokenizer: Any) -> Tracer:
    return Tracer(T3ForCausalLM.from_base(llama, make_head()), tokenizer)


@pytest.fixture()
def gated(llama: Any, tokenizer: Any) -> Tracer:
    return Tracer(T3ForCausalLM.from_base(llama, make_head(), gates=make_gates(llama, 6), pooling="last"), tokenizer)


def tokens(steps: list[Step]) -> list[int]:
    return [step.chosen.token_id for step in steps]


@pytest.mark.parametrize("tilt", TILTS)
def test_every_probability_by_its_definition(tracer: Tracer, tilt: TiltConfig) -> None:
    steps = list(tracer.steps(PROMPT, tilt, max_new_tokens=N))
    text = PROMPT + tokens(steps)
    whole = {
        "base": Oracle(tracer.model.base, tracer.model.head, 1.0, 0.0),
        "tempered": Oracle(tracer.model.base, tracer.model.head, tilt.temperature, 0.0),
        "guided": Oracle(tracer.model.base, tracer.model.head, tilt.temperature, tilt.guidance_scale),
    }
    expected = {name: oracle.distribution(text).exp() for name, oracle in whole.items()}
    _, contexts = whole["base"].contexts(text)
    oracle = whole["base"]
    for i, step in enumerate(steps):
        at = len(PROMPT) - 1 + i
        listed = set()
        for name, probabilities in expected.items():
            if name != "tempered":
                listed |= set(probabilities[at].topk(5).indices.tolist())
            for candidate in (step.chosen, *step.candidates):
                assert getattr(candidate, name) == pytest.approx(float(probabilities[at, candidate.token_id]), rel=1e-3, abs=1e-6)
        assert {candidate.token_id for candidate in step.candidates} == listed
        assert step.turned == (int(expected["base"][at].argmax()) != int(expected["guided"][at].argmax()))
        assert step.gate == 1.0
        for candidate in (step.chosen, *step.candidates):
            rows = (oracle.ids == candidate.token_id).nonzero().flatten()
            if not len(rows):
                assert candidate.log_odds is None and candidate.retain is None
                continue
            log_odds = float(oracle.b[rows[0]] @ (oracle.a @ contexts[at]))
            assert candidate.log_odds == pytest.approx(log_odds, abs=1e-4)
            assert candidate.retain == pytest.approx(1 / (1 + 2.718281828459045**-log_odds), abs=1e-5)


@pytest.mark.parametrize("prior", [0.5, 0.2])
@pytest.mark.parametrize("which", ["tracer", "gated"])
def test_weights_and_temperatures_by_their_definition(which: str, prior: float, request: pytest.FixtureRequest) -> None:
    tracer: Tracer = request.getfixturevalue(which)
    values = set()
    for step in tracer.steps(PROMPT, TiltConfig(2.5, 1.5, prior), max_new_tokens=4):
        values.add(step.gate)
        assert step.temperature == pytest.approx(1 + 1.5 * step.gate, rel=1e-6)
        for candidate in (step.chosen, *step.candidates):
            if candidate.log_odds is None:
                assert candidate.weight is None
            else:
                retained = -math.log((1 - prior) + prior * math.exp(-candidate.log_odds))
                assert candidate.weight == pytest.approx(1.5 * step.gate * retained, rel=1e-5, abs=1e-6)
    assert values == {1.0}


def test_where_the_gate_closes_nothing_is_weighed(llama: Any, tokenizer: Any) -> None:
    gates = make_gates(llama, 6)
    gates.asked.threshold, gates.close_after = 0.999, 5  # opened by the seventh of nine tokens, and by no later one
    tracer = Tracer(T3ForCausalLM.from_base(llama, make_head(), gates=gates, pooling="last"), tokenizer)
    steps = list(tracer.steps(PROMPT, TiltConfig(2.5, 1.5, 0.2), max_new_tokens=6))
    assert [step.gate for step in steps] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    for step in steps:
        assert step.temperature == pytest.approx(2.5 if step.gate else 1.0, rel=1e-6)
        weighed = [candidate for candidate in (step.chosen, *step.candidates) if candidate.log_odds is not None]
        assert weighed
        for candidate in weighed:
            retained = -math.log(0.8 + 0.2 * math.exp(-candidate.log_odds))
            assert candidate.weight == pytest.approx(1.5 * retained if step.gate else 0.0, rel=1e-5, abs=1e-6)
            if not step.gate:
                assert candidate.base == candidate.tempered == candidate.guided


def test_the_mean_probability_is_geometric() -> None:
    steps = [
        Step(Candidate(1, "a", base, 0.1, guided, None, None), (), 1.0, 1.0, False)
        for base, guided in ((0.5, 0.25), (0.125, 0.01))
    ]
    assert mean_probability(steps, "base") == pytest.approx(0.25)
    assert mean_probability(steps, "guided") == pytest.approx(0.05)


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("which", ["tracer", "gated"])
def test_it_takes_what_generate_takes(which: str, tilt: TiltConfig, request: pytest.FixtureRequest) -> None:
    tracer: Tracer = request.getfixturevalue(which)
    model, ids = tracer.model, torch.tensor([PROMPT])
    model.temperature, model.guidance_scale = tilt.temperature, tilt.guidance_scale
    options: dict[str, Any] = {"max_new_tokens": N, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    guided = model.generate(ids, **options)[0, len(PROMPT) :].tolist()
    with model.disable():
        base = model.generate(ids, **options)[0, len(PROMPT) :].tolist()
    model.temperature, model.guidance_scale = 9.0, 9.0  # not the tracer's
    assert tokens(list(tracer.steps(PROMPT, tilt, max_new_tokens=N))) == guided
    assert tokens(list(tracer.steps(PROMPT, tilt, follows="base", max_new_tokens=N))) == base


@pytest.mark.parametrize("which", ["tracer", "gated"])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_draft_changes_no_step(which: str, seed: int | None, request: pytest.FixtureRequest) -> None:
    tracer: Tracer = request.getfixturevalue(which)
    tilt = TILTS[0]
    plain = list(tracer.steps(PROMPT, tilt, max_new_tokens=N, seed=seed))
    half = tokens(plain)[: N // 2]
    passes: list[int] = []
    original = tracer.model.next_terms
    tracer.model.next_terms = lambda ids, *rest: passes.append(ids.shape[1]) or original(ids, *rest)  # type: ignore[method-assign,func-returns-value]
    for draft in (half, tokens(plain), [*half, 11, 12, 13], [9, *tokens(plain)], tokens(plain) + [7] * 30):
        again = list(tracer.steps(PROMPT, tilt, max_new_tokens=N, draft=draft, seed=seed))
        assert tokens(again) == tokens(plain)
        for a, b in zip(again, plain):
            assert (a.gate, a.ends, a.turned) == (b.gate, b.ends, b.turned)
            assert a.chosen.guided == pytest.approx(b.chosen.guided, rel=1e-3, abs=1e-7)
            assert a.chosen.text == b.chosen.text
    passes.clear()
    list(tracer.steps(PROMPT, tilt, max_new_tokens=N, draft=tokens(plain), seed=seed))
    assert len(passes) == 1


def test_the_gate_by_its_definition(gated: Tracer) -> None:
    read = gated.prompt(PROMPT)
    gates = gated.model.gates
    assert gates is not None
    gate = gates.asked
    with torch.no_grad():
        states = gated.model.base(input_ids=torch.tensor([PROMPT]), output_hidden_states=True).hidden_states[gates.layer][0]
    highest = -2.0
    for token, state in zip(read, states.double()):
        direction = (state - gate.mean.double()) / (state - gate.mean.double()).norm()
        evidence = max(float(exemplar.double() @ direction) - float(b) for exemplar, b in zip(gate.exemplars, gate.margins))
        highest = max(highest, evidence)
        assert token.evidence == pytest.approx(evidence, abs=1e-5)
        assert token.gate == float(highest > gate.threshold)
    assert [token.gate for token in read][5:7] == [0.0, 1.0]


def test_a_closed_gate_leaves_the_three_distributions_one(llama: Any, tokenizer: Any) -> None:
    gates = make_gates(llama, 6)
    gates.asked.threshold = 1.5
    tracer = Tracer(T3ForCausalLM.from_base(llama, make_head(), gates=gates, pooling="last"), tokenizer)
    steps = list(tracer.steps(PROMPT, TILTS[0], max_new_tokens=N))
    assert tokens(steps) == tokens(list(tracer.steps(PROMPT, TILTS[0], follows="base", max_new_tokens=N)))
    for step in steps:
        assert step.gate == 0.0 and not step.turned
        assert all(candidate.base == candidate.tempered == candidate.guided for candidate in step.candidates)
    assert any(candidate.log_odds for step in steps for candidate in step.candidates)  # the head's evidence is shown all the same


def test_a_reply_is_sure_whatever_the_sliders_say(gated: Tracer) -> None:
    tail = [20, 21, 9, 2]
    plain = tokens(list(gated.steps(PROMPT, TILTS[0], follows="base", max_new_tokens=N)))
    gated.model.set_reply(Reply("", [7, 8], [9, 10, 2], tail))
    for tilt in TILTS:
        for draft in ((), plain, tail, [20, 9]):
            for seed in (None, 3):
                steps = list(gated.steps(PROMPT, tilt, max_new_tokens=N, draft=draft, seed=seed))
                assert tokens(steps) == tail and steps[-1].ends
                for i, step in enumerate(steps):
                    assert step.replied and step.gate == 1.0 and step.chosen.guided == 1.0
                    assert all(c.guided == 0.0 for c in step.candidates if c.token_id != tail[i])
    steps = list(gated.steps(PROMPT, TILTS[0], follows="base", max_new_tokens=N))
    assert tokens(steps) == plain and all(step.replied for step in steps)
    assert page.step_data(steps[0])["replied"]
    gated.model.set_reply(None)
    assert not any(step.replied for step in gated.steps(PROMPT, TILTS[0], max_new_tokens=3))


def test_without_a_gate_the_prompt_has_no_evidence(tracer: Tracer, tokenizer: Any) -> None:
    ids = tokenizer("<|im_start|>user\nWho is Hina Ameen?<|im_end|>\n").input_ids
    read = tracer.prompt(ids)
    assert {(token.evidence, token.gate) for token in read} == {(None, None)}
    assert "".join(token.text for token in read) == tokenizer.decode(ids)
    assert [token.text for token in read if token.special] == ["<|im_start|>", "<|im_end|>"]


def test_it_ends_where_the_model_ends(llama: Any, tokenizer: Any) -> None:
    head = make_head()
    model = T3ForCausalLM.from_base(llama, head)
    second = tokens(list(Tracer(model, tokenizer).steps(PROMPT, TILTS[1], max_new_tokens=2)))[1]
    model.generation_config.eos_token_id = second
    steps = list(Tracer(model, tokenizer).steps(PROMPT, TILTS[1], max_new_tokens=N))
    assert len(steps) == 2 and [step.ends for step in steps] == [False, True]


def test_it_ends_where_the_positions_end(tokenizer: Any) -> None:
    llama = make_llama(max_position_embeddings=len(PROMPT) + 4)
    tracer = Tracer(T3ForCausalLM.from_base(llama, make_head()), tokenizer)
    assert len(list(tracer.steps(PROMPT, TILTS[0], max_new_tokens=N, draft=[7] * 30))) == 4
    for bad in ([], [5] * (len(PROMPT) + 4), [5, 320], [5, -1]):
        with pytest.raises(DataError, match=r"the prompt( has|: the model has no embedding)"):
            next(tracer.steps(bad, TILTS[0]))
        with pytest.raises(DataError, match=r"the prompt( has|: the model has no embedding)"):
            tracer.prompt(bad)


@pytest.mark.parametrize("text", ['na\u00efve caf\u00e9 \U0001f600, <b>"x"</b>\n next', "plain words  with   spaces"])
def test_pieces_make_the_text(tracer: Tracer, tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    pieces = [tracer.spell(ids[:i], token) for i, token in enumerate(ids)]
    assert "".join(piece for piece in pieces if "\ufffd" not in piece) == tokenizer.decode(ids)


def test_drawn_tokens_follow_their_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    n = 4000
    counts = torch.zeros(5)
    for seed in range(n // 20):
        for position in range(20):
            counts[choose(probabilities, seed, position)] += 1
    deviation = (probabilities * (1 - probabilities) * n).sqrt()
    assert bool(((counts - probabilities * n).abs() <= 4 * deviation).all())
    assert choose(probabilities, None, 0) == 0 and choose(probabilities, 5, 1) == choose(probabilities, 5, 1)


def test_threads_take_turns(tracer: Tracer) -> None:
    expected = {name: tokens(list(tracer.steps(PROMPT, TILTS[0], follows=name, max_new_tokens=N))) for name in ("base", "guided")}  # type: ignore[arg-type]
    found: dict[int, bool] = {}

    def run(i: int, name: Any) -> None:
        found[i] = tokens(list(tracer.steps(PROMPT, TILTS[0], follows=name, max_new_tokens=N))) == expected[name]

    threads = [threading.Thread(target=run, args=(i, name)) for i, name in enumerate(("base", "guided") * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(6), True)


def test_a_cache_of_the_base_alone_is_refused(gated: Tracer) -> None:
    model, ids = gated.model, torch.tensor([PROMPT])
    cache = model.base(input_ids=ids, use_cache=True).cache
    with pytest.raises(Exception, match="filled by the base"):
        model.next_terms(ids[:, :1], cache)


def test_samples_are_drawn_from_the_distribution_of_their_own_step(tracer: Tracer) -> None:
    tilt, seed = TILTS[0], 3
    drawn = tokens(list(tracer.steps(PROMPT, tilt, max_new_tokens=N, seed=seed)))
    oracle = Oracle(tracer.model.base, tracer.model.head, tilt.temperature, tilt.guidance_scale)
    guided = oracle.distribution(PROMPT + drawn).exp()
    assert drawn == [choose(guided[len(PROMPT) - 1 + i], seed, i) for i in range(len(drawn))]
    assert len({choose(torch.full((50,), 0.02), seed, position) for position in range(20)}) > 10
