"""From a valid request to answers for the engine: limits that depend on the model, token ids, and the rule about the tilt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tempertilt.errors import DataError, TemperTiltError
from tempertilt.serving.config import ServeConfig
from tempertilt.serving.engine import NO_TILT, Answer, Law, Piece, Tilt
from tempertilt.serving.models import ServedModel
from tempertilt.serving.sampling import Sampling
from tempertilt.serving.schema import ChatRequest, CompletionRequest, Request

COMPLETION_TOKENS = 16  # of a completion whose request names no number, as with OpenAI


class RequestError(TemperTiltError):
    """A request can't be carried out.

    Args:
        message: why, and what is valid.
        status: of HTTP, 4xx.
        param, code: as OpenAI's clients read them.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Job:
    """A request made ready: `choices` answers to each prompt.

    Attributes:
        model: that answers.
        law: of the model and the request's tilt.
        prompts: token ids.
        texts: the prompts as texts, to be echoed; None = not.
        choices: answers to each prompt.
        sampling: how tokens are drawn; answer i of a prompt takes seed + i.
        score_prompts: give the numbers of the prompts, too.
    """

    model: ServedModel
    law: Law
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
        made = []
        for i in range(len(self.prompts) * self.choices):
            seed = None if self.sampling.seed is None else (self.sampling.seed + i % self.choices) % (1 << 63)
            sampling = Sampling(**{**vars(self.sampling), "seed": seed})
            prompt, number = self.prompts[i // self.choices], i

            def hand_over(piece: Piece, number: int = number) -> None:
                give(number, piece)

            made.append(Answer(self.law, prompt, sampling, self.model.decoder, hand_over, self.score_prompts))
        return made


def find_model(name: str, models: Mapping[str, ServedModel]) -> ServedModel:
    """The model of that name; `RequestError` 404 if there is none."""
    if name not in models:
        raise RequestError(
            f"the model {name!r} does not exist; valid are {', '.join(models)}", status=404, param="model", code="model_not_found"
        )
    return models[name]


def prepare_chat(request: ChatRequest, models: Mapping[str, ServedModel], config: ServeConfig) -> Job:
    """A chat request made ready; `RequestError` if it can't be carried out."""
    model = find_model(request.model, models)
    law = Law(model.name, _tilt(request, model, config))
    try:
        prompt = model.encode_chat([(message.role, message.text) for message in request.messages])
    except DataError as error:
        raise RequestError(str(error), param="messages") from error
    room = _room(model, prompt, "messages")
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if asked == 0:
        raise RequestError("max_tokens is 0; valid is a whole number >= 1", param="max_tokens")
    numbers = (request.top_logprobs or 0) if request.logprobs else None
    sampling = _sampling(request, model, _max_tokens(asked, room, room), numbers)
    return Job(model, law, [prompt], None, request.n or 1, sampling, False)


def prepare_completion(request: CompletionRequest, models: Mapping[str, ServedModel], config: ServeConfig) -> Job:
    """A completion request made ready; `RequestError` if it can't be carried out."""
    model = find_model(request.model, models)
    law = Law(model.name, _tilt(request, model, config))
    prompts = [_prompt(prompt, model) for prompt in request.prompts]
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens is 0; valid is a whole number >= 1, or 0 with echo=true", param="max_tokens")
    room = min(_room(model, prompt, "prompt", 0 if request.max_tokens == 0 else 1) for prompt in prompts)
    sampling = _sampling(request, model, _max_tokens(request.max_tokens, room, COMPLETION_TOKENS), request.logprobs)
    texts = None
    if request.echo:
        texts = [given if isinstance(given, str) else model.decode(given) for given in request.prompts]
    return Job(model, law, prompts, texts, request.n or 1, sampling, bool(request.echo) and request.logprobs is not None)


def _prompt(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        try:
            return model.encode_text(prompt)
        except DataError as error:
            raise RequestError(str(error), param="prompt") from error
    if max(prompt) >= model.vocab_size:
        raise RequestError(f"prompt holds token id {max(prompt)}; valid are 0 to {model.vocab_size - 1}", param="prompt")
    return prompt


def _room(model: ServedModel, prompt: list[int], param: str, least: int = 1) -> int:
    """Tokens that an answer may have at most."""
    room = model.max_model_len - len(prompt)
    if room < least:
        raise RequestError(
            f"{param}: {len(prompt)} tokens; this server takes {model.max_model_len} with the answer",
            param=param,
            code="context_length_exceeded",
        )
    return room


def _max_tokens(asked: int | None, room: int, default: int) -> int:
    if asked is None:
        return min(default, room)
    if asked > room:
        raise RequestError(
            f"max_tokens is {asked}; beside the prompt there is room for {room}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return asked


def _sampling(request: Request, model: ServedModel, max_tokens: int, logprobs: int | None) -> Sampling:
    bias = {int(token): float(value) for token, value in (request.logit_bias or {}).items()}
    if bias and max(bias) >= model.vocab_size:
        raise RequestError(f"logit_bias holds token id {max(bias)}; valid are 0 to {model.vocab_size - 1}", param="logit_bias")

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        max_tokens=max_tokens,
        temperature=float(given(request.temperature, 1.0)),
        top_p=float(given(request.top_p, 1.0)),
        top_k=min(given(request.top_k, 0), model.vocab_size),
        min_p=float(given(request.min_p, 0.0)),
        seed=request.seed,
        presence_penalty=float(given(request.presence_penalty, 0.0)),
        frequency_penalty=float(given(request.frequency_penalty, 0.0)),
        logit_bias=bias,
        logprobs=logprobs,
        stops=tuple(request.stops),
    )


def _tilt(request: Request, model: ServedModel, config: ServeConfig) -> Tilt:
    """The tilt that a request asks for, if it may.

    Two settings of the tilt with their numbers give away the base's: log p1 - log p2 = z (1/T1 - 1/T2) + (s1 - s2) w + const.
    """
    asked = Tilt(
        None if request.tilt_temperature is None else float(request.tilt_temperature),
        None if request.guidance_scale is None else float(request.guidance_scale),
    )
    if asked == NO_TILT:
        return asked
    name = "tilt_temperature" if asked.temperature is not None else "guidance_scale"
    adapter = model.adapter
    if adapter is None:
        raise RequestError(f"{name}: {model.name!r} is the base model, which has no tilt", param=name)
    if config.tilt_parameters == "refuse":
        raise RequestError(f"{name}: this server does not let requests set the tilt", status=403, param=name)
    if config.tilt_parameters == "any":
        return asked
    for name, value, own in (
        ("tilt_temperature", asked.temperature, adapter.temperature),
        ("guidance_scale", asked.guidance_scale, adapter.guidance_scale),
    ):
        if value is not None and value < own:
            raise RequestError(
                f"{name} is {value:g}; this server takes nothing below the adapter's {own:g}", status=403, param=name
            )
    if numbers := request.numbers_asked():
        raise RequestError(
            f"{', '.join(numbers)}: not together with tilt_temperature or guidance_scale; numbers under two settings of the tilt "
            "give away the base model's",
            status=403,
            param=numbers[0],
        )
    return asked
