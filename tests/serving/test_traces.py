"""OpenTelemetry: a span for each request, and no text in any span."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

openai = pytest.importorskip("openai")
sdk = pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402

from support.servers import adapters, serving, wait_until  # noqa: E402, F401
from tempertilt.errors import MissingExtraError  # noqa: E402
from tempertilt.serving import batch, traces  # noqa: E402
from tempertilt.serving.app import build_app  # noqa: E402
from tempertilt.serving.config import ServeConfig  # noqa: E402

SECRET = "secretword"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces.trace, "get_tracer", provider.get_tracer)
    yield exporter


def whole(span: ReadableSpan) -> str:
    return str(span.to_json())


def test_every_request_has_a_span_without_text(spans: InMemorySpanExporter, adapters: dict[str, str]) -> None:
    with serving(adapters, traces=True) as running:
        client = running.client(default_headers={"traceparent": PARENT, "x-request-id": "mine-1"})
        answer = client.completions.create(model="first", prompt=SECRET, max_tokens=5, logit_bias={"2": -100})
        list(client.completions.create(model="second", prompt=SECRET, max_tokens=3, stream=True))
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=SECRET, prompt=SECRET)
        wait_until(lambda: len(spans.get_finished_spans()) == 3)
    first, second, third = spans.get_finished_spans()
    assert first.name == "POST /v1/completions" and first.parent is not None
    assert f"{first.context.trace_id:032x}" in PARENT and f"{first.parent.span_id:016x}" in PARENT
    found = dict(first.attributes or {})
    assert found.pop("tempertilt.first_token_seconds") > 0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "tempertilt.request_id": "mine-1",
        "tempertilt.outcome": "ok",
        "gen_ai.request.model": "first",
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 5,
    }
    assert (second.attributes or {})["gen_ai.request.model"] == "second"
    assert (third.attributes or {})["http.response.status_code"] == 404 and third.status.status_code is StatusCode.UNSET
    assert not any(SECRET in whole(span) for span in (first, second, third))


def test_an_error_is_in_the_span_without_its_message(
    spans: InMemorySpanExporter,
    adapters: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(batch.Batch, "step", broken)
    with serving(adapters, traces=True) as running:
        with pytest.raises(openai.InternalServerError):
            running.client().completions.create(model="first", prompt="a")
        wait_until(lambda: bool(spans.get_finished_spans()))
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR and SECRET not in whole(span)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, traces.__name__)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtraError, match=r"tempertilt\[traces\]"):
        build_app({}, ServeConfig(traces=True))
    build_app({}, ServeConfig())
