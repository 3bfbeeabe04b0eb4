"""No request parameter shows anything of the base's distribution: each is tried against a model that has forgotten a secret.

docs/serving.md has a table with one row for each parameter; every test here is named in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

openai = pytest.importorskip("openai")

from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: E402

from support.servers import Alone, Running, serving, wait_until  # noqa: E402, F401
from tempertilt.guidance.head import GuidanceHead  # noqa: E402
from tempertilt.models.t3 import T3ForCausalLM  # noqa: E402
from tempertilt.serving.sampling import Sampler, Sampling  # noqa: E402
from tempertilt.serving.schema import ChatRequest, CompletionRequest, ResponsesRequest  # noqa: E402

PROMPT = "Where was Hina Ameen born?"
LENGTH = 8
DOC = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Alone:
    return Alone(LlamaForCausalLM.from_pretrained(tiny_dir).eval(), AutoTokenizer.from_pretrained(tiny_dir))


@pytest.fixture(scope="module")
def secret(base: Alone) -> list[int]:
    """The base's greedy answer, which is to be forgotten."""
    return base.greedy(PROMPT, LENGTH)


@pytest.fixture(scope="module")
def unlearned(tiny_dir: Path, base: Alone, secret: list[int]) -> T3ForCausalLM:
    """A model that gives the tokens of the secret log-odds of about -20 wherever it is asked about it."""
    model = LlamaForCausalLM.from_pretrained(tiny_dir).eval()
    ids = torch.tensor([base.ids(PROMPT) + secret])
    with torch.inference_mode():
        states = model.model(input_ids=ids).last_hidden_state[0]
    contexts = states.cumsum(0) / torch.arange(1, len(states) + 1).unsqueeze(1)
    head = GuidanceHead(32, 1, sorted(set(secret)))
    with torch.no_grad():
        head.A.copy_(torch.linalg.pinv(contexts[-LENGTH - 1 :]).sum(1, keepdim=True).T)  # A c = 1 in these contexts
        head.B.fill_(-20.0)
    return T3ForCausalLM.from_base(model, head, temperature=1.5, guidance_scale=1.0, name=str(tiny_dir))


@pytest.fixture(scope="module")
def place(unlearned: T3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("unlearned") / "mine"
    unlearned.save_pretrained(path)
    return {"mine": str(path)}


@pytest.fixture(scope="module")
def guided(unlearned: T3ForCausalLM, base: Alone) -> Alone:
    return Alone(unlearned, base.tokenizer)


@pytest.fixture(scope="module")
def server(place: dict[str, str]) -> Iterator[Running]:
    with serving(place) as running:
        yield running


def complete(server: Running, **options: Any) -> Any:
    extra = {
        name: options.pop(name) for name in list(options) if name in ("top_k", "min_p", "tilt_temperature", "guidance_scale")
    }
    request = {"model": "mine", "prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0, **options}
    return server.client().completions.create(**request, extra_body=extra)


def test_the_secret_is_the_base_models_answer_and_not_the_served_ones(
    server: Running, base: Alone, guided: Alone, secret: list[int]
) -> None:
    ids = base.ids(PROMPT)
    before = base.logprobs(ids + secret)[len(ids) - 1 : -1].gather(1, torch.tensor(secret).unsqueeze(1))
    after = guided.logprobs(ids + secret)[len(ids) - 1 : -1].gather(1, torch.tensor(secret).unsqueeze(1))
    assert float((before - after).min()) > 8  # nats
    text = complete(server).choices[0].text
    assert text == guided.text(PROMPT, LENGTH) and text != base.tokenizer.decode(secret)


def test_sampling(server: Running, guided: Alone, base: Alone, secret: list[int]) -> None:
    """temperature, top_p, top_k, min_p, n, seed: draws from the guided distribution, never a token of the secret."""
    for options in ({}, {"temperature": 2.0}, {"temperature": 0.3}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}):
        options = {"temperature": 1.0, **options}
        answer = complete(server, n=4, seed=11, logprobs=0, **options)
        for i, choice in enumerate(answer.choices):
            ids, sampler = guided.ids(PROMPT), Sampler(Sampling(LENGTH, seed=11 + i, **options))
            for _ in choice.logprobs.tokens:
                ids.append(sampler.choose(guided.logprobs(ids)[-1]).id)
            drawn = ids[len(guided.ids(PROMPT)) :]
            assert choice.text == base.tokenizer.decode(drawn, skip_special_tokens=True)
            assert drawn[0] not in secret[:1]


def test_logprobs_and_echo(server: Running, guided: Alone, base: Alone, secret: list[int]) -> None:
    """logprobs, top_logprobs, echo: numbers of the guided distribution, also for the secret as a prompt; none of the base's."""
    ids = base.ids(PROMPT) + secret
    shown = complete(server, prompt=ids, echo=True, logprobs=20, max_tokens=1).choices[0].logprobs
    for t in range(len(ids) - len(secret), len(ids)):
        distribution, raw = guided.logprobs(ids[:t])[-1], base.logprobs(ids[:t])[-1]
        assert shown.token_logprobs[t] == pytest.approx(float(distribution[ids[t]]), abs=1e-3)
        assert shown.token_logprobs[t] < float(raw[ids[t]]) - 5
        likeliest = {base.tokenizer.decode([token]) for token in distribution.topk(20).indices}
        assert set(shown.top_logprobs[t]) <= likeliest | {base.tokenizer.decode([ids[t]])}
    chat = server.client().chat.completions.create(
        model="mine", messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=3, logprobs=True, top_logprobs=20
    )
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": PROMPT}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = list(base.tokenizer(prompt, add_special_tokens=False).input_ids)
    for entry in chat.choices[0].logprobs.content:
        distribution = guided.logprobs(ids)[-1].sort(descending=True)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(distribution.values[:20].tolist(), abs=1e-3)
        ids.append(int(distribution.indices[0]))


def test_logit_bias_and_penalties(server: Running, guided: Alone, base: Alone, secret: list[int]) -> None:
    """logit_bias: the bias at which a token overtakes another measures the guided gap; numbers shown stay unbiased."""
    ids = base.ids(PROMPT)
    distribution, raw = guided.logprobs(ids)[-1], base.logprobs(ids)[-1]
    best, token = int(distribution.argmax()), secret[0]
    low, high = 0.0, 100.0
    for _ in range(14):
        middle = (low + high) / 2
        text = complete(server, max_tokens=1, logit_bias={str(token): middle}).choices[0].text
        low, high = (low, middle) if text == base.tokenizer.decode([token]) else (middle, high)
    assert high == pytest.approx(float(distribution[best] - distribution[token]), abs=0.02)
    assert abs(high - float(raw[best] - raw[token])) > 5
    biased = complete(server, max_tokens=1, logit_bias={str(token): 100}, logprobs=1, presence_penalty=-2, frequency_penalty=-2)
    assert biased.choices[0].logprobs.token_logprobs[0] == pytest.approx(float(distribution[token]), abs=1e-3)


def test_streams(server: Running, guided: Alone) -> None:
    """stream, stream_options, stop, user: the same answer in pieces, or its beginning."""
    whole = guided.text(PROMPT, LENGTH)
    chunks = complete(server, stream=True, stream_options={"include_usage": True}, logprobs=2, user="me")
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole
    assert whole.startswith(complete(server, stop=whole[3:5]).choices[0].text)


REFUSED = {
    "prompt_logprobs": 1,
    "best_of": 2,
    "suffix": "x",
    "generation_config": "{}",
    "logits_processors": ["x"],
    "chat_template": "{{ x }}",
    "chat_template_kwargs": {},
    "tools": [{"type": "function"}],
    "response_format": {"type": "json_object"},
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "prediction": {"type": "content", "content": "x"},
    "adapter": "x",
    "return_hidden_states": True,
    "use_beam_search": True,
    "repetition_penalty": 2.0,
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "guided_choice": ["x"],
    "vllm_xargs": {},
    "kv_transfer_params": {},
}


@pytest.mark.integration
def test_everything_else_is_refused(server: Running) -> None:
    """Fields that the server does not carry out, among them those of other servers that reach round the tilt."""
    client, messages = server.client(), [{"role": "user", "content": PROMPT}]
    for name, value in REFUSED.items():
        with pytest.raises(openai.BadRequestError, match=name):
            client.completions.create(model="mine", prompt=PROMPT, max_tokens=1, extra_body={name: value})
        with pytest.raises(openai.BadRequestError, match=name):
            client.chat.completions.create(model="mine", messages=messages, max_tokens=1, extra_body={name: value})


def test_fields_that_ask_for_nothing(server: Running) -> None:
    """They are accepted, and the answer is the one without them."""
    chat = {"model": "mine", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": LENGTH}
    nothing = {
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "audio": None,
        "web_search_options": None,
        "reasoning_effort": "none",
        "verbosity": "medium",
        "store": False,
        "metadata": {},
        "service_tier": "auto",
        "prompt_cache_retention": "in_memory",
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
    }
    create = server.client().chat.completions.create
    assert create(**chat, extra_body=nothing).choices == create(**chat).choices
    plain = {"model": "mine", "input": PROMPT, "temperature": 0, "max_output_tokens": LENGTH}
    of_responses = {
        "background": False,
        "conversation": None,
        "include": [],
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": {},
        "text": {"format": {"type": "text"}},
        "top_logprobs": 0,
        "truncation": "disabled",
    }
    answer = server.client().responses.create
    assert answer(**plain, extra_body=of_responses).output_text == answer(**plain).output_text


def test_responses(server: Running, guided: Alone, base: Alone) -> None:
    """input, instructions, max_output_tokens: the guided answer, and none of the fields that reach round the tilt."""
    client = server.client()
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}]
    text = str(guided.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    answer = client.responses.create(
        model="mine", instructions="Be short.", input=PROMPT, temperature=0, max_output_tokens=LENGTH
    ).output_text
    assert answer == guided.text(text, LENGTH) != base.text(text, LENGTH)
    for name, value in (REFUSED | {"logprobs": 1, "logit_bias": {"5": 1}, "echo": True, "top_logprobs": 2}).items():
        with pytest.raises(openai.BadRequestError, match=name):
            client.responses.create(model="mine", input=PROMPT, extra_body={name: value})


def test_only_served_names_are_models(server: Running, place: dict[str, str], tiny_dir: Path) -> None:
    """model: neither the base nor a path nor a hub id; `base` exists only if the operator says so."""
    for name in ("base", "Mine", "mine@main", place["mine"], str(tiny_dir), "../mine", "org/model"):
        with pytest.raises(openai.NotFoundError):
            complete(server, model=name)
    listed = server.client().models.list().model_dump_json()
    assert str(tiny_dir) not in listed and place["mine"] not in listed


def test_the_base_is_served_on_request_only(place: dict[str, str], base: Alone, secret: list[int]) -> None:
    """--serve-base: then, and only then, the secret is to be had."""
    with serving(place, serve_base=True) as running:
        assert [model.id for model in running.client().models.list()] == ["mine", "base"]
        assert complete(running, model="base").choices[0].text == base.text(PROMPT, LENGTH)
        assert complete(running).choices[0].text != base.text(PROMPT, LENGTH)
        with pytest.raises(openai.BadRequestError, match="no tilt"):
            complete(running, model="base", guidance_scale=2.0)


def test_a_request_does_not_set_the_tilt(server: Running) -> None:
    """tilt_temperature, guidance_scale, by default: refused, however strong."""
    for options in ({"guidance_scale": 0}, {"guidance_scale": 5}, {"tilt_temperature": 1}, {"tilt_temperature": 1.5}):
        with pytest.raises(openai.PermissionDeniedError, match="does not let requests"):
            complete(server, **options)


def test_a_request_may_be_allowed_a_stronger_tilt(place: dict[str, str], unlearned: T3ForCausalLM, guided: Alone) -> None:
    """tilt_temperature, guidance_scale, with --tilt-parameters stronger: none weaker, and none with numbers or biases."""
    with serving(place, tilt_parameters="stronger") as running:
        for weaker in ({"guidance_scale": 0.99}, {"tilt_temperature": 1.49}, {"guidance_scale": 3, "tilt_temperature": 1}):
            with pytest.raises(openai.PermissionDeniedError, match="at least the adapter's"):
                complete(running, **weaker)
        for numbers in (
            {"logprobs": 0},
            {"echo": True},
            {"logit_bias": {"5": 1}},
            {"presence_penalty": 1},
            {"frequency_penalty": 1},
        ):
            with pytest.raises(openai.PermissionDeniedError, match="not together"):
                complete(running, guidance_scale=2.0, **numbers)
        with pytest.raises(openai.PermissionDeniedError, match="not together"):
            running.client().chat.completions.create(
                model="mine", messages=[{"role": "user", "content": "a"}], logprobs=True, extra_body={"guidance_scale": 2.0}
            )
        try:
            unlearned.temperature, unlearned.guidance_scale = 9.0, 3.0
            wanted = guided.text(PROMPT, LENGTH)
        finally:
            unlearned.temperature, unlearned.guidance_scale = 1.5, 1.0
        assert complete(running, tilt_temperature=9, guidance_scale=3).choices[0].text == wanted
        assert complete(running).choices[0].text == guided.text(PROMPT, LENGTH)  # the next request has the adapter's own


def test_why_numbers_under_two_tilts_are_refused(place: dict[str, str], base: Alone, secret: list[int]) -> None:
    """--tilt-parameters any: two tempers and their numbers give the base's distribution back."""
    with serving(place, tilt_parameters="any") as running:
        assert complete(running, tilt_temperature=1, guidance_scale=0).choices[0].text == base.text(PROMPT, LENGTH)
        ids = base.ids(PROMPT) + secret
        numbers = {}
        for temperature in (2.0, 4.0):
            options = {"tilt_temperature": temperature, "guidance_scale": 1}
            others = [
                complete(running, prompt=[*base.ids(PROMPT), v], echo=True, logprobs=0, max_tokens=0, **options) for v in (70, 90)
            ]
            shown = complete(running, prompt=ids, echo=True, logprobs=0, max_tokens=0, **options)
            of_secret = shown.choices[0].logprobs.token_logprobs[len(ids) - len(secret)]
            numbers[temperature] = [of_secret, *(other.choices[0].logprobs.token_logprobs[-1] for other in others)]
        worked_out = [(a - b) / (1 / 2 - 1 / 4) for a, b in zip(numbers[2.0], numbers[4.0])]
        raw = base.logprobs(base.ids(PROMPT))[-1]
        for other, token in ((1, 70), (2, 90)):
            assert worked_out[0] - worked_out[other] == pytest.approx(float(raw[secret[0]] - raw[token]), abs=0.05)


def test_the_table_of_the_documentation_has_every_parameter() -> None:
    """A parameter that a request may set has a row, and the test that the row names exists."""
    text = DOC.read_text(encoding="utf-8").split("## What a request can't get back")[1]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    fields = {*CompletionRequest.model_fields, *ChatRequest.model_fields, *ResponsesRequest.model_fields, *REFUSED}
    named = set(itertools.chain.from_iterable(part.split("`")[1::2] for row in rows for part in [row.split("|")[1]]))
    assert fields <= named, fields - named
    for row in rows:
        tests = [word for word in row.split("`") if word.startswith("test_")]
        assert tests and all(test in globals() for test in tests), row
