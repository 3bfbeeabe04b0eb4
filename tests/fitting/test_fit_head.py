"""Fitting: the loss against numpy, what is learned, what is held out, and that it can be repeated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tempertilt.fitting.fit_head as fit_module
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.fitting.features import Features, FeatureStore
from tempertilt.fitting.fit_head import FitConfig, fit_head, guidance_loss, split_documents
from tempertilt.fitting.store import write_shard


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
