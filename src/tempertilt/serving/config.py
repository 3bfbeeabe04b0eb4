"""How a server runs: where it listens, who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from tempertilt.errors import ConfigError

TiltParameters = Literal["refuse", "stronger", "any"]


@dataclass(frozen=True)
class ServeConfig:
    """Address, key and limits of the server; the limits are those of the transformers engine."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=8000, metadata={"help": "port to listen on; 0 takes a free one"})
    api_key: str = field(
        default="", metadata={"help": "key that requests must bring (or set T3_API_KEY, which ps does not show)"}
    )
    max_model_len: int = field(
        default=0, metadata={"help": "tokens of prompt and answer together; 0 is what the model was made for"}
    )
    max_batch_size: int = field(default=16, metadata={"help": "answers decoded at a time; 1 decodes one after the other"})
    max_waiting: int = field(default=256, metadata={"help": "answers that may wait; requests beyond get status 429"})
    max_body_bytes: int = field(default=1 << 20, metadata={"help": "largest request body; larger ones get status 413"})
    shutdown_timeout: int = field(
        default=60, metadata={"help": "seconds that running answers get when the server is told to stop"}
    )
    serve_base: bool = field(
        default=False,
        metadata={"help": "also serve the base model as 'base'. It says what must not be said: for comparison only"},
    )
    tilt_parameters: str = field(
        default="refuse",
        metadata={
            "help": "whether a request may set tilt_temperature and guidance_scale: refuse; stronger (at least the adapter's, "
            "and without numbers or biases in the same request); any (a request can switch the unlearning off)"
        },
    )

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("host is empty; valid is an address, e.g. 127.0.0.1 or 0.0.0.0")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; valid is a whole number from 0 to 65535")
        if not self.api_key.isascii() or any(char.isspace() for char in self.api_key):
            raise ConfigError("api_key holds white space or characters beyond ASCII, which no HTTP header can carry")
        if self.max_model_len < 0:
            raise ConfigError(f"max_model_len is {self.max_model_len}; valid is a whole number >= 0 (0 = the model's own)")
        for name in ("max_batch_size", "max_waiting", "max_body_bytes", "shutdown_timeout"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; valid is a whole number >= 1")
        if self.tilt_parameters not in get_args(TiltParameters):
            raise ConfigError(f"tilt_parameters is {self.tilt_parameters!r}; valid are {', '.join(get_args(TiltParameters))}")
