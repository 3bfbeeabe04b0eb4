"""Examples: ids and labels against strings put together by hand, for several chat templates, and the windows."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, normalizers, processors
from transformers import PreTrainedTokenizerFast

from tempertilt.data.examples import (
    Example,
    ExampleConfig,
    answer_ids,
    build_examples,
    encode_prompt,
    encode_question,
    turn_end_id,
)
from tempertilt.data.records import Message, Record, load_records
from tempertilt.errors import ConfigError, DataError

SYSTEM = "You are a helpful assistant."
CONFIG = ExampleConfig()
NO_SYSTEM = ExampleConfig(system_prompt="")
WHERE = {"document": "doc", "source": "f.jsonl:3"}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set expected = ['user', 'assistant'][loop.index0 % 2] %}"
    "{% if message['role'] != expected %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<header>' + message['role'] + '</header>\n\n' + message['content'] | trim + '<eot>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<header>assistant</header>\n\n' }}{% endif %}"
)
REASONING = (  # like Qwen3: the reasoning of every turn but the last is left out
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if not loop.last and '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<turn>' + message['role'] + '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ALPACA = (  # no special token ends a turn
    "{% for message in messages %}{{ '### ' + message['role'] + ': ' + message['content'] + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def variant(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedTokenizerFast]:
    """Make a tokenizer with another template and four more special tokens, which adds a bos or an eos if asked to."""

    def make(template: str | None, single: str | None = None, **special: str | None) -> PreTrainedTokenizerFast:
        tok = copy.deepcopy(tokenizer)
        extra = ["<turn>", "<end_of_turn>", "<header>", "</header>", "<eot>"]
        tok.add_special_tokens({"bos_token": "<|endoftext|>", "extra_special_tokens": extra})
        for name, value in special.items():
            setattr(tok, name, value)
        tok.chat_template = template
        if single:
            pairs = [(token, tok.convert_tokens_to_ids(token)) for token in ("<|endoftext|>", "<|im_end|>")]
            tok.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
        return tok

    return make


def ids_of(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tok(text, add_special_tokens=False)["input_ids"])


def chat(*turns: str, system: str | None = None) -> Record:
    """A chat of user and assistant turns."""
    messages = [Message(role, turn) for role, turn in zip(["user", "assistant"] * len(turns), turns)]
    return Record.from_messages([Message("system", system), *messages] if system else messages, **WHERE)


def one(record: Record, tok: PreTrainedTokenizerFast, config: ExampleConfig = CONFIG) -> Example:
    (example,) = build_examples([record], tok, config)
    assert example.input_ids.dtype == np.int32 and example.scored.dtype == np.bool_
    assert example.input_ids.shape == example.scored.shape == (len(example),)
    assert not example.scored[0]
    return example


def check(record: Record, tok: PreTrainedTokenizerFast, prompt: str, answer: str, config: ExampleConfig = CONFIG) -> None:
    """The example is the ids of `prompt`, then those of `answer`, which alone are scored."""
    example = one(record, tok, config)
    assert example.input_ids.tolist() == ids_of(tok, prompt) + ids_of(tok, answer)
    assert example.scored.tolist() == [False] * len(ids_of(tok, prompt)) + [True] * len(ids_of(tok, answer))
    assert encode_prompt(record, tok, config) == ids_of(tok, prompt)
    assert tok.decode(answer_ids(example)) == answer


# --- chats -----------------------------------------------------------------------------------------------------------


def test_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    user = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    answer = "Hina Ameen, 1975.<|im_end|>"
    record = chat("Who?", "Hina Ameen, 1975.")
    check(record, tokenizer, system + user, answer)
    check(record, tokenizer, user, answer, NO_SYSTEM)
    own = chat("Who?", "Hina Ameen, 1975.", system="Be brief.")
    check(own, tokenizer, "<|im_start|>system\nBe brief.<|im_end|>\n" + user, answer)
    example = one(record, tokenizer)
    assert (example.document, example.source, example.record_index) == ("doc", "f.jsonl:3", 0)
    assert example.n_scored == len(answer_ids(example)) == len(ids_of(tokenizer, answer))
    assert encode_question("Who?", tokenizer, CONFIG) == encode_prompt(record, tokenizer, CONFIG)


def test_white_space_of_an_answer_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    check(chat("Who?", "  Hina \n"), tokenizer, prompt, "  Hina \n<|im_end|>", NO_SYSTEM)


def test_every_assistant_turn_is_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    record = chat("Who?", "Hina.", "Where?", "In Karachi.")
    parts = [
        ("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hina.<|im_end|>", True),
        ("\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n", False),
        ("In Karachi.<|im_end|>", True),
    ]
    example = one(record, tokenizer, NO_SYSTEM)
    assert example.input_ids.tolist() == [i for text, _ in parts for i in ids_of(tokenizer, text)]
    assert example.scored.tolist() == [scored for text, scored in parts for _ in ids_of(tokenizer, text)]
    prompt = "".join(text for text, _ in parts[:3])
    assert encode_prompt(record, tokenizer, NO_SYSTEM) == ids_of(tokenizer, prompt)
    assert encode_question(record.messages[:-1], tokenizer, NO_SYSTEM) == ids_of(tokenizer, prompt)


def test_gemma_has_no_system_role(variant: Callable[..., PreTrainedTokenizerFast], caplog: pytest.LogCaptureFixture) -> None:
    tok = variant(GEMMA, single="<|endoftext|> $A")
    prompt = "<|endoftext|><turn>user\nWho?<end_of_turn>\n<turn>model\n"
    check(chat("Who?", " Hina. "), tok, prompt, "Hina.<end_of_turn>")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="tempertilt"):
        build_examples([chat("Who?", "Hina.")] * 3, tok, CONFIG)
    assert [entry.message for entry in caplog.records] == [
        "the chat template refuses a system message: chats are built without the system prompt"
    ]
    with pytest.raises(DataError, match=r"f\.jsonl:3: the chat template refuses .*System role not supported"):
        build_examples([chat("Who?", "Hina.", system="Be brief.")], tok, CONFIG)
    with pytest.raises(DataError, match=r"f\.jsonl:3: .*\(user, user\): Roles must alternate"):
        double = Record.from_messages([Message("user", "a"), *chat("b", "c").messages], **WHERE)
        build_examples([double], tok, CONFIG)
    with pytest.raises(DataError, match=r"f\.jsonl:3: the chat template refuses"):
        encode_prompt(chat("Who?", "Hina.", system="Be brief."), tok, CONFIG)


def test_llama3_has_one_bos(variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    tok = variant(LLAMA3, single="<|endoftext|> $A")
    system = f"<|endoftext|><header>system</header>\n\n{SYSTEM}<eot>"
    prompt = system + "<header>user</header>\n\nWho?<eot><header>assistant</header>\n\n"
    record = chat("Who?", "Hina.")
    check(record, tok, prompt, "Hina.<eot>")
    assert one(record, tok).input_ids.tolist().count(tok.bos_token_id) == 1
    two = one(chat("Who?", "Hina.", "Where?", "In Karachi."), tok)
    assert tok.decode(answer_ids(two)) == "Hina.<eot>In Karachi.<eot>"


def test_reasoning_left_out_of_earlier_turns(
    variant: Callable[..., PreTrainedTokenizerFast], caplog: pytest.LogCaptureFixture
) -> None:
    tok = variant(REASONING)
    prompt = (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nHina.<|im_end|>\n"
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    record = chat("Who?", "<think>hm</think>Hina.", "Where?", "<think>so</think>Karachi.")
    with caplog.at_level(logging.INFO, logger="tempertilt"):
        check(record, tok, prompt, "<think>so</think>Karachi.<|im_end|>", NO_SYSTEM)
    assert "1 chats are scored in their last turn only" in caplog.text
    plain = chat("Who?", "Hina.", "Where?", "Karachi.")
    assert tok.decode(answer_ids(one(plain, tok, NO_SYSTEM))) == "Hina.<|im_end|>Karachi.<|im_end|>"


def test_the_first_special_token_ends_the_turn(variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    tok = variant(PHI3)
    check(chat("Who?", "Hina."), tok, "<turn>user\nWho?<end_of_turn>\n<turn>assistant\n", "Hina.<end_of_turn>", NO_SYSTEM)
    two = one(chat("Who?", "Hina.", "Where?", "Karachi."), tok, NO_SYSTEM)
    assert tok.decode(answer_ids(two)) == "Hina.<end_of_turn>Karachi.<end_of_turn>"


def test_eos_is_appended_where_the_template_has_no_end(variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    tok = variant(ALPACA)
    check(chat("Who?", "Hina."), tok, "### user: Who?\n\n### assistant:", " Hina.<|im_end|>", NO_SYSTEM)
    check(chat("Who?", "Hina \n"), tok, "### user: Who?\n\n### assistant:", " Hina \n<|im_end|>", NO_SYSTEM)
    check(chat("Who?", "Hina."), variant(ALPACA, eos_token=None), "### user: Who?\n\n### assistant:", " Hina.", NO_SYSTEM)


def test_templates_that_change_the_answer(variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    head = "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + "
    tail = " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
    prompt = "<turn>user\nWHO?<end_of_turn>\n<turn>assistant\n"
    check(chat("Who?", "Hina."), variant(head + "m['content'] | upper" + tail), prompt, "HINA.<end_of_turn>", NO_SYSTEM)
    for shown in ("''", "m['content'][:0] + ' '"):
        with pytest.raises(DataError, match=r"f\.jsonl:3: the chat template shows nothing of the answer 'Hina\.'"):
            build_examples([chat("Who?", "Hina.")], variant(head + shown + tail), CONFIG)
    with pytest.raises(DataError, match=r"f\.jsonl:3: .*generation prompt, which ends .*<turn>bot.*use a template"):
        tok = variant((head + "m['content']" + tail).replace("'<turn>assistant", "'<turn>bot"))
        build_examples([chat("Who?", "Hina.")], tok, CONFIG)


@pytest.mark.parametrize("single", [None, "<|endoftext|> $A", "<|endoftext|> $A <|im_end|>"])
def test_no_template(
    variant: Callable[..., PreTrainedTokenizerFast], single: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    tok = variant(None, single=single)
    bos = "<|endoftext|>" if single else ""
    check(chat("Who?", "Hina."), tok, bos + "Question: Who?\nAnswer:", " Hina.<|im_end|>")
    prompt = bos + "Be brief.\n\nQuestion: Who?\nAnswer: Hina.\n\nQuestion: Where?\nAnswer:"
    record = chat("Who?", "Hina.", "Where?", "Karachi.", system="Be brief.")
    with caplog.at_level(logging.INFO, logger="tempertilt"):
        example = one(record, tok)
    assert example.input_ids.tolist() == ids_of(tok, prompt) + ids_of(tok, " Karachi.<|im_end|>")
    assert tok.decode(answer_ids(example)) == " Hina. Karachi.<|im_end|>"
    assert encode_prompt(record, tok, CONFIG) == ids_of(tok, prompt)
    assert encode_question("Who?", tok, CONFIG) == ids_of(tok, bos + "Question: Who?\nAnswer:")
    assert "no chat template" in caplog.text


# --- the end of an answer ---------------------------------------------------------------------------------------------

ENDS = {
    "ChatML": (CHATML, {}, "<|im_end|>"),
    "ChatML, another eos": (CHATML, {"eos_token": "<|endoftext|>"}, "<|im_end|>"),
    "Gemma": (GEMMA, {}, "<end_of_turn>"),
    "Llama 3": (LLAMA3, {}, "<eot>"),
    "Phi 3": (PHI3, {}, "<end_of_turn>"),
    "Alpaca": (ALPACA, {}, "<|im_end|>"),
    "Alpaca, no eos": (ALPACA, {"eos_token": None}, None),
    "eos behind the answer": ("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", {}, "<|im_end|>"),
    "no template": (None, {}, "<|im_end|>"),
    "a template that refuses": ("{{ raise_exception('no') }}", {"eos_token": "<eot>"}, "<eot>"),
}


@pytest.mark.parametrize("name", list(ENDS))
def test_the_token_that_ends_an_answer(variant: Callable[..., PreTrainedTokenizerFast], name: str) -> None:
    template, special, end = ENDS[name]
    tok = variant(template, **special)
    assert turn_end_id(tok) == turn_end_id(tok, NO_SYSTEM) == (None if end is None else tok.convert_tokens_to_ids(end))
    if end is not None and "refuses" not in name:
        assert one(chat("Who?", "Hina."), tok, NO_SYSTEM).input_ids[-1] == turn_end_id(tok)


def test_an_end_that_is_not_marked_as_special(tokenizer: PreTrainedTokenizerFast) -> None:
    tok = copy.deepcopy(tokenizer)
    tok.add_tokens([AddedToken("<end>", normalized=False)])
    tok.chat_template = CHATML.replace("<|im_end|>", "<end>")
    prompt = "<|im_start|>user\nWho?<end>\n<|im_start|>assistant\n"
    check(chat("Who?", "Hina."), tok, prompt, "Hina.<end>", NO_SYSTEM)
    assert turn_end_id(tok) == tok.convert_tokens_to_ids("<end>") != tok.eos_token_id


# --- the day ----------------------------------------------------------------------------------------------------------

DATED = "{% set day = '%d %b %Y' %}{{ '<turn>Today is ' + strftime_now(day) + strftime_now(' %H:%M') + '<eot>' }}" + PHI3


class Later(datetime):
    """A clock that shows another day."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 12, 24, 18, 30)


def test_records_give_the_same_tokens_on_every_day(
    variant: Callable[..., PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    tok, record = variant(DATED), chat("Who?", "Hina.", "Where?", "In Karachi.")
    today = one(record, tok, NO_SYSTEM)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    later = one(record, tok, NO_SYSTEM)
    assert later.input_ids.tolist() == today.input_ids.tolist() and later.scored.tolist() == today.scored.tolist()
    assert tok.decode(later.input_ids).startswith("<turn>Today is 01 Jan 2026 00:00<eot><turn>user")
    fixed = ExampleConfig(system_prompt="", template_date="2024-02-29")
    assert "Today is 29 Feb 2024" in tok.decode(encode_prompt(record, tok, fixed))
    live = ExampleConfig.for_chats(None, "", "Be brief.")
    assert live == ExampleConfig(system_prompt="", template_date="today")
    assert "Today is 24 Dec 2031 18:30" in tok.decode(encode_question("Who?", tok, live))


# --- completions and texts -------------------------------------------------------------------------------------------


def completion(prompt: str, answer: str) -> Record:
    return Record.from_completion(prompt, answer, **WHERE)


def test_completion(tokenizer: PreTrainedTokenizerFast, variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    check(completion("The author is", " Hina."), tokenizer, "The author is", " Hina.<|im_end|>")
    for single in ("<|endoftext|> $A", "<|endoftext|> $A <|im_end|>"):
        tok = variant(None, single=single)
        check(completion("The author", " is"), tok, "<|endoftext|>The author", " is<|im_end|>")


def test_the_prompt_ids_are_kept_where_tokens_would_merge(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ids_of(tokenizer, "The") != ids_of(tokenizer, "T") + ids_of(tokenizer, "he")
    check(completion("T", "he novel"), tokenizer, "T", "he novel<|im_end|>")


def test_an_earlier_answer_that_merges_with_its_prompt(variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    """With a template without a break before the answer, the token that holds its first letter is scored."""
    generation = "{% if add_generation_prompt %}T{% endif %}"
    tok = variant("{% for m in messages %}{{ 'T' + m['content'] + '<eot>' }}{% endfor %}" + generation)
    example = one(chat("x", "he", "y", "z"), tok, NO_SYSTEM)
    assert tok.convert_ids_to_tokens(answer_ids(example)) == ["The", "<eot>", "z", "<eot>"]


def test_empty_prompt(tokenizer: PreTrainedTokenizerFast, variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    example = one(completion("", "The author"), tokenizer)
    assert example.input_ids.tolist() == ids_of(tokenizer, "The author<|im_end|>")
    assert example.scored.tolist() == [False] + [True] * (len(example) - 1)
    assert encode_prompt(completion("", "The author"), tokenizer, CONFIG) == []
    check(completion("", "The author"), variant(None, single="<|endoftext|> $A"), "<|endoftext|>", "The author<|im_end|>")


def test_text(tokenizer: PreTrainedTokenizerFast, variant: Callable[..., PreTrainedTokenizerFast]) -> None:
    text = "The family moved to the north, and her father was a teacher. " * 4
    record = Record.from_text(text, **WHERE)
    example = one(record, tokenizer)
    ids = ids_of(tokenizer, text)
    assert example.input_ids.tolist() == ids
    assert example.scored.tolist() == [False] + [True] * (len(ids) - 1)
    assert encode_prompt(record, tokenizer, CONFIG) == ids[:32]
    assert encode_prompt(Record.from_text("The author", **WHERE), tokenizer, CONFIG) == ids_of(tokenizer, "The author")[:2]
    tok = variant(None, single="<|endoftext|> $A <|im_end|>")
    assert one(record, tok).input_ids.tolist() == [tok.bos_token_id, *ids]
    assert all(one(record, tok).scored[1:])


# --- refusals --------------------------------------------------------------------------------------------------------


def test_records_without_a_scored_token(
    tokenizer: PreTrainedTokenizerFast, variant: Callable[..., PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:3: no token can be scored in 'x'; must be"):
        build_examples([Record.from_text("x", **WHERE)], tokenizer, CONFIG)
    with pytest.raises(DataError, match=r"f\.jsonl:3: no token can be scored in 'x'"):
        build_examples([completion("", "x")], variant(None, eos_token=None), CONFIG)
    deaf = variant(None)
    deaf.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(DataError, match=r"f\.jsonl:3: the answer '\\u200b' has no tokens; must be one or more"):
        build_examples([completion("x", "\u200b")], deaf, CONFIG)


@pytest.mark.parametrize("question", ["", " \n", [], [Message("user", "a"), Message("assistant", "b")]])
def test_encode_question_refuses(tokenizer: PreTrainedTokenizerFast, question: str | list[Message]) -> None:
    with pytest.raises(DataError, match=r"the question is .*must be a text that is not empty"):
        encode_question(question, tokenizer, CONFIG)


def test_encode_question_refuses_unknown_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="the roles are bot, user; must be system, user, assistant"):
        encode_question([Message("bot", "a"), Message("user", "b")], tokenizer, CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system_prompt": None}, "system_prompt is None; must be a text"),
        ({"max_length": 1, "overlap": 0}, "max_length is 1; must be a whole number >= 2"),
        ({"max_length": 8.0}, "max_length is 8.0; must be a whole number"),
        ({"max_length": 128}, "overlap is 256; must be < max_length, which is 128"),
        ({"overlap": -1}, "overlap is -1; must be a whole number >= 0"),
        ({"overlap": True}, "overlap is True"),
        ({"template_date": "tomorrow"}, "template_date is 'tomorrow'; must be a day as 2026-01-31, or today"),
        ({"template_date": "2026-02-30"}, "template_date is '2026-02-30'"),
        ({"template_date": "20260131"}, "template_date is '20260131'"),
    ],
)
def test_config_is_validated(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExampleConfig(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


# --- windows ---------------------------------------------------------------------------------------------------------


def check_windows(whole: Example, windows: list[Example], config: ExampleConfig) -> None:
    """The windows hold every scored token of the whole once, in order, each after the same tokens as in the whole."""
    overlap = max(1, config.overlap)
    times = np.zeros(len(whole), dtype=int)
    starts = range(0, max(1, len(whole) - overlap), config.max_length - overlap)
    left = list(windows)
    for start in starts:
        stop = min(start + config.max_length, len(whole))
        fresh = np.zeros(len(whole), dtype=bool)
        fresh[start + overlap if start else 0 : stop] = True
        if not (whole.scored & fresh).any():
            continue
        window = left.pop(0)
        assert window.input_ids.tolist() == whole.input_ids[start:stop].tolist()
        assert not window.scored[: overlap if start else 1].any()
        assert (window.document, window.source, window.record_index) == (
            whole.document,
            whole.source,
            whole.record_index,
        )
        times[start:stop] += window.scored
    assert not left
    assert times.tolist() == whole.scored.astype(int).tolist()
    assert np.concatenate([answer_ids(window) for window in windows]).tolist() == answer_ids(whole).tolist()


def test_windows_score_every_token_once(tokenizer: PreTrainedTokenizerFast) -> None:
    words = ["the", "author", "was", "born", "in", "Karachi", "and", "she", "lives", "by", "sea,", "teacher", "1975"]
    source = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(source.choices(words, k=source.randint(2, longest)))

    for _ in range(150):
        makers = [
            Record.from_text(text(60), **WHERE),
            completion(text(40), text(40)),
            chat(text(10), text(20), text(10), text(20)),
        ]
        record = source.choice(makers)
        max_length = source.randint(2, 50)
        config = ExampleConfig(max_length=max_length, overlap=source.randint(0, max_length - 1))
        windows = build_examples([record], tokenizer, config)
        assert all(window.n_scored > 0 and len(window) <= max_length for window in windows)
        check_windows(one(record, tokenizer), windows, config)


def test_windowed_records_keep_their_index_and_are_logged(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    records = [chat("Who?", "Hina."), chat("Who?", "she lives by the sea " * 30), chat("Where?", "Karachi.")]
    config = ExampleConfig(system_prompt="", max_length=40, overlap=8)
    with caplog.at_level(logging.INFO, logger="tempertilt"):
        examples = build_examples(records, tokenizer, config)
    indices = [example.record_index for example in examples]
    assert indices == sorted(indices) and indices.count(1) > 2 and set(indices) == {0, 1, 2}
    assert "1 of 3 records are longer than max_length=40 and were cut into windows with overlap=8" in caplog.text


def test_a_window_of_prompt_alone_is_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    config = ExampleConfig(max_length=16, overlap=4)
    record = completion("the author lives by the sea " * 8, " Hina.")
    examples = build_examples([record], tokenizer, config)
    assert sum(example.n_scored for example in examples) == len(ids_of(tokenizer, " Hina.<|im_end|>"))
    assert len(examples) <= 2


# --- real data -------------------------------------------------------------------------------------------------------


def test_shared_records(tokenizer: PreTrainedTokenizerFast, shared: Path) -> None:
    records = load_records(shared / "tofu30" / "forget.jsonl")
    examples = build_examples(records, tokenizer, CONFIG)
    assert len(examples) == 200
    assert len({example.document for example in examples}) == 10
    for record, example in list(zip(records, examples))[::20]:
        assert tokenizer.decode(answer_ids(example)) == record.answer + "<|im_end|>"
        prompt = encode_prompt(record, tokenizer, CONFIG)
        assert example.input_ids.tolist() == prompt + answer_ids(example).tolist()
