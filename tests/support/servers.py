"""A server on loopback with two adapters on the tiny model, and what it must say, computed alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

pytest.importorskip("fastapi")
pytest.importorskip("openai")
pytest.importorskip("prometheus_client")

KEY = "correct-horse"
SETTINGS = {"first": (1.6, 0.7), "second": (2.5, 1.0)}


def make_head(seed: int) -> GuidanceHead:
    head = GuidanceHead(32, 4, range(0, 320, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.A.normal_(std=1.5, generator=generator)
        head.B.normal_(std=1.5, generator=generator)
    return head


@pytest.fixture(scope="session")
def adapters(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters on the tiny model."""
    places = {}
    for seed, (name, (temperature, scale)) in enumerate(SETTINGS.items()):
        base = LlamaForCausalLM.from_pretrained(tiny_dir)
        model = T3ForCausalLM.from_base(
            base, make_head(seed), temperature=temperature, guidance_scale=scale, name=str(tiny_dir), training={"config": {}}
        )
        places[name] = str(tmp_path_factory.mktemp("adapters") / name)
        model.save_pretrained(places[name])
    return places


class Alone:
    """Answers of one model, each computed by itself without the server."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def ids(self, prompt: str | list[int]) -> list[int]:
        return list(self.tokenizer(prompt).input_ids) if isinstance(prompt, str) else prompt

    def greedy(self, prompt: str | list[int], n: int) -> list[int]:
        inputs = torch.tensor([self.ids(prompt)])
        out = self.model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=n, eos_token_id=2, pad_token_id=2
        )
        return out[0, inputs.shape[1] :].tolist()

    def text(self, prompt: str | list[int], n: int) -> str:
        return str(self.tokenizer.decode(self.greedy(prompt, n), skip_special_tokens=True))

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """`(T, V)` float32."""
        return torch.log_softmax(self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float(), -1)


@pytest.fixture(scope="session")
def alone(adapters: dict[str, str], tiny_dir: Path) -> dict[str, Alone]:
    """What each served name must say, and `base`, by models loaded apart from the server's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    found = {name: Alone(T3ForCausalLM.from_pretrained(place), tokenizer) for name, place in adapters.items()}
    return found | {"base": Alone(LlamaForCausalLM.from_pretrained(tiny_dir).eval(), tokenizer)}


@dataclass
class Running:
    """A server that runs."""

    url: str
    app: Any
    server: Any
    key: str

    def client(self, **options: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60, **options)

    @property
    def engine(self) -> Any:
        return self.app.state.engine


@contextmanager
def serving(adapters: dict[str, str], *, model: str | None = None, **options: Any) -> Iterator[Running]:
    """A server of adapters on one base; `model` is a base instead of their own."""
    from tempertilt.serving.config import ServeConfig
    from tempertilt.serving.models import load_models

    config = ServeConfig(**{"port": 0, "api_key": KEY, **options})
    models = load_models(adapters, model, None, serve_base=config.serve_base, max_model_len=config.max_model_len, device="cpu")
    with serving_models(models, config) as running:
        yield running


@contextmanager
def serving_models(models: Any, config: Any) -> Iterator[Running]:
    """A server in a thread of this process, stopped and joined at the end."""
    from tempertilt.serving.app import build_app
    from tempertilt.serving.server import Server
    from tempertilt.serving.sockets import address, listen

    with listen(config.host, config.port) as sock:
        app = build_app(models, config)
        server = Server(app, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Running(address(sock), app, server, config.api_key)
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Fail if `condition` does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def running(adapters: dict[str, str]) -> Iterator[Running]:
    """Both adapters behind a key; the base model is not served."""
    with serving(adapters) as server:
        yield server
