"""From a valid request to answers for the engine: limits that depend on the model, token ids, and the rule about the tilt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tempertilt.data.record import Message
from tempertilt.data.rows import ROLES
from tempertilt.errors import DataError
from tempertilt.serving.answers import Answer, Piece
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.decoder import NO_TILT, Distribution, Tilt
from tempertilt.serving.errors import RequestError
from tempertilt.serving.models import ServedModel
from tempertilt.serving.sampling import Sampling
from tempertilt.serving.schema import ChatRequest, CompletionRequest, Request, ResponsesRequest

COMPLETION_TOKENS = 16  # of a completion whose request names no number, as with OpenAI


@dataclass(frozen=True)
class Job:
    """A request made ready: `choices` answers to each prompt.

    Attributes:
        model: that answers.
        distribution: of the model and the request's tilt.
        prompts: token ids.
        texts: the prompts as texts, to be echoed; None = not.
        choices: answers to each prompt.
        sampling: how tokens are drawn; answer i of a prompt takes seed + i.
        score_prompts: give the numbers of the prompts, too.
    """

    model: ServedModel
    distribution: Distribution
    prompts: list[list[int]]
    texts: list[str] | None
    choices: int
    sampling: Sampling
    score_prompts: bool

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.prompts))

    def answers(self, give: Callable[[int, Piece], None]) -> list[Answer]:
        """Answers for the engine; `give` gets the number of the choice with each piece."""
        return [self._answer(number, give) for number in range(len(self.prompts) * self.choices)]

    def _answer(self, number: int, give: Callable[[int, Piece], None]) -> Answer:
        prompt, place = divmod(number, self.choices)
        seed = None if self.sampling.seed is None else (self.sampling.seed + place) % (1 << 63)
        return Answer(
            self.distribution,
            self.prompts[prompt],
            replace(self.sampling, seed=seed),
            self.model.decoder,
            lambda piece: give(number, piece),
            self.score_prompts,
        )


def find_model(name: str, models: Mapping[str, ServedModel]) -> ServedModel:
    """The model of that name; `RequestError` 404 if there is none."""
    if name not in models:
        raise RequestError(
            f"the model {name!r} does not exist; must be one of {', '.join(models)}",
            status=404,
            param="model",
            code="model_not_found",
        )
    return models[name]


def prepare_chat(request: ChatRequest, models: Mapping[str, ServedModel], config: ServeConfig) -> Job:
    """A chat request made ready; `RequestError` if it can't be carried out."""
    _check_stream_options(request)
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
    names = [f"messages[{number}]" for number in range(len(request.messages))]
    return _prepare_chat(request, models, config, names, "messages", "max_tokens")


def prepare_responses(request: ResponsesRequest, models: Mapping[str, ServedModel], config: ServeConfig) -> Job:
    """A request of `/v1/responses` made ready: a chat whose fields have other names; errors as of `prepare_chat`."""
    return _prepare_chat(request.as_chat(), models, config, request.names, "input", "max_output_tokens")


def _prepare_chat(
    request: ChatRequest,
    models: Mapping[str, ServedModel],
    config: ServeConfig,
    names: Sequence[str],
    messages: str,
    max_tokens: str,
) -> Job:
    """A chat request made ready; the client calls each message by its name, and the fields `messages` and `max_tokens` so."""
    model = find_model(request.model, models)
    distribution = Distribution(model.name, _tilt(request, model, config))
    prompt = _chat_prompt(request, model, names, messages)
    room = _room(model, prompt, messages)
    wanted = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if wanted == 0:
        raise RequestError("max_tokens is 0; must be a whole number >= 1", param="max_tokens")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = _sampling(request, model, _max_tokens(wanted, room, room, max_tokens), logprobs)
    return Job(model, distribution, [prompt], None, request.n or 1, sampling, False)


def prepare_completion(request: CompletionRequest, models: Mapping[str, ServedModel], config: ServeConfig) -> Job:
    """A completion request made ready; `RequestError` if it can't be carried out."""
    _check_stream_options(request)
    model = find_model(request.model, models)
    distribution = Distribution(model.name, _tilt(request, model, config))
    prompts = [_prompt(prompt, model, config.control_tokens == "token") for prompt in request.prompts]
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens is 0; must be a whole number >= 1, or 0 with echo=true", param="max_tokens")
    room = min(_room(model, prompt, "prompt", 0 if request.max_tokens == 0 else 1) for prompt in prompts)
    sampling = _sampling(request, model, _max_tokens(request.max_tokens, room, COMPLETION_TOKENS), request.logprobs)
    texts = None
    if request.echo:
        texts = [given if isinstance(given, str) else model.decode(given) for given in request.prompts]
    scored = bool(request.echo) and request.logprobs is not None
    return Job(model, distribution, prompts, texts, request.n or 1, sampling, scored)


def _check_stream_options(request: Request) -> None:
    if request.wants_usage and not request.stream:
        raise RequestError("stream_options needs stream=true", param="stream_options")


def _chat_prompt(request: ChatRequest, model: ServedModel, names: Sequence[str], param: str) -> list[int]:
    for each, name in zip(request.messages, names):
        if each.content is None and each.role != "assistant":  # who may have said nothing
            raise RequestError(f"{name}.content is null; must be a text", param=f"{name}.content")
    last, message = f"the last message of {param}", request.messages[-1]
    if message.role != "user":
        raise RequestError(f"{last} has the role {message.role!r}; must be 'user': it is the question", param=param)
    if not message.text.strip():
        raise RequestError(f"{last} is blank; must be a text: it is the question", param=param)
    try:
        ids = model.encode_chat([Message(ROLES[each.role], each.text) for each in request.messages], names)
    except DataError as error:
        raise RequestError(str(error), param=param) from error
    return _known(ids, model, param)


def _prompt(prompt: str | list[int], model: ServedModel, control_tokens: bool) -> list[int]:
    try:
        ids = model.encode_text(prompt, control_tokens) if isinstance(prompt, str) else prompt
    except DataError as error:
        raise RequestError(str(error), param="prompt") from error
    return _known(ids, model, "prompt")


def _known(ids: Sequence[int], model: ServedModel, param: str) -> list[int]:
    """The token ids, all of which the model has an embedding of."""
    highest = max(ids)
    if highest >= model.vocab_size:
        raise RequestError(
            f"{param} holds token id {highest}{model.token(highest)}; must be below {model.vocab_size}, the number of rows in "
            "the model's embedding",
            param=param,
        )
    return list(ids)


def _room(model: ServedModel, prompt: list[int], param: str, least: int = 1) -> int:
    """Tokens that an answer may have at most."""
    room = model.max_model_len - len(prompt)
    if room < least:
        raise RequestError(
            f"{param} has {len(prompt)} tokens; must be at most {model.max_model_len} with the answer",
            param=param,
            code="context_length_exceeded",
        )
    return room


def _max_tokens(wanted: int | None, room: int, default: int, param: str = "max_tokens") -> int:
    if wanted is None:
        return min(default, room)
    if wanted > room:
        raise RequestError(
            f"{param} is {wanted}; must be at most {room}, for which there is room beside the prompt",
            param=param,
            code="context_length_exceeded",
        )
    return wanted


def _sampling(request: Request, model: ServedModel, max_tokens: int, logprobs: int | None) -> Sampling:
    bias = {int(token): float(value) for token, value in (request.logit_bias or {}).items()}
    if bias and max(bias) >= model.vocab_size:
        raise RequestError(f"logit_bias holds token id {max(bias)}; must be below {model.vocab_size}", param="logit_bias")
    numbers = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    given = {name: float(value) for name in numbers if (value := getattr(request, name)) is not None}
    return Sampling(
        max_tokens=max_tokens,
        **given,
        top_k=min(request.top_k or 0, model.vocab_size),
        seed=request.seed,
        logit_bias=bias,
        logprobs=logprobs,
        stops=tuple(request.stops),
    )


def _tilt(request: Request, model: ServedModel, config: ServeConfig) -> Tilt:
    """The tilt that a request sets, if it may.

    Two settings of the tilt with their numbers give away the base's: log p1 - log p2 = z (1/T1 - 1/T2) + (s1 - s2) w + const.
    """
    settings = {"tilt_temperature": request.tilt_temperature, "guidance_scale": request.guidance_scale}
    given = {name: float(value) for name, value in settings.items() if value is not None}
    if not given:
        return NO_TILT
    name, adapter = next(iter(given)), model.adapter
    if adapter is None:
        raise RequestError(f"{name}: {model.name!r} has no tilt that a request can set", param=name)
    if config.tilt_parameters == "refuse":
        raise RequestError(f"{name}: this server does not let requests set the tilt", status=403, param=name)
    if config.tilt_parameters == "stronger":
        _check_stronger(request, given, {"tilt_temperature": adapter.temperature, "guidance_scale": adapter.guidance_scale})
    return Tilt(given.get("tilt_temperature"), given.get("guidance_scale"))


def _check_stronger(request: Request, given: Mapping[str, float], adapter: Mapping[str, float]) -> None:
    """`RequestError` 403 if a setting is weaker than the adapter's, or comes with numbers."""
    for name, value in given.items():
        if value < adapter[name]:
            raise RequestError(
                f"{name} is {value:g}; must be at least the adapter's {adapter[name]:g} on this server", status=403, param=name
            )
    if numbers := request.shown_numbers():
        raise RequestError(
            f"{', '.join(numbers)}: not together with tilt_temperature or guidance_scale; numbers under two settings of the tilt "
            "give away the base model's",
            status=403,
            param=numbers[0],
        )
