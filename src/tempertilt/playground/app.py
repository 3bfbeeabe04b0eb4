"""The page of `t3 playground`, in Gradio, and its server. `trace` computes, `page` writes HTML."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.errors import ConfigError, MissingExtraError, TemperTiltError
from tempertilt.guidance.tilt import TiltConfig
from tempertilt.models.t3 import T3ForCausalLM
from tempertilt.playground import page
from tempertilt.playground.records import ReportRecord
from tempertilt.playground.runs import Request, Runs
from tempertilt.playground.trace import Tracer
from tempertilt.serving.sockets import LOOPBACK, address
from tempertilt.storage import cache_dir

INTERVAL = 0.08  # seconds between two versions of an answer that grows
LONGEST_PROMPT = 20_000  # characters
TITLE = "tempertilt playground"
RUNNING: dict[str, Any] = {
    "concurrency_limit": None, "trigger_mode": "multiple", "show_progress": "hidden", "api_visibility": "private"
}  # fmt: skip
"""How the page calls a run: a newer one of the same tab begins at once, and the older one ends by itself."""
SETTING: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How the page calls what takes no time."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)


@dataclass(frozen=True)
class Playground:
    """A model to try, and how.

    Attributes:
        model, tokenizer: the unlearned model.
        examples: how prompts are encoded.
        records: questions offered as buttons.
        name, adapter: names of the base model and of the adapter, for the title.
    """

    model: T3ForCausalLM
    tokenizer: Any
    examples: ExampleConfig
    records: Sequence[ReportRecord] = ()
    name: str = ""
    adapter: str = ""

    def encode(self, prompt: str, raw: bool) -> list[int]:
        """The token ids that the model reads."""
        if len(prompt) > LONGEST_PROMPT:
            raise ConfigError(f"the prompt has {len(prompt)} characters; must be at most {LONGEST_PROMPT}")
        if not prompt.strip():
            raise ConfigError("there is no prompt; write a question, or choose one of the records")
        if raw:
            return list(self.tokenizer(prompt).input_ids)
        return encode_question(prompt, self.tokenizer, self.examples)


def import_gradio() -> Any:
    """Gradio, its telemetry off and its files in our cache; `MissingExtraError` where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(cache_dir() / "playground"))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("gradio", "ui", "t3 playground") from error
    return gradio


def build(playground: Playground) -> Any:
    """The page, as Gradio `Blocks`."""
    gr = import_gradio()
    model = playground.model
    runs = Runs(Tracer(model, playground.tokenizer), playground.encode)
    own = TiltConfig(model.temperature, model.guidance_scale, model.forget_prior)
    first = next((record.question for record in playground.records), "")
    play = _playing(gr, playground, runs, own.forget_prior)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        _html(gr, page.header_html(playground.name, playground.adapter))
        with gr.Row(equal_height=True, elem_classes="pg-stack"):
            prompt = gr.Textbox(
                first, label="Prompt", lines=2, max_lines=6, scale=5, elem_id="pg-prompt", submit_btn=False,
                max_length=LONGEST_PROMPT,
            )  # fmt: skip
            with gr.Column(scale=1, min_width=150):
                ask = gr.Button("Ask both", variant="primary", elem_id="pg-ask")
                stop = gr.Button("Stop", elem_id="pg-stop", size="md")
        buttons = _record_buttons(gr, playground.records)
        truth, gate = _html(gr, "", elem_id="pg-truth"), _html(gr, "", elem_id="pg-gate")
        sliders = _sliders(gr, own)
        with gr.Row(equal_height=True, elem_classes="pg-stack"):
            answers = [_html(gr, "", elem_id=name, min_width=320) for name in ("pg-base", "pg-guided")]
        _html(gr, page.legend_html(model.gates is not None))
        others = _other_inputs(gr)
        _html(gr, page.method_html(model.gates is not None))

        inputs, outputs = [prompt, *sliders, *others], [truth, gate, *answers]
        for trigger in (ask.click, prompt.submit, *(control.change for control in (*sliders, *others))):
            trigger(play, inputs, outputs, **RUNNING)
        for button, record in zip(buttons, playground.records):
            button.click(lambda question=record.question: question, None, prompt, **SETTING).then(
                play, inputs, outputs, **RUNNING
            )
        stop.click(_stopping(gr, runs), None, None, **SETTING)
        if first:
            blocks.load(play, inputs, outputs, **RUNNING)
    return blocks


def _playing(gr: Any, playground: Playground, runs: Runs, forget_prior: float) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What a run of the page does: yields the contents of the truth, the gate and both answers, again and again."""
    truths = {record.question: record for record in playground.records}
    gates = playground.model.gates
    threshold = None if gates is None else float(gates.asked.threshold)

    def play(
        prompt: str, temperature: float, scale: float, length: float, raw: bool, sample: bool, seed: float, request: Any
    ) -> Iterator[tuple[Any, ...]]:
        try:
            tilt = TiltConfig(_number(temperature), _number(scale), forget_prior)
            wanted = Request(prompt or "", tilt, _whole(length), bool(raw), _whole(seed) if sample else None)
            truth, shown = page.truth_html(truths.get(wanted.prompt)), 0.0
            for view in runs.play(request.session_hash or "", wanted):
                if all(answer.done for answer in view.answers.values()) or time.monotonic() - shown > INTERVAL:
                    shown = time.monotonic()
                    columns = (page.answer_html("base", view), page.answer_html("guided", view))
                    yield (truth, page.prompt_html(view, threshold), *columns)
        except TemperTiltError as error:
            yield (page.error_html(str(error)), gr.skip(), gr.skip(), gr.skip())

    play.__annotations__["request"] = gr.Request  # Gradio reads it
    return play


def _stopping(gr: Any, runs: Runs) -> Callable[..., None]:
    def stop(request: Any) -> None:
        runs.stop(request.session_hash or "")

    stop.__annotations__["request"] = gr.Request
    return stop


def _sliders(gr: Any, own: TiltConfig) -> list[Any]:
    """Temperature and scale, and buttons that set both."""
    with gr.Row(elem_classes="pg-controls"):
        temperature = gr.Slider(
            0.5, 4, own.temperature, step=0.05, label="Temperature T", elem_id="pg-temperature",
            info="Above 1 it flattens what the base is sure of, memorised text most of all. 1 does nothing.",
        )  # fmt: skip
        scale = gr.Slider(
            0, 3, own.guidance_scale, step=0.01, label="Guidance scale s", elem_id="pg-scale",
            info="How much the classifier counts. 0 does nothing.",
        )  # fmt: skip
    with gr.Row(elem_classes="pg-presets"):
        for name, tilt in presets(own).items():
            button = gr.Button(f"{name}: T {tilt.temperature:g}, s {tilt.guidance_scale:g}", size="sm", min_width=150)
            values = (tilt.temperature, tilt.guidance_scale)
            button.click(lambda values=values: values, None, [temperature, scale], **SETTING)
    return [temperature, scale]


def presets(own: TiltConfig) -> dict[str, TiltConfig]:
    """Settings that show what each part of the method does."""
    return {
        "Adapter's own": own,
        "Temper only": TiltConfig(own.temperature, 0.0, own.forget_prior),
        "Tilt only": TiltConfig(1.0, own.guidance_scale, own.forget_prior),
        "Neither (the base)": TiltConfig(1.0, 0.0, own.forget_prior),
    }


def _other_inputs(gr: Any) -> list[Any]:
    with gr.Accordion("Length, sampling, plain text", open=False), gr.Row():
        length = gr.Slider(8, 256, 96, step=8, label="Longest answer, tokens", elem_id="pg-length")
        sample = gr.Checkbox(
            False,
            label="Sample",
            info="Draw tokens at random, both columns with the same random numbers; else take the likeliest.",
        )
        seed = gr.Number(0, label="Seed of sampling", precision=0, minimum=0, maximum=2**31)
        raw = gr.Checkbox(False, label="Plain text", info="Continue the prompt as it is, without the chat template.")
    return [length, raw, sample, seed]


def _record_buttons(gr: Any, records: Sequence[ReportRecord]) -> list[Any]:
    if not records:
        return []
    with gr.Accordion("Records of the adapter's report", open=True), gr.Row(elem_classes="pg-examples"):
        return [
            gr.Button(f"{record.set.capitalize()}: {shortened(record.question)}", size="sm", min_width=300) for record in records
        ]


def _html(gr: Any, value: str, **options: Any) -> Any:
    return gr.HTML(value, apply_default_css=False, js_on_load=None, **options)


def shortened(text: str, length: int = 110) -> str:
    """One line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _number(value: object) -> float:
    """A number that a browser sent, NaN for anything else; the setting that it is for refuses NaN."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def _whole(value: object) -> int:
    number = _number(value)
    if not 0 <= number <= 2**31:
        raise ConfigError(f"the value is {value!r}; must be a whole number from 0 to {2**31}")
    return int(number)


# --- the server ------------------------------------------------------------------------------------------------------


class Shield:
    """ASGI middleware: nothing from other hosts is loaded, nothing is uploaded, and by default no other host name is answered.

    Args:
        app: behind it.
        hosts: names that the Host header may have; None = any. Against pages elsewhere whose name is made to resolve to us.
    """

    def __init__(self, app: Any, hosts: Sequence[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.hosts is not None and _host(scope) not in self.hosts:
            await _refuse(send, 400, "this host name is not served")
        elif scope["path"].startswith(("/gradio_api/upload", "/gradio_api/component_server", "/gradio_api/proxy=", "/proxy=")):
            await _refuse(send, 403, "not part of the playground")
        else:

            async def guarded(message: Any) -> None:
                if message["type"] == "http.response.start":
                    added = {
                        "content-security-policy": POLICY,
                        "referrer-policy": "no-referrer",
                        "x-content-type-options": "nosniff",
                    }
                    pairs = [(name.encode(), value.encode()) for name, value in added.items()]
                    message = message | {"headers": [*message.get("headers", []), *pairs]}
                await send(message)

            await self.app(scope, receive, guarded)


def _host(scope: Any) -> str:
    value = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    name: str = value.rpartition(":")[0] if value.count(":") == 1 or "]:" in value else value
    return name.strip("[]").lower()


async def _refuse(send: Any, status: int, text: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
    await send({"type": "http.response.body", "body": text.encode()})


def web_app(playground: Playground, host: str = "127.0.0.1") -> Any:
    """The ASGI application."""
    gr = import_gradio()
    from fastapi import FastAPI

    sans = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, font=sans, font_mono=["ui-monospace", "monospace"]
    ).set(
        body_background_fill="#fbfaf8", body_background_fill_dark="#14171d", block_background_fill="#ffffff",
        block_background_fill_dark="#1c2028", body_text_color="#1d2330", body_text_color_dark="#e6e8ec",
        block_info_text_color="#5b6475", block_info_text_color_dark="#a9b0bc", block_label_text_color="#1d2330",
        block_label_text_color_dark="#e6e8ec", button_primary_background_fill="#1f5c9e",
        button_primary_background_fill_dark="#1f5c9e", button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )  # fmt: skip
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app, build(playground), path="/", server_name=host, show_error=False, ssr_mode=False, pwa=False, max_file_size=1,
        enable_monitoring=False, mcp_server=False, footer_links=[], theme=theme,
        head=f"<style>{page.asset('page.css')}</style><script>{page.asset('page.js')}</script>",
    )  # fmt: skip
    return Shield(app, LOOPBACK if host in LOOPBACK else None)


def serve(playground: Playground, listening: socket.socket, host: str, say: Callable[[str], None]) -> None:
    """Serve until interrupted; `say` gets the address once the page can be opened."""
    import uvicorn

    config = uvicorn.Config(web_app(playground, host), log_level="warning", timeout_graceful_shutdown=2, lifespan="on")
    server = uvicorn.Server(config)
    say(address(listening))
    server.run(sockets=[listening])
