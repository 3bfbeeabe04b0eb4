"""The load test and the fuzz test of benchmarks/, in short."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("openai")

from support.servers import serving

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import _tiny
import serve_fuzz
import serve_load


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    _tiny.write_model(path)
    return path


def places(work: Path) -> dict[str, str]:
    return {name: str(work / name) for name in _tiny.NAMES}


@pytest.mark.integration
def test_load_disconnects_and_shutdown(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_load, "LAST", 80)
    table = serve_load.cases(work, 12)
    with serving(places(work), max_batch_size=6) as running:
        stop = lambda: setattr(running.server, "should_exit", True)  # noqa: E731
        seen = asyncio.run(serve_load.load(running.url, running.key, table, clients=12, seconds=0, stop=stop, least=3))
    assert not seen.mistakes and not seen.cut and seen.finished == 12
    assert seen.disconnects and len(seen.whole) + seen.disconnects == 36 and seen.memory


@pytest.mark.integration
def test_the_load_test_can_fail(work: Path) -> None:
    model, prompt, tokens, text = serve_load.cases(work, 2)[0]
    table = [(model, prompt, tokens, text + "x"), *serve_load.cases(work, 2)[-len(_tiny.NAMES) :]]
    with serving(places(work)) as running:
        stop = lambda: setattr(running.server, "should_exit", True)  # noqa: E731
        seen = asyncio.run(serve_load.load(running.url, running.key, table, clients=2, seconds=0, stop=stop, least=4))
    assert seen.mistakes and serve_load.growth([1.0, 1.0, 1.0, 1.0, 1.5, 1.5]) == pytest.approx(0.5)


@pytest.mark.integration
def test_hostile_bodies(work: Path) -> None:
    with serving(places(work)) as running:
        counts, wrong = serve_fuzz.fuzz(running.url, running.key, 600, seed=1)
    assert not wrong and counts[200] > 30 and counts[400] > 300 and counts[413] > 0 and counts[404] > 0 and counts[403] > 0


def test_the_fuzz_test_sees_what_is_wrong() -> None:
    case = serve_fuzz.Case("/v1/completions", b"{}", True, "x")
    assert serve_fuzz.flaw(case, 200, b"{}") and serve_fuzz.flaw(case, 500, b"{}") and serve_fuzz.flaw(case, 0, b"")
    assert serve_fuzz.flaw(case, 400, b"oops") and serve_fuzz.flaw(case, 422, b'{"detail": "x"}')
    assert serve_fuzz.flaw(case, 400, b'{"error": {"message": "x"}}') is None


def test_schemathesis_finds_nothing(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module: ModuleType = pytest.importorskip("schemathesis")
    assert module
    with serving(places(work)) as running:
        status = serve_fuzz.schemathesis(running.url, running.key, 5, seed=1)
    assert status == 0, capfd.readouterr().out[-4000:]
