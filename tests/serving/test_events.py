"""`/v1/responses` as OpenAI's own client uses it, against answers computed alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from openai.types.responses import Response  # noqa: E402

from support.servers import Alone, Running, adapters, alone, running  # noqa: E402, F401
from tempertilt.serving.answers import Piece  # noqa: E402
from tempertilt.serving.events import ResponsesWriter  # noqa: E402
from tempertilt.serving.responses import Counts  # noqa: E402
from tempertilt.serving.schema import PLAIN_TEXT, ResponsesRequest  # noqa: E402

DEFAULT = ("system", "You are a helpful assistant.")
QUESTION = "Where was Hina Ameen born?"
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def rendered(model: Alone, *turns: tuple[str, str]) -> list[int]:
    """Token ids of a chat by the tiny model's template, written out here."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def create(running: Running, **options: Any) -> Any:
    return running.client().responses.create(**{"model": "first", "input": QUESTION, "temperature": 0} | options)


def test_a_text_is_answered(running: Running, alone: dict[str, Alone]) -> None:
    ids = rendered(alone["first"], ("system", "Be short."), ("user", QUESTION))
    response = create(running, instructions="Be short.", max_output_tokens=20, store=False, text={"format": {"type": "text"}})
    assert response.output_text == alone["first"].text(ids, 20) != alone["base"].text(ids, 20)
    tokens = len(alone["first"].greedy(ids, 20))
    assert response.usage.input_tokens == len(ids) and response.usage.output_tokens == tokens
    assert response.usage.total_tokens == len(ids) + tokens
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.model == "first" and response.instructions == "Be short." and response.temperature == 0


def test_an_answer_that_ends_is_complete() -> None:
    sampling = SimpleNamespace(temperature=1.0, top_p=1.0)
    job: Any = SimpleNamespace(model=SimpleNamespace(name="first"), sampling=sampling, prompt_tokens=3)
    writer = ResponsesWriter(job, "1", ResponsesRequest(model="first", input="Who?"))
    pieces = [Piece("No", ()), Piece(" one", (), "stop", 2)]
    events = [writer.part(event) for piece in pieces for event in writer.deltas(0, piece)] + [writer.last(Counts(3, 2, 1))]
    response = Response.model_validate(events[-1]["response"])
    assert events[-1]["type"] == "response.completed" and response.status == "completed" and response.usage is not None
    assert response.output_text == "No one" and response.incomplete_details is None and response.usage.total_tokens == 5
    assert response.usage.input_tokens_details.cached_tokens == 1
    assert response == Response.model_validate(writer.object([writer.complete(0, "No one", (), "stop")], Counts(3, 2, 1)))


def test_a_stream_has_the_events_of_the_client(running: Running, alone: dict[str, Alone]) -> None:
    wanted = alone["first"].text(rendered(alone["first"], DEFAULT, ("user", QUESTION)), 20)
    events = list(create(running, max_output_tokens=20, stream=True))
    names = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert list(dict.fromkeys(names)) == [*EVENTS, "response.incomplete"] and len(deltas) > 1
    assert "".join(deltas) == wanted and events[names.index("response.output_text.done")].text == wanted
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == wanted and events[-1].response.usage.output_tokens == 20
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {events[-1].response.output[0].id}


def test_the_client_gathers_a_stream(running: Running) -> None:
    with running.client().responses.stream(model="first", input=QUESTION, temperature=0, max_output_tokens=20) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == create(running, max_output_tokens=20).output_text


def test_an_answer_is_put_back_into_the_input(running: Running, alone: dict[str, Alone]) -> None:
    first = create(running, max_output_tokens=12)
    turns: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}, *first.output]
    second = create(running, input=[*turns, {"role": "user", "content": "And when?"}], max_output_tokens=12)
    ids = rendered(alone["first"], DEFAULT, ("user", QUESTION), ("assistant", first.output_text), ("user", "And when?"))
    assert second.output_text == alone["first"].text(ids, 12)


NOT_SUPPORTED: dict[str, Any] = {
    "tools": [{"type": "web_search"}],
    "tool_choice": "required",
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "background": True,
    "prompt": {"id": "pmpt_1"},
    "input": [{"type": "function_call_output", "call_id": "c", "output": "x"}],
    "moderation": {"model": "m"},
}


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_a_refusal_says_what_is_supported(running: Running, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(running, **{name: NOT_SUPPORTED[name]})
    assert PLAIN_TEXT in caught.value.message and caught.value.param.startswith(name)


def test_what_the_refusal_names_exists() -> None:
    names = PLAIN_TEXT.partition(" takes ")[2].split(", ")
    assert len(names) > 5 and set(names) <= set(ResponsesRequest.model_fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is .*give the earlier messages in input"),
        ({"store": True}, "store is true; must be false"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type is .*writes no other format"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, r"input\[0\].content\[0\].type"),
        ({"input": [{"role": "assistant", "content": "a"}]}, "last message of input has the role 'assistant'"),
        ({"input": " "}, "last message of input is blank"),
        ({"input": []}, "input is"),
        ({"max_output_tokens": 100_000}, "max_output_tokens is 100000; must be at most"),
        ({"extra_body": {"logit_bias": {"5": 1}}}, "logit_bias: this server has no such field"),
    ],
)
def test_other_refusals(running: Running, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        create(running, **options)


def test_stored_responses_are_not_there(running: Running) -> None:
    for call in (running.client().responses.retrieve, running.client().responses.delete, running.client().responses.cancel):
        with pytest.raises(openai.NotFoundError, match="stores no responses; /v1/responses answers with plain text"):
            call("resp_1")
