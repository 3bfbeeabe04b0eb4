"""How a server runs: where it listens, who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from tempertilt.config.options import Options, option
from tempertilt.errors import ConfigError
from tempertilt.models.held_back import HELD


@dataclass(frozen=True)
class ServeConfig(Options):
    """Address, key and limits of the server; the limits are those of the transformers backend."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 takes a free one", ge=0, le=65535)
    api_key: str = option("", "key that requests must bring (or set T3_API_KEY, which ps does not show)")
    api_keys: str = option(
        "", "file of clients, a line each: NAME KEY [REQUESTS_IN_A_MINUTE]; they take turns in the queue. Instead of one key"
    )
    allow_origin: tuple[str, ...] = option(
        (), "let pages of this origin (https://chat.example, or * for any) call the server from a browser; may be repeated"
    )
    max_model_len: int = option(0, "tokens of prompt and answer together; 0 is what the model was made for", ge=0)
    max_batch_size: int = option(16, "answers of one model decoded at a time; 1 decodes one after the other", ge=1)
    max_waiting: int = option(256, "answers that may wait; requests beyond get status 429", ge=1)
    prefix_tokens: int = option(
        4096, "tokens of what a client's prompts begin with (a system message) kept read for each model; 0 keeps none", ge=0
    )
    stream_lag: int = option(
        HELD,
        "tokens by which a stream lags where the model has a reply, so that little of what the reply breaks off is seen; 0 shows "
        "answers as they come",
        ge=0,
    )
    max_body_bytes: int = option(1 << 20, "largest request body; larger ones get status 413", ge=1)
    shutdown_timeout: int = option(60, "seconds that running answers get when the server is told to stop", ge=1)
    log_format: str = option(
        "text",
        "text: errors only; json: one object a line on stderr, with a line for each request and never a text of it",
        choices=("text", "json"),
    )
    traces: bool = option(
        False,
        "a span of OpenTelemetry for each request, without any text, to the provider that you set up (opentelemetry-instrument "
        "t3 serve ...)",
    )
    control_tokens: str = option(
        "text",
        "how the text of a completion's prompt is read where it spells a control token, such as <|im_end|>: as text, or as the "
        "token. What stands in a chat message is always text",
        choices=("text", "token"),
    )
    serve_base: bool = option(False, "also serve the base model as 'base'. It says what must not be said: for comparison only")
    tilt_parameters: str = option(
        "refuse",
        "whether a request may set tilt_temperature and guidance_scale: refuse; stronger (at least the adapter's, and without "
        "numbers or biases in the same request); any (a request can switch the unlearning off)",
        choices=("refuse", "stronger", "any"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host:
            raise ConfigError("host is ''; must be an address, e.g. 127.0.0.1 or 0.0.0.0")
        if not self.api_key.isascii() or any(char.isspace() for char in self.api_key):
            raise ConfigError("api_key holds white space or characters beyond ASCII; must be what an HTTP header can carry")
        if self.api_key and self.api_keys:
            raise ConfigError("api_key and api_keys are both given; must be one: put the key in the file")
        for origin in self.allow_origin:
            parts = urlsplit(origin)
            if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}":
                raise ConfigError(f"allow_origin is {origin!r}; must be * or an origin such as https://chat.example")
