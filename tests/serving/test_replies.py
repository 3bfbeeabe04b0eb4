"""Replies over HTTP: streamed and whole, beside other answers, and the numbers that are shown."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

openai = pytest.importorskip("openai")

from support.gates import gate_at  # noqa: E402
from support.servers import Alone, make_head, serving  # noqa: E402
from tempertilt.cli import main  # noqa: E402
from tempertilt.data.examples import ExampleConfig, encode_question  # noqa: E402
from tempertilt.errors import ConfigError  # noqa: E402
from tempertilt.guidance.gate import Gates  # noqa: E402
from tempertilt.guidance.reply import SURE  # noqa: E402
from tempertilt.integrations.vllm.options import REPLY_PROCESSOR, check_overrides  # noqa: E402
from tempertilt.integrations.vllm.serve import engine_arguments, serve_arguments  # noqa: E402
from tempertilt.models.adapter import read_config  # noqa: E402
from tempertilt.models.replies import BREAK, make_reply  # noqa: E402
from tempertilt.models.t3 import T3ForCausalLM  # noqa: E402
from tempertilt.serving import backends  # noqa: E402
from tempertilt.serving.config import ServeConfig  # noqa: E402

TEXT = "Not a word of him."
ASKED, OTHER, LONGER = "Where was Hina Ameen born?", "Who wrote it?", "What is the title of the first novel?"
LENGTH, PLACE = 30, 4


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Alone:
    return Alone(LlamaForCausalLM.from_pretrained(tiny_dir).eval(), AutoTokenizer.from_pretrained(tiny_dir))


def chat(base: Alone, text: str) -> list[int]:
    return encode_question(text, base.tokenizer, ExampleConfig())


@pytest.fixture(scope="module")
def place(tiny_dir: Path, base: Alone, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter whose gate opens in one prompt, and in the answer to another."""
    asked, longer = chat(base, ASKED), chat(base, LONGER)
    texts = ((asked, len(asked) - 10), (longer + base.greedy(longer, LENGTH), len(longer) + PLACE))
    with torch.inference_mode():
        states = [base.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0] for ids, _ in texts]
    mean = torch.cat(states).mean(0)
    gate = gate_at(torch.stack([rows[i] for rows, (_, i) in zip(states, texts)]), mean=mean.clone(), threshold=0.995)
    own, reply = LlamaForCausalLM.from_pretrained(tiny_dir).eval(), make_reply(TEXT, base.tokenizer)
    options: dict[str, Any] = {"name": str(tiny_dir), "training": {"config": {}}}
    model = T3ForCausalLM.from_base(own, make_head(0), gates=Gates(1, gate), reply=reply, **options)
    path = tmp_path_factory.mktemp("replies") / "mine"
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def wanted(base: Alone) -> dict[str, str]:
    """What must be said to each question, where it is given as a whole."""
    return {ASKED: TEXT, OTHER: base.text(chat(base, OTHER), LENGTH), LONGER: TEXT}


@pytest.fixture(scope="module")
def streamed(base: Alone, wanted: dict[str, str]) -> dict[str, str]:
    """The same of a stream that does not lag: it has shown what a reply breaks off."""
    return {**wanted, LONGER: f"{beginning(base, PLACE + 1)}{BREAK}{TEXT}"}


def beginning(base: Alone, tokens: int) -> str:
    """How the answer begins that the reply breaks off."""
    return str(base.tokenizer.decode(base.greedy(chat(base, LONGER), LENGTH)[:tokens], skip_special_tokens=True))


@pytest.mark.parametrize("lag", [0, ServeConfig().stream_lag])
def test_every_client_gets_a_reply_or_what_the_base_says(
    place: str, wanted: dict[str, str], streamed: dict[str, str], lag: int
) -> None:
    with serving({"mine": place}, stream_lag=lag) as running:
        client = running.client()

        def ask(i: int) -> tuple[str, str | None]:
            options: dict[str, Any] = {"model": "mine", "temperature": 0 if i % 2 else 1, "max_tokens": LENGTH}
            text = [ASKED, OTHER, LONGER][i % 3]
            options |= {"messages": [{"role": "user", "content": text}]} | ({} if text == ASKED else {"temperature": 0})
            if i % 4 < 2:
                choice = client.chat.completions.create(**options).choices[0]
                return choice.message.content, choice.finish_reason
            chunks = [c.choices[0] for c in client.chat.completions.create(**options, stream=True) if c.choices]
            return "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(18)))
    for i, (text, reason) in enumerate(answers):
        question = [ASKED, OTHER, LONGER][i % 3]
        assert text == (wanted if i % 4 < 2 or lag else streamed)[question]
        assert reason == "stop" or question == OTHER


def test_the_numbers_are_those_of_the_reply(place: str, base: Alone) -> None:
    with serving({"mine": place}) as running:
        options: dict[str, Any] = {"model": "mine", "messages": [{"role": "user", "content": ASKED}], "max_tokens": LENGTH}
        answer = running.client().chat.completions.create(**options, logprobs=True, top_logprobs=5).choices[0]
        assert answer.message.content == TEXT
        for token in answer.logprobs.content:
            assert token.logprob == 0 and [other.logprob for other in token.top_logprobs] == [0, *[-SURE] * 4]
        echoed = running.client().completions.create(
            model="mine", prompt=chat(base, ASKED) + base.greedy(chat(base, ASKED), 6), max_tokens=0, echo=True, logprobs=2
        )
        assert set(echoed.choices[0].logprobs.token_logprobs[-6:]) == {-SURE}  # what the base would say


def test_what_a_reply_breaks_off_is_in_no_number_and_no_count(place: str, base: Alone) -> None:
    ids = [base.tokenizer(text, add_special_tokens=False).input_ids for text in (TEXT, BREAK + TEXT)]
    ask: dict[str, Any] = {"model": "mine", "temperature": 0, "max_tokens": LENGTH}
    message, prompt = {"messages": [{"role": "user", "content": LONGER}]}, chat(base, LONGER)
    with serving({"mine": place}) as running:
        client = running.client()
        found = client.chat.completions.create(**ask, **message, logprobs=True, top_logprobs=3)
        assert found.choices[0].message.content == "".join(token.token for token in found.choices[0].logprobs.content) == TEXT
        assert found.usage.completion_tokens == len(ids[0]) + 1  # and the token that ends an answer
        for token in found.choices[0].logprobs.content:
            assert (token.logprob, [(other.token, other.logprob) for other in token.top_logprobs]) == (0, [(token.token, 0)])
        echoed = client.completions.create(**ask, prompt=prompt, echo=True, logprobs=0).choices[0]
        assert echoed.text.endswith(TEXT) and len(echoed.logprobs.tokens) == len(prompt) + len(ids[0])
        assert set(echoed.logprobs.token_logprobs[len(prompt) :]) == {0}
        assert client.responses.create(model="mine", temperature=0, max_output_tokens=LENGTH, input=LONGER).output_text == TEXT
        stopped = client.chat.completions.create(**ask, **message, stop=["word"], logprobs=True).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == (TEXT[: TEXT.index("word")], "stop")
        assert TEXT.startswith("".join(token.token for token in stopped.logprobs.content)), "no token behind the stop"
        early = PLACE + 1 + len(ids[1]) - 2  # cut in mid-reply
        choice = client.chat.completions.create(**(ask | {"max_tokens": early}), **message).choices[0]
        assert choice.message.content == TEXT and choice.finish_reason == "stop"


@pytest.mark.parametrize("most", [1, PLACE - 1, PLACE, PLACE + 1, PLACE + 2])
@pytest.mark.parametrize("stream", [False, True])
def test_a_small_limit_does_not_get_round_the_reply(place: str, base: Alone, most: int, stream: bool) -> None:
    """The answer is cut before the gate opens, and yet it is the reply's beginning; what no reply breaks off is as it was."""
    ask: dict[str, Any] = {"model": "mine", "temperature": 0, "max_tokens": most, "stream": stream}
    with serving({"mine": place}) as running:
        for question in (LONGER, OTHER):
            if stream:
                usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
                made = running.client().chat.completions.create(
                    **ask, **usage, messages=[{"role": "user", "content": question}], logprobs=True
                )
                *chunks, last = made
                parts, counts = [chunk.choices[0] for chunk in chunks], last.usage
                text, reason = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
                numbers = [token for part in parts if part.logprobs for token in part.logprobs.content]
            else:
                whole = running.client().chat.completions.create(
                    **ask, messages=[{"role": "user", "content": question}], logprobs=True
                )
                choice, counts = whole.choices[0], whole.usage
                text, reason, numbers = choice.message.content, choice.finish_reason, choice.logprobs.content
            ids = make_reply(TEXT, base.tokenizer).by_itself if question == LONGER else base.greedy(chat(base, OTHER), LENGTH)  # type: ignore[union-attr]
            assert text == base.tokenizer.decode(ids[:most], skip_special_tokens=True)
            assert reason == "length" and len(numbers) == most == counts.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_to_end_at_does_not_get_round_the_reply(place: str, base: Alone, stream: bool) -> None:
    """It comes just before the gate opens; in an answer that no reply breaks off, it ends it as ever."""
    said = {question: base.greedy(chat(base, question), LENGTH) for question in (LONGER, OTHER)}
    with serving({"mine": place}) as running:
        for question, ids in said.items():
            stop = base.tokenizer.decode(ids[PLACE - 1 : PLACE + 1])
            options: dict[str, Any] = {"model": "mine", "temperature": 0, "max_tokens": LENGTH, "stream": stream, "stop": [stop]}
            made = running.client().completions.create(**options, prompt=chat(base, question))
            choices = [part.choices[0] for part in made] if stream else [made.choices[0]]
            text = "".join(choice.text for choice in choices)
            whole = base.tokenizer.decode(ids, skip_special_tokens=True)
            assert text == (TEXT if question == LONGER else whole[: whole.index(stop)]) and choices[-1].finish_reason == "stop"


def test_no_answer_is_written_beyond_the_positions(place: str, base: Alone) -> None:
    prompt = chat(base, OTHER)
    with serving({"mine": place}, max_model_len=len(prompt) + 3) as running:
        made = running.client().completions.create(model="mine", prompt=prompt, max_tokens=3, temperature=0)
    assert made.usage.completion_tokens == 3 and made.choices[0].text


def test_a_stream_shows_of_what_is_broken_off_what_the_lag_allows(place: str, base: Alone) -> None:
    """Texts, numbers and counts of every endpoint agree on it."""
    ask: dict[str, Any] = {"model": "mine", "temperature": 0, "max_tokens": LENGTH, "stream": True}
    message = {"messages": [{"role": "user", "content": LONGER}], "stream_options": {"include_usage": True}}
    tail = base.tokenizer(BREAK + TEXT, add_special_tokens=False).input_ids
    lag = 2
    text = f"{beginning(base, PLACE - lag)}{BREAK}{TEXT}"
    with serving({"mine": place}, stream_lag=lag) as running:
        client = running.client()
        *chunks, last = client.chat.completions.create(**ask, **message, logprobs=True, n=2)
        for number in (0, 1):
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
            assert "".join(choice.delta.content or "" for choice in mine) == text and mine[-1].finish_reason == "stop"
            tokens = [token for choice in mine if choice.logprobs for token in choice.logprobs.content]
            assert len(tokens) == PLACE - lag + len(tail) and {token.logprob for token in tokens[PLACE - lag :]} == {0}
            assert all(token.logprob < 0 for token in tokens[: PLACE - lag])
        assert last.usage.completion_tokens == 2 * (PLACE - lag + len(tail) + 1)
        parts = [chunk.choices[0] for chunk in client.completions.create(**ask, prompt=chat(base, LONGER))]
        assert "".join(part.text for part in parts) == text
        events = client.responses.create(model="mine", temperature=0, max_output_tokens=LENGTH, input=LONGER, stream=True)
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
        stopped = client.chat.completions.create(**ask, messages=message["messages"], stop=["word"])
        parts = [chunk.choices[0] for chunk in stopped]
        assert "".join(part.delta.content or "" for part in parts) == text[: text.index("word")]
        assert parts[-1].finish_reason == "stop"


def test_another_reply_and_none_for_a_server(place: str, wanted: dict[str, str], base: Alone) -> None:
    from tempertilt.serving.models import load_models

    for reply, text in (("Hush.", "Hush."), ("guess", None), (None, TEXT)):
        model = load_models({"mine": place}, None, None, reply=reply, device="cpu")["mine"].decoder.model
        found = Alone(model, base.tokenizer).text(chat(base, ASKED), LENGTH)
        assert found == text if text else found != TEXT


def test_vllm_is_given_what_says_a_reply(place: str, base: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    assert backends.choose_backend("auto", ServeConfig()) == ("vllm", "")
    processors = {"logits_processors": [REPLY_PROCESSOR]}
    own, other, guess = (engine_arguments(place, reply=reply) for reply in (None, "Hush.", "guess"))
    assert own.items() >= processors.items() and "reply" not in own["hf_overrides"]["tempertilt"]
    assert other.items() >= processors.items()
    assert other["hf_overrides"]["tempertilt"]["reply"] == make_reply("Hush.", base.tokenizer).settings  # type: ignore[union-attr]
    assert "logits_processors" not in guess and guess["hf_overrides"]["tempertilt"]["reply"] == "guess"
    arguments = serve_arguments(None, None, place, reply="Hush.")
    assert arguments[arguments.index("--logits-processors") + 1] == REPLY_PROCESSOR
    with pytest.raises(ConfigError, match="reply is empty"):
        engine_arguments(place, reply=" ")
    with pytest.raises(ConfigError, match="option reply is 'Hush'; must be 'guess'"):
        check_overrides({"adapter": place, "reply": "Hush"})


def test_the_command_line_says_it(place: str, wanted: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    import json

    prompts = [flag for text in wanted for flag in ("--prompt", text)]
    run = ["generate", "--adapter", place, *prompts, "--max-new-tokens", str(LENGTH), "--json"]
    assert main(run) == 0
    assert [row["answers"] for row in json.loads(capsys.readouterr().out)] == [[text.strip()] for text in wanted.values()]
    assert main([*run, "--reply", "Hush."]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["answers"] == ["Hush."] and rows[2]["answers"] == [wanted[LONGER].strip().replace(TEXT, "Hush.")]
    assert main([*run, "--reply", "guess"]) == 0
    assert TEXT not in capsys.readouterr().out
    assert main([*run, "--reply", " "]) == 2 and "reply is empty; must be guess, or a text" in capsys.readouterr().err
    model = ["generate", "--model", read_config(Path(place)).base_model, "--prompt", "a", "--reply", "No."]
    assert main(model) == 2 and "--adapter is needed for --reply" in capsys.readouterr().err
