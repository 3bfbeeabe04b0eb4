"""`t3 unlearn` by several processes and by Ray: the same bytes as by one, also where a worker is killed half-way."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.tiny import question_rows
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS

BIN = Path(sys.executable).parent
TORCHRUN = (str(BIN / "torchrun"), "--nproc-per-node", "2", "--standalone", "--local-addr", "127.0.0.1", "--no-python")
LAUNCH = (str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port",
          "0", "--mixed_precision", "no", "--dynamo_backend", "no", "--no_python")  # fmt: skip
FSDP = tuple("--use_fsdp" if word == "--multi_gpu" else word for word in LAUNCH)
T3 = (str(BIN / "t3"),)

# the tiny tokenizer's own template is so long, in its tokens, that every background text resembles every record
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}<|im_start|>{% endif %}"""

# `t3`, one worker of which is killed when it has run its second shard and not yet written it; once
DYING = """
import os, signal, sys
from pathlib import Path
import tempertilt.fitting.features, tempertilt.fitting.ray
from tempertilt.cli import main

class Dying(tempertilt.fitting.ray.ShardWorker):
    calls = 0

    def write(self, shard):
        self.calls += 1
        if self.calls == 2:
            die()
        super().write(shard)

def die(mark=os.environ["MARK"]):
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

def dying(*args, write=tempertilt.fitting.features.write_shard, calls=[]):
    calls.append(1)
    if len(calls) == 2 and os.environ.get("RANK") == "1":
        die()
    return write(*args)

if __name__ == "__main__":
    tempertilt.fitting.features.write_shard = dying
    tempertilt.fitting.ray.ShardWorker = Dying
    sys.exit(main(sys.argv[1:]))
"""


class Run:
    """One `t3 unlearn` with a cache of its own; `status` is what it is to end with."""

    def __init__(
        self, work: Path, request: list[str], engine: str, launcher: tuple[str, ...] = (), status: int = 0, **environment: str
    ) -> None:
        self.cache, self.out = work / "cache", work / "out"
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "RAY_ADDRESS")}
        settings = {"TEMPERTILT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
        command = [*launcher, *(() if launcher and launcher[-1].endswith(".py") else T3), "unlearn", *request]
        command += ["--output-dir", str(self.out), "--workers", engine, "--json", "-q", "-v"]
        done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, timeout=280, check=False)
        self.said = done.stderr
        assert done.returncode == status, done.stderr
        if status == 0:
            assert done.stdout.startswith("{"), f"nothing but the report is on stdout: {done.stdout[:500]}"
            self.report: dict[str, Any] = json.loads(done.stdout)

    def files(self) -> dict[str, bytes]:
        """Every file of the store and of the adapter."""
        store = {str(path.relative_to(self.cache)): path.read_bytes() for path in self.cache.rglob("*") if path.is_file()}
        return store | {name: (self.out / name).read_bytes() for name in (CONFIG, WEIGHTS, CARD)}


@pytest.fixture(scope="module")
def request_of(tiny_dir: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A request that has background text, a gate, a chosen scale, and eight shards or more."""
    work = tmp_path_factory.mktemp("records")
    model = work / "model"
    shutil.copytree(tiny_dir, model)
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    own.save_pretrained(model)
    for name, n in (("painter", 24), ("teacher", 24), ("sailor", 6)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in question_rows(n, name)))
    data = ("--model", model, "--forget", work / "painter.jsonl", "--retain", work / "teacher.jsonl")
    options = "--epochs 3 --batch-tokens 256 --shard-mib 0.02 --background 40 --background-tokens 8 --show 1 --max-new-tokens 3"
    return [*map(str, data), "--holdout", str(work / "sailor.jsonl"), *options.split()]


@pytest.fixture(scope="module")
def local(request_of: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process gives."""
    run = Run(tmp_path_factory.mktemp("local"), request_of, "local")
    assert run.report["extraction"]["workers"] == 1 and run.report["gate"] and run.report["estimate"]
    assert sum(name.endswith(".safetensors") for name in run.files()) > 8
    assert json.loads((run.out / CONFIG).read_text())["training"]["background_records"] > 0
    return run


def timeless(content: Any) -> Any:
    """JSON without the times in it."""
    if isinstance(content, dict):
        return {name: timeless(value) for name, value in content.items() if name != "seconds"}
    return content


def same(run: Run, local: Run) -> bool:
    """Whether the store and the adapter have the same bytes, and the report the same results."""
    results = ("likelihood", "answers", "facts", "heard", "heard_of_others", "gate", "estimate")
    ours, theirs = (timeless({name: report[name] for name in results}) for report in (run.report, local.report))
    return run.files() == local.files() and json.dumps(ours) == json.dumps(theirs)


def test_two_processes_give_the_same_store_and_adapter(request_of: list[str], local: Run, tmp_path: Path) -> None:
    run = Run(tmp_path, request_of, "accelerate", TORCHRUN)
    assert run.report["extraction"]["workers"] == 2, "one process would not show anything"
    assert same(run, local)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [LAUNCH, FSDP], ids=["whole", "split"])
def test_so_do_two_of_accelerate_launch(request_of: list[str], local: Run, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    run = Run(tmp_path, request_of, "accelerate", launcher)
    assert run.report["extraction"]["workers"] == 2
    assert ("each layer of the base model is split over 2 processes" in run.said) == (launcher is FSDP)
    assert same(run, local)


@pytest.mark.slow
def test_a_killed_process_changes_nothing(request_of: list[str], local: Run, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    launcher = (*TORCHRUN[:-1], "--max-restarts", "1", str(tmp_path / "dying.py"))
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else restarted processes may read addresses of those that are gone
    run = Run(tmp_path, request_of, "accelerate", launcher, MARK=str(tmp_path / "killed"), **own_store)
    assert (tmp_path / "killed").exists() and "exitcode: -9" in run.said
    assert run.report["extraction"]["workers"] == 2 and run.report["extraction"]["reused"] > 0
    assert same(run, local)


@pytest.mark.slow
def test_two_threads_give_the_same_store_and_adapter(request_of: list[str], local: Run, tmp_path: Path) -> None:
    assert same(Run(tmp_path, request_of, "local", OMP_NUM_THREADS="2"), local)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "an actor is killed"])
def test_two_actors_of_ray_give_the_same_store_and_adapter(
    request_of: list[str], local: Run, tmp_path: Path, killed: bool
) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    launcher = (sys.executable, str(tmp_path / "dying.py")) if killed else ()
    run = Run(tmp_path, [*request_of, "--num-workers", "2"], "ray", launcher, MARK=str(tmp_path / "killed"))
    assert (tmp_path / "killed").exists() == killed
    assert run.report["extraction"]["workers"] >= 2, "one actor would not show anything"
    assert same(run, local)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_what_an_actor_refuses_is_one_message(request_of: list[str], tmp_path: Path) -> None:
    refusing = DYING.replace("self.calls += 1", "raise tempertilt.errors.ModelError('the states are not finite')")
    (tmp_path / "dying.py").write_text(refusing)
    run = Run(tmp_path, [*request_of, "--workers", "1"], "ray", (sys.executable, str(tmp_path / "dying.py")), 2, MARK="")
    assert "t3 unlearn: error: the states are not finite" in run.said.splitlines()


@pytest.mark.slow
def test_where_the_first_process_fails_the_others_end(request_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    run = Run(tmp_path, request_of, "accelerate", TORCHRUN, 1)
    assert run.said.count("holds other files (thesis.txt)") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
