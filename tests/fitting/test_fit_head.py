"""Fitting: the loss against numpy, what is learned, what is held out, and that it can be repeated."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tempertilt.fitting.fit_head as fit_module
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.fitting.estimate import Targets
from tempertilt.fitting.features import Features, FeatureStore
from tempertilt.fitting.fit_head import FitConfig, Retained, fit_head, guidance_loss, match_targets, split_documents
from tempertilt.fitting.store import write_shard
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.tilt import TiltConfig


def synthetic(directory: Path, seed: int = 0, signal: float = 3.0, n: int = 40) -> tuple[Features, Features]:
    """Retain and forget features that a linear rule separates for every token; five examples in a document."""
    rng = np.random.default_rng(seed)
    store, direction = FeatureStore(directory), rng.normal(size=16)
    classes = []
    for name, sign in (("retain", 1), ("forget", -1)):
        keys, documents = [f"{name}-{i}" for i in range(n)], [f"{name}-{i // 5}" for i in range(n)]
        lengths = rng.integers(2, 9, n).tolist()
        total = sum(lengths)
        features = rng.normal(size=(total, 16)) + sign * signal * direction / np.linalg.norm(direction)
        targets = rng.integers(0, 30, total)
        tensors = torch.tensor(features, dtype=torch.float32), torch.tensor(targets, dtype=torch.int32)
        write_shard(directory, name, keys, lengths, *tensors)
        store.refresh()
        classes.append(Features(store, keys, documents))
    return classes[0], classes[1]


def numpy_loss(log_odds: np.ndarray, retain: np.ndarray, balance: bool) -> float:
    probability = 1 / (1 + np.exp(-log_odds))
    loss = -np.where(retain, np.log(probability), np.log(1 - probability))
    return float((loss[retain].mean() + loss[~retain].mean()) / 2 if balance else loss.mean())


@pytest.mark.parametrize("balance", [True, False])
def test_loss_is_balanced_binary_cross_entropy(balance: bool) -> None:
    log_odds = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    retain = torch.arange(50) < 11
    expected = numpy_loss(log_odds.numpy(), retain.numpy(), balance)
    assert float(guidance_loss(log_odds, retain, balance)) == pytest.approx(expected, rel=1e-9)


def test_loss_stays_finite_for_large_log_odds() -> None:
    loss = guidance_loss(torch.tensor([-500.0, 500.0]), torch.tensor([True, False]))
    assert float(loss) == pytest.approx(500.0)


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
@pytest.mark.parametrize("shape", [{}, {"activation": "tanh", "num_hidden_layers": 2}])
def test_it_learns_what_is_separable(tmp_path: Path, optimizer: str, shape: dict[str, object]) -> None:
    retain, forget = synthetic(tmp_path)
    config = FitConfig(rank=4, optimizer=optimizer, epochs=60, **shape)  # type: ignore[arg-type]
    result = fit_head(retain, forget, config, base_parameters=10_000, progress=False)
    assert result.train.retain_accuracy > 0.97 and result.train.forget_accuracy > 0.97
    assert result.held_out is not None and result.held_out_documents == 2
    assert result.held_out.retain_accuracy > 0.8 and result.held_out.forget_accuracy > 0.8
    assert result.parameter_share == pytest.approx(result.num_parameters / 10_000)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    # the reported scores, from the definition
    head = result.head
    for features, is_retain, accuracy in (
        (retain, True, result.train.retain_accuracy),
        (forget, False, result.train.forget_accuracy),
    ):
        rows, targets = features.gather(range(len(features)))
        with torch.no_grad():
            dense = head.dense(head(head.project(rows)), 30)
        log_odds = dense[torch.arange(len(targets)), targets]
        assert float(((log_odds > 0) == is_retain).float().mean()) == pytest.approx(accuracy)


def test_lbfgs_reaches_the_minimum_of_the_penalised_loss(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path, signal=0.3)
    config = FitConfig(rank=3, optimizer="lbfgs", epochs=400, weight_decay=2.0, held_out_fraction=0.0)
    result = fit_head(retain, forget, config, progress=False)
    head = result.head
    rows, targets, classes = [], [], []
    for features, is_retain in ((retain, True), (forget, False)):
        row, target = features.gather(range(len(features)))
        rows.append(row)
        targets.append(target)
        classes.append(torch.full((len(target),), is_retain))
    head.requires_grad_(True)
    log_odds = head.score(head.project(torch.cat(rows)), head.rows_of(torch.cat(targets)))
    penalty = 1.0 / len(log_odds) * sum(parameter.square().sum() for parameter in head.parameters())
    loss = guidance_loss(log_odds, torch.cat(classes)) + penalty
    gradient = torch.autograd.grad(loss, list(head.parameters()))
    assert float(loss.detach()) < math.log(2) - 0.05
    assert max(float(part.abs().max()) for part in gradient) < 1e-4


def test_the_same_seed_gives_the_same_head_and_another_seed_another(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path)
    heads = [fit_head(retain, forget, FitConfig(rank=3, epochs=5, seed=seed), progress=False).head for seed in (1, 1, 2)]
    assert torch.equal(heads[0].B, heads[1].B) and torch.equal(heads[0].A, heads[1].A)
    assert not torch.equal(heads[0].B, heads[2].B)


def test_streamed_features_give_the_same_head_as_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retain, forget = synthetic(tmp_path)
    config = FitConfig(rank=3, epochs=4)
    in_memory = fit_head(retain, forget, config, progress=False)
    monkeypatch.setattr(fit_module, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(fit_module, "CHUNK_TOKENS", 37)
    streamed = fit_head(retain, forget, config, progress=False)
    torch.testing.assert_close(in_memory.head.B, streamed.head.B, rtol=1e-4, atol=1e-6)
    assert in_memory.train.loss == pytest.approx(streamed.train.loss, rel=1e-5)


def test_documents_are_never_cut(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path)
    for seed in range(5):
        split = split_documents(retain, forget, FitConfig(held_out_fraction=0.3, seed=seed))
        assert split is not None
        for kept, out, whole in zip(*split, (retain, forget)):
            assert not set(kept.documents) & set(out.documents)
            assert len(set(out.documents)) == 2 and sorted(kept.keys + out.keys) == sorted(whole.keys)


def test_one_document_holds_nothing_out(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path)
    alone = Features(forget.store, forget.keys, ["only"] * len(forget))
    assert split_documents(retain, alone, FitConfig()) is None
    assert fit_head(retain, alone, FitConfig(rank=2, epochs=2), progress=False).held_out is None


def test_early_stopping_takes_the_best_epoch_and_fits_every_record_for_as_many(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path, signal=0.05)  # hardly anything to learn: it soon overfits
    config = FitConfig(rank=8, epochs=80, early_stopping=True, patience=5, held_out_fraction=0.3)
    result = fit_head(retain, forget, config, progress=False)
    held_out = [entry["held_out_loss"] for entry in result.history]
    assert len(held_out) < 80 and result.epochs == int(np.argmin(held_out)) + 1
    assert result.held_out is not None and result.held_out.loss == pytest.approx(min(held_out))
    plain = fit_head(retain, forget, FitConfig(rank=8, epochs=result.epochs, held_out_fraction=0.0), progress=False)
    assert torch.equal(plain.head.B, result.head.B)


def test_rows_of_the_head_are_the_targets_of_both_classes(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path)
    seen = set(retain.gather(range(40))[1].tolist()) | set(forget.gather(range(40))[1].tolist())
    assert fit_head(retain, forget, FitConfig(epochs=1), progress=False).head.token_ids.tolist() == sorted(seen)


def test_a_diverging_loss_says_what_to_do(tmp_path: Path) -> None:
    retain, forget = synthetic(tmp_path)
    with pytest.raises(TemperTiltError, match="lower learning_rate"):
        fit_head(retain, forget, FitConfig(learning_rate=1e38, epochs=3), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "must be one of adamw, lbfgs"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"held_out_fraction": 1.0}, "held_out_fraction is 1"),
        ({"early_stopping": True, "held_out_fraction": 0.0}, "needs held-out documents"),
        ({"rank": 0}, "rank is 0"),
        ({"fit_batch_size": 1}, "fit_batch_size is 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitConfig(**options)  # type: ignore[arg-type]


# --- match ---------------------------------------------------------------------------------------------------------------

D, V, K = 12, 40, 15  # the head's tokens are the first K


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def tilted(states: np.ndarray, base: np.ndarray, weights: tuple[np.ndarray, ...], temperature: float) -> np.ndarray:
    """Whole guided log-probabilities `(N, V)`, by the definition."""
    a, b, bias = weights
    tilt = np.zeros_like(base)
    tilt[:, :K] = states @ a.T @ b.T + bias
    return log_softmax(base / temperature + tilt)


def columns_and_rest(log_probs: np.ndarray, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    rest = np.log(np.exp(log_probs[:, K:] / temperature).sum(-1))
    return torch.tensor(log_probs[:, :K]).float(), torch.tensor(rest).float()


class Known:
    """Contexts whose targets a known head makes, and retain contexts elsewhere, where the base is to stay."""

    def __init__(self, temperature: float, n: int = 400) -> None:
        rng = np.random.default_rng(0)
        self.temperature = temperature
        output = rng.normal(size=(V, D))
        self.states, self.retain_states = (rng.normal(size=(n, D)) * 0.7 for _ in range(2))
        self.states[:, 0], self.retain_states[:, 0] = 2.0, -2.0
        self.base, self.retain_base = (log_softmax(states @ output.T) for states in (self.states, self.retain_states))
        weights = rng.normal(size=(3, D)) / D**0.5, 2 * rng.normal(size=(K, 3)), rng.normal(size=K)
        self.target = tilted(self.states, self.base, weights, temperature)
        self.rows = torch.tensor(rng.integers(0, K, n))

    def targets(self) -> Targets:
        base, target = columns_and_rest(self.base)[0], columns_and_rest(self.target)
        rest = columns_and_rest(self.base, self.temperature)[1]
        ratios = torch.zeros(len(self.rows))
        return Targets(torch.arange(K), torch.tensor(self.states).float(), self.rows, base, rest, *target, ratios, {})

    def retained(self) -> Retained:
        base, rest = columns_and_rest(self.retain_base)[0], columns_and_rest(self.retain_base, self.temperature)[1]
        return Retained(torch.tensor(self.retain_states).float(), base, rest)

    def divergences(self, head: GuidanceHead) -> tuple[float, float, float]:
        """KL of targets, mean error of the own tokens, KL of the base at retain contexts: over the head's tokens and the rest."""
        assert head.bias is not None
        weights = tuple(part.detach().double().numpy() for part in (head.A, head.B, head.bias))
        guided = tilted(self.states, self.base, weights, self.temperature)
        own = np.abs(guided - self.target)[np.arange(len(self.rows)), self.rows.numpy()].mean()
        kept = tilted(self.retain_states, self.retain_base, weights, self.temperature)
        return lumped(self.target, guided), float(own), lumped(self.retain_base, kept)


def lumped(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL(p || q), all tokens from K on taken as one."""
    p, q = (np.concatenate([np.exp(part[:, :K]), np.exp(part[:, K:]).sum(-1, keepdims=True)], -1) for part in (p, q))
    return float((p * np.log(p / q)).sum(-1).mean())


MATCH = FitConfig(objective="match", rank=4, match_steps=200, match_batch_size=200, weight_decay=0.0, learning_rate=3e-2)


def at(temperature: float) -> TiltConfig:
    """The tilt that is the log-odds themselves."""
    return TiltConfig(temperature, 1.0, 1.0)


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_targets_of_a_known_head_are_reached(temperature: float) -> None:
    known = Known(temperature)
    result = match_targets(known.targets(), None, MATCH, at(temperature), base_parameters=1000, progress=False)
    divergence, token_error, _ = known.divergences(result.head)
    assert result.divergence == pytest.approx(divergence, abs=1e-4) and divergence < 0.01
    assert result.token_error == pytest.approx(token_error, abs=1e-3) and token_error < 0.1
    new = GuidanceHead(D, 4, range(K), bias=True)
    assert known.divergences(new)[0] > 50 * divergence  # what there was to do
    assert result.num_parameters == 4 * D + 4 * K + K and result.parameter_share == result.num_parameters / 1000
    assert set(result.summary()) == {"divergence", "token_error", "seconds", "num_parameters", "parameter_share"}


def test_a_matched_head_is_the_one_that_will_be_read_again() -> None:
    known = Known(1.0, n=60)
    options = dataclasses.replace(MATCH, match_steps=20)
    head = match_targets(known.targets(), None, options, at(1.0), progress=False).head
    again = GuidanceHead.from_tensors(head.tensors(), head.activation)
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, dict(head.named_parameters())[name], atol=0, rtol=1e-3)
    assert (head.A.half().float() == head.A).all()
    twice = match_targets(known.targets(), None, options, at(1.0), progress=False).head
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), twice.parameters()))


def test_retain_contexts_stay_as_they_are() -> None:
    known = Known(1.0)
    options = dataclasses.replace(MATCH, rank=8, retain_weight=1.0, match_steps=200)
    alone, beside = (
        match_targets(known.targets(), kept, options, at(1.0), progress=False).head for kept in (None, known.retained())
    )
    (reached, _, moved), (also_reached, _, kept) = (known.divergences(head) for head in (alone, beside))
    assert kept < 0.3 * moved and also_reached < 0.1 + reached
    off = dataclasses.replace(options, retain_weight=0.0)
    without = match_targets(known.targets(), known.retained(), off, at(1.0), progress=False).head
    assert all(torch.equal(a, b) for a, b in zip(without.parameters(), alone.parameters()))


def test_a_weight_on_the_own_tokens_brings_them_nearer() -> None:
    """A head of rank 1 can't reach all; what it does reach depends on the weights."""
    known = Known(1.0)
    none, much = (
        match_targets(known.targets(), None, dataclasses.replace(MATCH, rank=1, token_weight=weight), at(1.0), progress=False)
        for weight in (0.0, 3.0)
    )
    assert much.token_error < none.token_error and none.divergence < much.divergence


def test_a_loss_that_is_not_finite_is_said() -> None:
    known = Known(1.0, n=30)
    targets = dataclasses.replace(known.targets(), states=torch.full((30, D), math.nan))
    with pytest.raises(TemperTiltError, match="step 0; lower learning_rate"):
        match_targets(targets, None, MATCH, at(1.0), progress=False)
