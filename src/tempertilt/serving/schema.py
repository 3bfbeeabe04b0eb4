"""What requests may say: OpenAI's fields that the server carries out, and no others.

A field that would be ignored is refused, so that nobody takes an answer for what it is not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

MAX_CHOICES, MAX_PROMPTS, MAX_LOGPROBS, MAX_BIASES, MAX_MESSAGES = 8, 16, 20, 300, 1024
MAX_TILT = 100.0


def _check_text(text: str) -> str:
    """A text that can be written as UTF-8; JSON can name halves of characters, which can't."""
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("the text holds half a surrogate pair; valid is Unicode text")
    return text


Text = Annotated[StrictStr, AfterValidator(_check_text)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]
Bias = Annotated[StrictFloat | StrictInt, Field(ge=-100, le=100)]
Penalty = Annotated[StrictFloat | StrictInt, Field(ge=-2, le=2)]
TokenId = Annotated[StrictStr, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: StrictBool = False


class Request(BaseModel):
    """Fields of both endpoints."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    model: Annotated[Text, Field(min_length=1, max_length=256, description="one of GET /v1/models")]
    max_tokens: Annotated[StrictInt, Field(ge=0, lt=1 << 31)] | None = None
    temperature: (
        Annotated[StrictFloat | StrictInt, Field(ge=0, le=2, description="of sampling, after the tilt; 0 is greedy")] | None
    ) = None
    top_p: Annotated[StrictFloat | StrictInt, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, lt=1 << 31, description="0 is no limit")] | None = None
    min_p: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    tilt_temperature: (
        Annotated[StrictFloat | StrictInt, Field(gt=0, le=MAX_TILT, description="T of the tilt, if the server allows it")] | None
    ) = None
    guidance_scale: (
        Annotated[StrictFloat | StrictInt, Field(ge=0, le=MAX_TILT, description="s of the tilt, if the server allows it")] | None
    ) = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def numbers_asked(self) -> list[str]:
        """The fields set that show numbers of the law, or from which they can be worked out."""
        names = ("logprobs", "top_logprobs", "echo", "logit_bias", "presence_penalty", "frequency_penalty")
        values = {name: getattr(self, name, None) for name in names}
        return [name for name, value in values.items() if value is not None and value is not False]  # logprobs=0 is asked


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: Annotated[
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
        Field(description="text or token ids, or several of them"),
    ]
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: StrictBool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, texts or token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=256)]

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self
