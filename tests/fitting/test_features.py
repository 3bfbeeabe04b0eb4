"""Extraction against a direct evaluation, the store under kills, damage and changed input."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from support.tiny import make_examples, make_llama
from support.warm import warm_processes
from tempertilt.config.keys import PROTOCOLS
from tempertilt.data.batches import example_key, plan_batches
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, DataError, ModelError, TemperTiltError
from tempertilt.fitting.features import FeatureConfig, Features, FeatureStore, extract_features, store_name


def direct(model: torch.nn.Module, example: Example, pooling: str) -> np.ndarray:
    """Pooled states that predict the scored tokens, one unpadded sequence, by a loop."""
    ids = torch.from_numpy(example.input_ids).long()[None]
    with torch.no_grad():
        state = model.model(input_ids=ids).last_hidden_state[0].double().numpy()
    rows = [state[: t + 1].mean(0) if pooling == "mean" else state[t] for t in range(len(state))]
    return np.stack([rows[t - 1] for t in np.flatnonzero(example.scored)])


def collect(features: Features) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [features.gather([i]) for i in range(len(features))]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_features_are_the_pooled_states_before_each_scored_token(tmp_path: Path, pooling: str, stored: str) -> None:
    model, examples = make_llama(), make_examples(30)
    config = FeatureConfig(pooling=pooling, feature_dtype=stored, batch_tokens=100)
    features, stats = extract_features(model, examples, FeatureStore(tmp_path), config, progress=False)
    assert stats.examples == 30 and stats.reused == 0 and stats.tokens == sum(map(len, examples))
    for example, (rows, targets) in zip(examples, collect(features)):
        assert targets.tolist() == example.input_ids[example.scored].tolist()
        tolerance = 1e-5 if stored == "float32" else 5e-3
        np.testing.assert_allclose(rows.numpy(), direct(model, example, pooling), atol=tolerance, rtol=tolerance)
    assert features.documents == [example.document for example in examples]
    together, _ = features.gather([3, 1])
    assert torch.equal(together, torch.cat([features.gather([3])[0], features.gather([1])[0]]))


def test_batches_hold_every_example_once_within_the_budget() -> None:
    examples = make_examples(200, longest=90)
    batches = plan_batches(examples, 256)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) == 1 or len(batch) * max(len(examples[i]) for i in batch) <= 256 for batch in batches)
    widths = [max(len(examples[i]) for i in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    padded = sum(len(batch) * width for batch, width in zip(batches, widths))
    assert padded < 1.1 * sum(map(len, examples))


def test_only_what_changed_runs_again(tmp_path: Path) -> None:
    model, examples, config = make_llama(), make_examples(20), FeatureConfig(batch_tokens=100)
    first, _ = extract_features(model, examples, FeatureStore(tmp_path), config, progress=False)
    again, stats = extract_features(model, examples, FeatureStore(tmp_path), config, progress=False)
    assert stats.reused == 20 and stats.tokens == 0
    assert all(torch.equal(a[0], b[0]) for a, b in zip(collect(first), collect(again)))
    changed = examples[7]
    ids = changed.input_ids.copy()
    ids[-1] += 1
    examples[7] = Example(ids, changed.scored, changed.document, changed.source, 7)
    assert example_key(examples[7]) != example_key(changed)
    features, stats = extract_features(model, examples, FeatureStore(tmp_path), config, progress=False)
    assert stats.reused == 19 and stats.tokens == len(changed)
    np.testing.assert_allclose(features.gather([7])[0].numpy(), direct(model, examples[7], "mean"), atol=1e-5)


def test_scored_positions_are_part_of_the_key() -> None:
    example = make_examples(1)[0]
    scored = example.scored.copy()
    scored[-1] = False
    assert example_key(example) != example_key(Example(example.input_ids, scored, "d", "s", 0))


def test_equal_examples_run_once(tmp_path: Path) -> None:
    example = make_examples(1)[0]
    features, stats = extract_features(make_llama(), [example] * 3, FeatureStore(tmp_path), FeatureConfig(), progress=False)
    assert stats.tokens == len(example) and len(features) == 3


def test_another_model_pooling_type_or_protocol_has_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    names = {
        store_name("a", model, FeatureConfig()),
        store_name("b", model, FeatureConfig()),
        store_name("a", model, FeatureConfig(pooling="last")),
        store_name("a", model, FeatureConfig(feature_dtype="float16")),
        store_name("a", model.bfloat16(), FeatureConfig()),
    }
    monkeypatch.setitem(PROTOCOLS, "features", PROTOCOLS["features"] + 1)
    names.add(store_name("a", model, FeatureConfig()))
    assert len(names) == 6


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_shard_is_run_again_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    model, examples, config = make_llama(), make_examples(12), FeatureConfig()
    whole, _ = extract_features(model, examples, FeatureStore(tmp_path), config, progress=False)
    expected = collect(whole)
    [shard] = tmp_path.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-40] ^= 1
    shard.write_bytes({"truncate": bytes(content[: len(content) // 2]), "flip": bytes(content), "empty": b""}[damage])
    features, stats = extract_features(model, examples, FeatureStore(tmp_path), config, progress=False)
    assert "damaged" in caplog.text and shard.name in caplog.text
    assert stats.reused == 0
    assert all(torch.equal(a[0], b[0]) for a, b in zip(expected, collect(features)))


def test_a_shard_that_must_not_be_read_stays(tmp_path: Path, unreadable: Callable[[Path], None]) -> None:
    extract_features(make_llama(), make_examples(4), FeatureStore(tmp_path), FeatureConfig(), progress=False)
    [shard] = tmp_path.glob("*.safetensors")
    later = FeatureStore(tmp_path, verify=False)
    unreadable(shard)
    for read in (lambda: FeatureStore(tmp_path), later.refresh):
        with pytest.raises(TemperTiltError, match=f"cannot read .*{shard.name}': Permission denied"):
            read()
    assert shard.is_file()


def _extract_slowly(directory: Path) -> None:
    """Every batch is a shard; a batch takes 50 ms."""
    import tempertilt.fitting.workers as module

    run = module.batch_features

    def slow(*args: object) -> object:
        time.sleep(0.05)
        return run(*args)  # type: ignore[arg-type]

    module.batch_features = slow  # type: ignore[assignment]
    torch.set_num_threads(1)
    config = FeatureConfig(batch_tokens=100, shard_mib=1e-6)
    extract_features(make_llama(), make_examples(60), FeatureStore(directory), config, progress=False)


def test_killed_at_any_point_it_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    undisturbed, _ = extract_features(
        make_llama(),
        make_examples(60),
        FeatureStore(tmp_path / "whole"),
        FeatureConfig(batch_tokens=100),
        progress=False,
    )
    context = warm_processes()
    for wanted in (1, 4):
        process = context.Process(target=_extract_slowly, args=(tmp_path / "killed",))
        process.start()
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "killed").glob("*.safetensors"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    (tmp_path / "killed" / ".unfinished-abc-x.safetensors").write_bytes(b"half")
    store = FeatureStore(tmp_path / "killed")
    features, stats = extract_features(make_llama(), make_examples(60), store, FeatureConfig(batch_tokens=100), progress=False)
    assert 0 < stats.reused < 60
    assert not list((tmp_path / "killed").glob(".unfinished-*"))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(collect(undisturbed), collect(features)))


def test_a_shard_is_written_when_it_has_grown_to_its_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scored = np.ones(9000, dtype=bool)
    scored[0] = False
    examples = [Example(rng.integers(3, 320, 9000).astype(np.int32), scored, "d", "s", i) for i in range(3)]
    model = make_llama(max_position_embeddings=9000, num_hidden_layers=1)
    features, _ = extract_features(model, examples, FeatureStore(tmp_path), FeatureConfig(shard_mib=1), progress=False)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == 3
    with safe_open(shards[0], framework="pt") as file:
        assert file.get_tensor("features").shape == (8999, 32)
    assert len(features.target_tokens()) <= 320 and features.hidden_size == 32


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"not finite in file:\d+.*--dtype"):
        extract_features(model, make_examples(3), FeatureStore(tmp_path), FeatureConfig(), progress=False)
    assert not list(tmp_path.iterdir())


def test_bad_options_and_no_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        extract_features(make_llama(), [], FeatureStore(tmp_path), FeatureConfig(), progress=False)
    for options, message in (
        ({"pooling": "max"}, "must be one of mean, last"),
        ({"feature_dtype": "int8"}, "must be one of float32, float16"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            FeatureConfig(**options)  # type: ignore[arg-type]
