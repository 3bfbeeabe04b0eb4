"""Every loss against plain loops over one sequence at a time, its gradient's direction, and the limits that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from support.tiny import make_llama
from tempertilt.data.examples import Example
from tempertilt.methods.altpo import AltPO, AltPOConfig
from tempertilt.methods.ce_u import CEU, CEUConfig
from tempertilt.methods.grad_ascent import GradAscent, ascent_loss
from tempertilt.methods.grad_diff import GradDiff
from tempertilt.methods.idk_dpo import DPOConfig, IdkDPO
from tempertilt.methods.idk_nll import IdkNLL
from tempertilt.methods.kl import KL, KLConfig
from tempertilt.methods.npo import NPO, NPOConfig, npo_loss
from tempertilt.methods.pdu import PDU, PDUConfig, flatness_loss, next_multiplier
from tempertilt.methods.rmu import RMU, RMUConfig, random_direction
from tempertilt.methods.satimp import SatImp, SatImpConfig
from tempertilt.methods.simnpo import SimNPO, SimNPOConfig
from tempertilt.methods.trained import BalanceConfig, TrainedMethod
from tempertilt.methods.undial import Undial, UndialConfig, undial_loss
from tempertilt.methods.wga import WGA, WGAConfig
from tempertilt.training.config import TrainConfig
from tempertilt.training.runner import Runner, Step

Answer = list[tuple[list[float], int]]  # for each answer token: the logits that predict it, and the token


def make_examples(n: int, seed: int) -> list[Example]:
    """Sequences of different lengths, answers of different lengths behind prompts of different lengths."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        prompt, answer = int(rng.integers(2, 6)), int(rng.integers(2, 8))
        ids = rng.integers(3, 60, prompt + answer).astype(np.int32)
        out.append(Example(ids, np.arange(prompt + answer) >= prompt, f"{i}", f"{i}", i))
    return out


ROLES = {"forget": make_examples(4, 0), "retain": make_examples(5, 1), "alternate": make_examples(4, 2)}
BATCH = {"forget": [0, 2, 3], "retain": [4, 6, 8], "alternate": [9, 11, 12]}


def by_number(i: int) -> Example:
    return [example for examples in ROLES.values() for example in examples][i]


def make_model() -> Any:
    return make_llama(vocab_size=60, num_hidden_layers=4)


def moved(runner: Runner) -> Runner:
    """The runner with other weights than the frozen ones."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in runner.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return runner


def make_runner(method: TrainedMethod, lora_rank: int = 4) -> Runner:
    runner = Runner(make_model(), ROLES, method, TrainConfig(lora_rank=lora_rank))
    runner.run_frozen(method)
    return moved(runner)


def plain(model: Any, numbers: list[int]) -> list[Answer]:
    """Answers one unpadded sequence at a time: token i of the sequence with the logits at i - 1."""
    out = []
    for number in numbers:
        example = by_number(number)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids.tolist()])).logits[0].double().tolist()
        scored = [i for i in range(len(example)) if example.scored[i]]
        out.append([(logits[i - 1], int(example.input_ids[i])) for i in scored])
    return out


def log_distribution(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - total for z in logits]


def nll(answer: Answer) -> list[float]:
    return [-log_distribution(logits)[token] for logits, token in answer]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def all_nll(answers: list[Answer]) -> list[float]:
    return [value for answer in answers for value in nll(answer)]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def cross_entropy(distribution: list[float], logits: list[float]) -> float:
    return -sum(p * lp for p, lp in zip(distribution, log_distribution(logits)) if p)


def without(logits: list[float], token: int, amount: float) -> list[float]:
    """Probabilities after `amount` is taken from a token's logit."""
    lowered = [z - (amount if v == token else 0.0) for v, z in enumerate(logits)]
    return [math.exp(lp) for lp in log_distribution(lowered)]


def undial(new: list[Answer], old: list[Answer], beta: float) -> float:
    pairs = [(a, b) for one, other in zip(new, old) for a, b in zip(one, other)]
    return mean([cross_entropy(without(frozen, token, beta), logits) for (logits, token), (frozen, _) in pairs])


def kl(new: list[Answer], old: list[Answer]) -> float:
    pairs = [(a, b) for one, other in zip(new, old) for (a, _), (b, _) in zip(one, other)]
    return mean([sum(math.exp(q) * (q - p) for p, q in zip(log_distribution(a), log_distribution(b))) for a, b in pairs])


def dpo(w: list[Answer], w0: list[Answer], lo: list[Answer], lo0: list[Answer], beta: float) -> float:
    sums = [[sum(nll(answer)) for answer in of] for of in (w, w0, lo, lo0)]
    return mean([2 / beta * softplus(-beta * ((b - a) - (d - c))) for a, b, c, d in zip(*sums)])


def weighted(answers: list[Answer], weight: Callable[[float], float]) -> float:
    return mean([-weight(math.exp(-value)) * value for value in all_nll(answers)])


Direct = Callable[[list[Answer], list[Answer], list[Answer], list[Answer], list[Answer], list[Answer]], float]
"""Forget, retain and alternate answers of the model, then of the frozen one."""

CASES: dict[str, tuple[Callable[[], TrainedMethod], Direct]] = {
    "GradAscent": (lambda: GradAscent(TrainConfig()), lambda f, r, a, f0, r0, a0: -mean(all_nll(f))),
    "GradDiff": (
        lambda: GradDiff(BalanceConfig(gamma=0.5, alpha=2.0)),
        lambda f, r, a, f0, r0, a0: -0.5 * mean(all_nll(f)) + 2 * mean(all_nll(r)),
    ),
    "KL": (lambda: KL(KLConfig(alpha=3.0)), lambda f, r, a, f0, r0, a0: -mean(all_nll(f)) + 3 * kl(r, r0)),
    "NPO": (
        lambda: NPO(NPOConfig(beta=0.3)),
        lambda f, r, a, f0, r0, a0: (
            mean([2 / 0.3 * softplus(-0.3 * (sum(nll(x)) - sum(nll(y)))) for x, y in zip(f, f0)]) + mean(all_nll(r))
        ),
    ),
    "SimNPO": (
        lambda: SimNPO(SimNPOConfig(beta=2.0, delta=0.5, gamma=1.0, alpha=0.0)),
        lambda f, r, a, f0, r0, a0: mean([softplus(-2.0 * (mean(nll(x)) - 0.5)) for x in f]),
    ),
    "IdkDPO": (lambda: IdkDPO(DPOConfig(beta=0.2, alpha=0.0)), lambda f, r, a, f0, r0, a0: dpo(a, a0, f, f0, 0.2)),
    "AltPO": (lambda: AltPO(AltPOConfig(beta=0.5, alpha=0.0)), lambda f, r, a, f0, r0, a0: dpo(a, a0, f, f0, 0.5)),
    "IdkNLL": (lambda: IdkNLL(BalanceConfig()), lambda f, r, a, f0, r0, a0: mean(all_nll(a)) + mean(all_nll(r))),
    "UNDIAL": (lambda: Undial(UndialConfig(beta=7.0)), lambda f, r, a, f0, r0, a0: undial(f, f0, 7.0)),
    "CE-U": (
        lambda: CEU(CEUConfig()),
        lambda f, r, a, f0, r0, a0: mean([cross_entropy(without(z, token, 1e9), z) for x in f for z, token in x[1:]]),
    ),
    "WGA": (lambda: WGA(WGAConfig(beta=0.7, alpha=0.0)), lambda f, r, a, f0, r0, a0: weighted(f, lambda p: p**0.7)),
    "SatImp": (
        lambda: SatImp(SatImpConfig(beta1=2.0, beta2=1.5, alpha=0.0)),
        lambda f, r, a, f0, r0, a0: weighted(f, lambda p: p**2 * (1 - p) ** 1.5),
    ),
    "PDU": (
        lambda: PDU(PDUConfig(multiplier=4.0, retain_bound=0.3)),
        lambda f, r, a, f0, r0, a0: (
            mean([(max(z) - mean(z)) ** 2 for x in f for z, _ in x]) + 4.0 * (mean(all_nll(r)) - 0.3)
        ),
    ),
}  # fmt: skip

NEEDS_FROZEN = {"KL": ("retain",), "NPO": ("forget",), "IdkDPO": ("forget", "alternate"), "UNDIAL": ("forget",)}


@pytest.mark.parametrize("lora_rank", [4, 0])
@pytest.mark.parametrize("name", list(CASES))
def test_a_loss_is_what_plain_loops_give(name: str, lora_rank: int) -> None:
    build, direct = CASES[name]
    method = build()
    runner = make_runner(method, lora_rank)
    loss = method.loss(Step(runner, BATCH, 0.0))
    roles = [
        plain(model, BATCH[role]) for model in (runner.causal_lm, make_model()) for role in ("forget", "retain", "alternate")
    ]
    assert loss.item() == pytest.approx(direct(*roles), rel=2e-4, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("IdkNLL", "UNDIAL", "PDU")])
def test_a_step_down_the_loss_makes_the_true_answers_less_likely(name: str) -> None:
    method = CASES[name][0]()
    method.config = type(method.config)(**{**vars(method.config), **({"alpha": 0.0} if hasattr(method.config, "alpha") else {})})
    runner = make_runner(method)
    step = Step(runner, BATCH, 0.0)
    before = step.forget.mean_nll.item()
    method.loss(step).backward()
    with torch.no_grad():
        squared = sum(float(p.grad.square().sum()) for p in runner.parameters() if p.grad is not None)
        for parameter in runner.parameters():
            if parameter.grad is not None:
                parameter -= 0.02 / math.sqrt(squared) * parameter.grad
    assert Step(runner, BATCH, 0.0).forget.mean_nll.item() > before


def test_undial_and_pdu_lower_a_true_token_that_stands_out() -> None:
    targets = torch.tensor([2, 0, 1])
    frozen = 8.0 * torch.nn.functional.one_hot(targets, 5) + torch.arange(5) * 0.1
    for loss_of in (lambda z: undial_loss(z, frozen, targets, 10.0), flatness_loss):
        logits = frozen.clone().requires_grad_(True)
        loss_of(logits).backward()
        assert logits.grad is not None
        of_target = logits.grad.gather(-1, targets[:, None])
        assert bool((of_target > 0).all()), "a step down the loss lowers the true token's logit"
        assert bool((logits.grad.scatter(-1, targets[:, None], -1.0) < 0).all()), "and raises the others"


def test_a_step_down_idk_nll_makes_the_refusal_likelier() -> None:
    method = IdkNLL(BalanceConfig(alpha=0.0))
    runner = make_runner(method)
    before = Step(runner, BATCH, 0.0).alternate.mean_nll
    gradients = torch.autograd.grad(method.loss(Step(runner, BATCH, 0.0)), [p for p in runner.parameters() if p.requires_grad])
    with torch.no_grad():
        for parameter, gradient in zip((p for p in runner.parameters() if p.requires_grad), gradients):
            parameter -= 1e-3 * gradient
    assert Step(runner, BATCH, 0.0).alternate.mean_nll < before


def test_rmu_is_what_plain_loops_give() -> None:
    method = RMU(RMUConfig(layer=2, steering=3.0, alpha=1.5))
    method.goal = 3.0 * random_direction(32, 1)
    assert random_direction(32, 1).norm().item() == pytest.approx(1.0) and bool((random_direction(32, 1) >= 0).all())
    runner = make_runner(method)

    def states(model: Any, numbers: list[int]) -> list[list[float]]:
        """What layer 2 gives at the answer tokens: entry 3 of the hidden states, entry 0 being the embeddings."""
        out = []
        for number in numbers:
            example = by_number(number)
            with torch.no_grad():
                ids = torch.tensor([example.input_ids.tolist()])
                hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[3][0]
            out += [hidden[i].tolist() for i in range(len(example)) if example.scored[i]]
        return out

    goal = method.goal.tolist()
    forget, retain = states(runner.causal_lm, BATCH["forget"]), states(runner.causal_lm, BATCH["retain"])
    frozen = states(make_model(), BATCH["retain"])
    direct = mean([mean([(h - g) ** 2 for h, g in zip(state, goal)]) for state in forget])
    direct += 1.5 * mean([mean([(h - g) ** 2 for h, g in zip(state, old)]) for state, old in zip(retain, frozen)])
    loss = method.loss(Step(runner, BATCH, 0.0))
    assert loss.item() == pytest.approx(direct, rel=1e-4)
    loss.backward()
    trained = {name for name, p in runner.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert trained and all(".layers.2." in name for name in trained), "the layers above do not train"
    before = [p.clone() for p in runner.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in runner.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert method.loss(Step(runner, BATCH, 0.0)).item() < loss.item() and before


@pytest.mark.parametrize("name", list(NEEDS_FROZEN))
def test_the_frozen_model_runs_once_and_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = CASES[name][0]()
    runner = make_runner(method)  # has moved away from the frozen weights since
    calls: list[int] = []
    monkeypatch.setattr(Runner, "run_frozen", lambda *_: calls.append(1))
    for role in NEEDS_FROZEN[name]:
        answers = getattr(Step(runner, BATCH, 0.0), role)
        expected = [value for answer in plain(make_model(), BATCH[role]) for value in nll(answer)]
        assert (-answers.reference.log_probs).tolist() == pytest.approx(expected, abs=1e-4)
        assert answers.frozen_nll.tolist() == pytest.approx([sum(nll(a)) for a in plain(make_model(), BATCH[role])], abs=1e-3)
        assert answers.reference.logits.log_softmax(-1).gather(-1, answers.targets[:, None])[:, 0].tolist() == pytest.approx(
            [-value for value in expected], abs=1e-4
        )
        assert not answers.reference.logits.requires_grad
    assert not calls
    others = [role for role in BATCH if role not in NEEDS_FROZEN[name]]
    assert all(getattr(Step(runner, BATCH, 0.0), role).frozen is None for role in others)


def test_prompts_have_no_part_in_a_loss() -> None:
    """The gradient of the loss by the logits is 0 but where answer tokens are predicted."""
    method = GradAscent(TrainConfig())
    runner = make_runner(method, 0)
    seen: list[Tensor] = []
    body = runner.causal_lm.model

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        seen.append(output.last_hidden_state)

    body.register_forward_hook(keep)
    method.loss(Step(runner, BATCH, 0.0)).backward()
    assert seen[0].grad is not None
    touched = seen[0].grad.abs().sum(-1) > 0
    for row, number in enumerate(BATCH["forget"]):
        scored = by_number(number).scored
        predicting = [bool(scored[i + 1]) if i + 1 < len(scored) else False for i in range(touched.shape[1])]
        assert touched[row].tolist() == predicting


def test_gradient_ascent_diverges_linearly_and_npo_is_bounded() -> None:
    frozen = torch.tensor([3.0, 5.0])
    worse = [100.0, 200.0, 400.0, 800.0]
    ascent = [ascent_loss(torch.full((4,), value)).item() for value in worse]
    assert ascent == pytest.approx([-value for value in worse])
    npo = [npo_loss(torch.full((2,), value), frozen, 0.1).item() for value in worse]
    assert all(0 <= value < 1e-2 for value in npo) and npo == sorted(npo, reverse=True)
    nll_sums = torch.full((2,), 400.0, requires_grad=True)
    npo_loss(nll_sums, frozen, 0.1).backward()
    assert nll_sums.grad is not None and float(nll_sums.grad.abs().max()) < 1e-12


def test_npo_with_a_small_beta_is_gradient_ascent() -> None:
    def gradient(loss_of: Callable[[Runner], Tensor]) -> Tensor:
        runner = make_runner(NPO(NPOConfig()))
        trained = [p for p in runner.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(runner), trained)])

    ascent = gradient(lambda runner: -Step(runner, BATCH, 0.0).forget.nll.mean())

    def distance(beta: float) -> float:
        def loss(runner: Runner) -> Tensor:
            forget = Step(runner, BATCH, 0.0).forget
            return npo_loss(forget.nll, forget.frozen_nll, beta)

        return float((gradient(loss) - ascent).norm() / ascent.norm())

    distances = [distance(beta) for beta in (0.1, 0.01, 0.001)]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-2
    assert distances[1] / distances[2] == pytest.approx(10, rel=0.2), "the difference shrinks with beta"


def test_pdu_raises_its_multiplier_above_the_bound_only() -> None:
    assert next_multiplier(10.0, 0.5, 0.3, 5.0) == pytest.approx(11.0)
    assert next_multiplier(10.0, 0.1, 0.3, 5.0) == pytest.approx(9.0)
    assert next_multiplier(0.5, 0.0, 0.3, 5.0) == 0.0
    method = PDU(PDUConfig(multiplier=2.0, retain_bound=0.0, dual_rate=1.0, dual_warmup=1.0))
    runner = make_runner(method)
    method.loss(Step(runner, BATCH, 0.5))
    assert method.multiplier == 2.0, "the warm-up is not over"
    method.loss(Step(runner, BATCH, 1.0))
    assert method.multiplier == pytest.approx(2.0 + mean(all_nll(plain(runner.causal_lm, BATCH["retain"]))), rel=1e-4)
