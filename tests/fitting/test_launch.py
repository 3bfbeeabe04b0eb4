"""Plans and shards that are the same whoever runs them; what an workers refuses."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from support.tiny import make_examples, make_llama
from tempertilt.data.batches import example_key as key_of
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.fitting.features import FeatureConfig, FeatureStore, extract_features, plan_shards, store_name
from tempertilt.fitting.launch import Processes, WorkersConfig, open_workers
from tempertilt.fitting.ray import ShardWorker, pack, unpack
from tempertilt.fitting.workers import Local, Shard, Work, run_shard
from tempertilt.models.base import load_base
from tempertilt.storage import UNFINISHED, remove_unfinished, write_whole

CONFIG = FeatureConfig(batch_tokens=100, shard_mib=0.01)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Scattered(Local):
    """Runs the shards in another order, each twice, as it would be after a worker was lost too late."""

    workers = 2

    def extract(self, model: object, work: Work, done: object) -> None:
        shards = work.shards * 2
        random.Random(0).shuffle(shards)
        for shard in shards:
            run_shard(model, unpack(pack(shard)), work)


@pytest.mark.parametrize("layer", [None, 1])
def test_the_store_has_the_same_bytes_whoever_runs_its_shards(tmp_path: Path, layer: int | None) -> None:
    model, examples = make_llama(), make_examples(80)
    examples += examples[:9]  # some twice
    for name, workers in (("local", Local()), ("scattered", Scattered())):
        store = FeatureStore(tmp_path / name)
        features, stats = extract_features(
            model, examples, store, CONFIG, state_layer=layer, workers=workers, progress=False
        )  # fmt: skip
        assert stats.workers == workers.count and len(features) == 89
    assert len(content(tmp_path / "local")) > 5 and content(tmp_path / "local") == content(tmp_path / "scattered")
    lost = sorted(content(tmp_path / "local"))[2]  # what a killed worker did not write
    (tmp_path / "scattered" / lost).unlink()
    again = FeatureStore(tmp_path / "scattered")
    _, stats = extract_features(model, examples, again, CONFIG, state_layer=layer, progress=False)
    assert 0 < stats.tokens < 0.4 * sum(map(len, examples)) and content(tmp_path / "local") == content(tmp_path / "scattered")


def test_a_plan_has_every_example_once_in_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    examples = make_examples(90)
    examples += examples[:5]
    keys = [key_of(example) for example in examples]
    plan = plan_shards(examples, keys, FeatureStore(tmp_path), CONFIG, 32)
    assert sorted(i for shard in plan for batch in shard for i in batch) == list(range(90))
    sizes = [sum(examples[i].n_scored * 32 * 4 for batch in shard for i in batch) for shard in plan]
    assert len(plan) > 3 and min(sizes[:-1]) >= 0.01 * 2**20 > max(sizes) - 100 * 32 * 4
    half = FeatureConfig(batch_tokens=100, shard_mib=0.01, feature_dtype="float16")
    assert len(plan_shards(examples, keys, FeatureStore(tmp_path), half, 32)) < len(plan)
    assert len(plan_shards(examples, keys, FeatureStore(tmp_path), CONFIG, 32, 1)) > len(plan), "lower states count"


def test_a_shard_is_named_by_its_examples_and_its_batches() -> None:
    a, b, c = make_examples(3)
    names = {Shard([[a, b], [c]]).name, Shard([[a], [b, c]]).name, Shard([[b, a], [c]]).name, Shard([[a, b]]).name}
    assert len(names) == 4
    elsewhere = Example(a.input_ids, a.scored, "another document", "another file", 7)
    assert Shard([[elsewhere, b], [c]]).name == Shard([[a, b], [c]]).name


def test_a_shard_is_the_same_after_it_was_sent() -> None:
    shard = Shard([make_examples(5)[:3], make_examples(5)[3:]])
    back = unpack(pack(shard))
    assert back.name == shard.name and back.tokens == shard.tokens and [len(batch) for batch in back.batches] == [3, 2]
    assert [example.source for example in back.examples] == [example.source for example in shard.examples]


def test_an_actor_writes_what_one_process_writes_and_says_what_is_wrong(tiny_dir: Path, tmp_path: Path) -> None:
    base, examples = load_base(str(tiny_dir)), make_examples(30)
    features, _ = extract_features(base.model, examples, FeatureStore(tmp_path / "local"), CONFIG, progress=False)
    (tmp_path / "actor").mkdir()
    plan = plan_shards(examples, features.keys, FeatureStore(tmp_path / "actor"), CONFIG, 32)
    shards = [Shard([[examples[i] for i in batch] for batch in batches]) for batches in plan]
    known, work = base._replace(model=None, tokenizer=None), Work([], tmp_path / "actor", CONFIG, None)
    actor = ShardWorker(known, work, store_name(base.fingerprint, base.model, CONFIG))
    rows = actor({"shard": [pack(shard) for shard in shards]})
    assert rows["error"] == [""] * len(shards) and sum(rows["tokens"]) == sum(map(len, examples))
    assert content(tmp_path / "actor") == content(tmp_path / "local")
    other = ShardWorker(known, work, store_name("another", base.model, CONFIG))
    assert "gives features" in other({"shard": [pack(shards[0])]})["error"][0]
    gone = ShardWorker(known._replace(name=str(tmp_path / "gone")), work, "")
    assert "no model directory" in gone({"shard": [pack(shards[0])]})["error"][0]


def test_shards_that_are_not_where_they_were_written_are_missed(tmp_path: Path) -> None:
    class Elsewhere(Local):
        def extract(self, model: object, work: Work, done: object) -> None:
            pass

    with pytest.raises(TemperTiltError, match=r"disk that all of them share.*TEMPERTILT_CACHE"):
        extract_features(
            make_llama(), make_examples(3), FeatureStore(tmp_path), CONFIG, workers=Elsewhere(), progress=False
        )  # fmt: skip


def test_workers_that_would_do_everything_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for workers in ("local", "ray"):
        with pytest.raises(ConfigError, match=f"2 processes were started.*--workers {workers}.*--workers accelerate"):
            open_workers(WorkersConfig(workers), "cpu")


def test_one_process_of_accelerate_says_that_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    workers, device = open_workers(WorkersConfig("accelerate"), "cpu")
    assert workers.count == 1 and workers.first and device == "cpu" and "found one process" in caplog.text
    assert workers.share(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        workers.share(lambda: 1 // 0)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"DeepSpeed is not supported.*--use_fsdp"):
        Processes("cpu")
    assert not torch.distributed.is_initialized()


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="workers is 'spark'; must be one of local, accelerate, ray"):
        WorkersConfig("spark")
    with pytest.raises(ConfigError, match="num_workers is -1"):
        WorkersConfig("ray", num_workers=-1)


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    seen: list[str] = []
    write_whole(tmp_path / "file", lambda path: seen.append(path.name) or path.write_text("whole"))  # type: ignore[func-returns-value]
    assert content(tmp_path) == {"file": b"whole"} and seen[0].startswith(UNFINISHED)
    machine = seen[0].removeprefix(UNFINISHED).partition("-")[0]
    running, gone, elsewhere, own = (
        f"{machine}-1-a-x",
        f"{machine}-999999999-a-x",
        "0badcafe-1-a-x",
        f"{machine}-{os.getpid()}-a-x",
    )
    for name in (running, gone, elsewhere, own):
        (tmp_path / f"{UNFINISHED}{name}").write_text("half")
    remove_unfinished(tmp_path)
    assert {name for name in content(tmp_path) if name != "file"} == {f"{UNFINISHED}{name}" for name in (running, elsewhere)}
    os.utime(tmp_path / f"{UNFINISHED}{elsewhere}", (0, 0))
    remove_unfinished(tmp_path)
    assert f"{UNFINISHED}{elsewhere}" not in content(tmp_path)
