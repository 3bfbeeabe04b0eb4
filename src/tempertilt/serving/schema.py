"""What requests may say: OpenAI's fields that the server carries out, and no others.

A field that would be ignored is refused, so that nobody takes an answer for what it is not. Fields of OpenAI's that the server
does not carry out are accepted with the values that ask for nothing: null, empty, off, the default; any other field with null.
Every field's description says what it must be; error messages are made of it (`tempertilt.serving.parsing`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

MAX_CHOICES, MAX_PROMPTS, MAX_LOGPROBS, MAX_BIASES, MAX_MESSAGES = 8, 16, 20, 300, 1024
MAX_TILT = 100.0


def _must_be(description: str, default: Any = None, **bounds: Any) -> Any:
    """A field, absent or null by default, with what it must be otherwise."""
    return Field(default, description=description, **bounds)


def _check_off(value: bool) -> bool:
    if value:
        raise ValueError("on")
    return value


Number = StrictFloat | StrictInt
Text = StrictStr
Label = Annotated[Text, Field(max_length=512)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[StrictStr, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Off = Annotated[StrictBool, AfterValidator(_check_off)]
NoItems = Annotated[list[Any], Field(max_length=0)]
NoKeys = Annotated[dict[str, Any], Field(max_length=0)]


class Body(BaseModel):
    """An object of a request: no value in a field that is not named, no conversion of types."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())
    __pydantic_extra__: dict[str, None]


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    include_usage: StrictBool | None = _must_be("true or false")
    include_obfuscation: Off | None = _must_be("false")


class ResponseFormat(Body):
    """The format of an answer."""

    type: Literal["text"] = _must_be('"text": this server writes no other format', ...)


class Sampled(Body):
    """Fields of every endpoint."""

    supported: ClassVar[str] = "GET /openapi.json lists the fields"

    model: Annotated[Text, Field(min_length=1, max_length=256)] = _must_be("one of the names at GET /v1/models", ...)
    temperature: Number | None = _must_be("a number from 0 (greedy) to 2; it is of sampling, after the tilt", ge=0, le=2)
    top_p: Number | None = _must_be("a number > 0 and <= 1", gt=0, le=1)
    top_k: StrictInt | None = _must_be("a whole number >= 0 (0 = no limit)", ge=0, lt=1 << 31)
    min_p: Number | None = _must_be("a number from 0 to 1", ge=0, le=1)
    stream: StrictBool | None = _must_be("true or false")
    user: Label | None = _must_be("a text of at most 512 characters")
    tilt_temperature: Number | None = _must_be(f"a number > 0 and <= {MAX_TILT:g}: T of the tilt", gt=0, le=MAX_TILT)
    guidance_scale: Number | None = _must_be(f"a number from 0 to {MAX_TILT:g}: s of the tilt", ge=0, le=MAX_TILT)


class Request(Sampled):
    """Fields of completions and chats."""

    max_tokens: StrictInt | None = _must_be("a whole number >= 0", ge=0, lt=1 << 31)
    n: StrictInt | None = _must_be(f"a whole number from 1 to {MAX_CHOICES}", ge=1, le=MAX_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = _must_be(
        "a text of 1 to 256 characters, or a list of at most 4"
    )
    seed: StrictInt | None = _must_be("a whole number of 64 bits", ge=-(1 << 63), lt=1 << 63)
    presence_penalty: Number | None = _must_be("a number from -2 to 2", ge=-2, le=2)
    frequency_penalty: Number | None = _must_be("a number from -2 to 2", ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = _must_be(
        f'an object with at most {MAX_BIASES} numbers from -100 to 100 by token id, such as {{"42": -5}}', max_length=MAX_BIASES
    )
    stream_options: StreamOptions | None = _must_be('an object such as {"include_usage": true}')

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def shown_numbers(self) -> list[str]:
        """The fields set that show numbers of the distribution, or from which they can be worked out."""
        names = ("logprobs", "top_logprobs", "echo", "logit_bias", "presence_penalty", "frequency_penalty")
        values = {name: getattr(self, name, None) for name in names}
        return [name for name, value in values.items() if value is not None and value is not False]  # logprobs=0 shows some


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = _must_be(f"a text, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either", ...)
    logprobs: StrictInt | None = _must_be(f"a whole number from 0 to {MAX_LOGPROBS}", ge=0, le=MAX_LOGPROBS)
    echo: StrictBool | None = _must_be("true or false")
    best_of: Annotated[StrictInt, Field(ge=1, le=1)] | None = _must_be("1: this server writes no answers that it does not give")
    suffix: Literal[""] | None = _must_be("null: this server does not fill in between texts")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, texts or token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"] = _must_be('"text": this server reads nothing else', ...)
    text: Text = _must_be("a text", ...)


class Message(Body):
    """A message of a chat, as clients write it and as answers hold it."""

    role: Literal["system", "developer", "user", "assistant"] = _must_be(
        "system, developer, user or assistant: this server has no tools that could speak", ...
    )
    content: Text | Annotated[list[TextPart], Field(max_length=256)] | None = _must_be(
        'a text, or a list of at most 256 parts such as {"type": "text", "text": "…"}'
    )
    name: Label | None = _must_be("a text of at most 512 characters")
    tool_calls: NoItems | None = _must_be("null or []: this server has no tools")
    annotations: NoItems | None = _must_be("null or []")
    refusal: None = _must_be("null")
    audio: None = _must_be("null: this server has no audio")
    function_call: None = _must_be("null: this server has no functions")
    tool_call_id: None = _must_be("null: this server has no tools")
    parsed: None = _must_be("null")
    reasoning_content: Literal[""] | None = _must_be("null")

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = _must_be(
        f'a list of 1 to {MAX_MESSAGES} messages such as {{"role": "user", "content": "…"}}', ...
    )
    max_completion_tokens: StrictInt | None = _must_be("a whole number >= 1", ge=1, lt=1 << 31)
    logprobs: StrictBool | None = _must_be("true or false")
    top_logprobs: StrictInt | None = _must_be(f"a whole number from 0 to {MAX_LOGPROBS}", ge=0, le=MAX_LOGPROBS)

    # what this server does not have: only values that ask for nothing
    tools: NoItems | None = _must_be("null or []: this server has no tools")
    tool_choice: Literal["none", "auto"] | None = _must_be('"none" or "auto": this server has no tools')
    parallel_tool_calls: StrictBool | None = _must_be("true or false")
    functions: NoItems | None = _must_be("null or []: this server has no functions")
    function_call: Literal["none", "auto"] | None = _must_be('"none" or "auto": this server has no functions')
    response_format: ResponseFormat | None = _must_be('{"type": "text"}')
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = _must_be('["text"]: this server has no audio')
    audio: None = _must_be("null: this server has no audio")
    prediction: None = _must_be("null: this server takes no predicted answer")
    web_search_options: None = _must_be("null: this server does not search")
    reasoning_effort: Literal["none"] | None = _must_be('null or "none": this server does not set how a model reasons')
    verbosity: Literal["medium"] | None = _must_be('null or "medium": this server does not set the length of answers')
    store: Off | None = _must_be("false: this server stores no answers")
    metadata: NoKeys | None = _must_be("null or {}: this server stores no answers")
    service_tier: Literal["auto", "default"] | None = _must_be('"auto" or "default"')
    safety_identifier: Label | None = _must_be("a text of at most 512 characters")
    prompt_cache_key: Label | None = _must_be("a text of at most 512 characters")
    prompt_cache_retention: Literal["in_memory"] | None = _must_be("null: this server caches no prompts")


# --- /v1/responses --------------------------------------------------------------------------------------------------------

PLAIN_TEXT = (
    "/v1/responses answers with plain text and takes model, input, instructions, max_output_tokens, temperature, top_p, top_k, "
    "min_p, stream"
)


class InputPart(Body):
    """A part of a message, as clients write it and as answers hold it."""

    type: Literal["input_text", "output_text"] = _must_be(f'"input_text" or "output_text": {PLAIN_TEXT}', ...)
    text: Text = _must_be("a text", ...)
    annotations: NoItems | None = _must_be("null or []")
    logprobs: NoItems | None = _must_be("null or []")


class InputMessage(Body):
    """An item of the input."""

    type: Literal["message"] | None = _must_be(f'"message": {PLAIN_TEXT}')
    role: Literal["system", "developer", "user", "assistant"] = _must_be("system, developer, user or assistant", ...)
    content: Text | Annotated[list[InputPart], Field(max_length=256)] = _must_be(
        'a text, or a list of at most 256 parts such as {"type": "input_text", "text": "…"}', ...
    )
    id: Label | None = _must_be("a text of at most 512 characters")
    status: Literal["in_progress", "completed", "incomplete"] | None = _must_be("in_progress, completed or incomplete")
    phase: None = _must_be("null")

    @property
    def message(self) -> Message:
        """The same as a message of a chat."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message.model_validate({"role": self.role, "content": text})


class TextFormat(Body):
    """How the answer is written."""

    format: ResponseFormat | None = _must_be('{"type": "text"}')
    verbosity: Literal["medium"] | None = _must_be('null or "medium": this server does not set the length of answers')


class ObfuscationOptions(Body):
    """What a stream of events holds beside the answer."""

    include_obfuscation: Off | None = _must_be("false")


class ResponsesRequest(Sampled):
    """`POST /v1/responses`: plain text, nothing stored."""

    supported: ClassVar[str] = PLAIN_TEXT

    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES - 1)] = _must_be(
        f'a text, or a list of 1 to {MAX_MESSAGES - 1} messages such as {{"role": "user", "content": "…"}}', ...
    )
    instructions: Text | None = _must_be("a text, which stands before the input as a system message")
    max_output_tokens: StrictInt | None = _must_be("a whole number >= 1", ge=1, lt=1 << 31)
    text: TextFormat | None = _must_be('{"format": {"type": "text"}}')
    stream_options: ObfuscationOptions | None = _must_be('null or {"include_obfuscation": false}')

    # what this endpoint does not have: only values that ask for nothing
    background: Off | None = _must_be(f"false: {PLAIN_TEXT}")
    conversation: None = _must_be("null: this server stores nothing; give the earlier messages in input")
    include: NoItems | None = _must_be(f"null or []: {PLAIN_TEXT}")
    max_tool_calls: None = _must_be(f"null: {PLAIN_TEXT}")
    metadata: NoKeys | None = _must_be("null or {}: this server stores nothing")
    parallel_tool_calls: StrictBool | None = _must_be("true or false")
    previous_response_id: None = _must_be("null: this server stores nothing; give the earlier messages in input")
    prompt: None = _must_be(f"null: {PLAIN_TEXT}")
    prompt_cache_key: Label | None = _must_be("a text of at most 512 characters")
    prompt_cache_retention: Literal["in_memory"] | None = _must_be("null: this server caches no prompts")
    reasoning: NoKeys | None = _must_be("null: this server does not set how a model reasons")
    safety_identifier: Label | None = _must_be("a text of at most 512 characters")
    service_tier: Literal["auto", "default"] | None = _must_be('"auto" or "default"')
    store: Off | None = _must_be("false: this server stores nothing")
    tool_choice: Literal["none", "auto"] | None = _must_be(f'"none" or "auto": {PLAIN_TEXT}')
    tools: NoItems | None = _must_be(f"null or []: {PLAIN_TEXT}")
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=0)] | None = _must_be(f"null or 0: {PLAIN_TEXT}")
    truncation: Literal["disabled"] | None = _must_be('null or "disabled": a prompt that is too long is refused')

    @property
    def names(self) -> list[str]:
        """What the messages of `as_chat` are called here."""
        inputs = ["input"] if isinstance(self.input, str) else [f"input[{number}]" for number in range(len(self.input))]
        return ["instructions"] * bool(self.instructions) + inputs

    def as_chat(self) -> ChatRequest:
        """The chat that the answer continues, with the same sampling."""
        texts = [("system", self.instructions)] if self.instructions else []
        texts += [("user", self.input)] if isinstance(self.input, str) else []
        messages = [Message.model_validate({"role": role, "content": text}) for role, text in texts]
        messages += [] if isinstance(self.input, str) else [item.message for item in self.input]
        shared = {name: getattr(self, name) for name in Sampled.model_fields}
        return ChatRequest(**shared, messages=messages, max_completion_tokens=self.max_output_tokens)
