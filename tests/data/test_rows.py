"""From a row to a record: every shape, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.records import CHAT, QA, message_of, write_jsonl
from tempertilt.data.records import Message, Record, load_records
from tempertilt.errors import ConfigError


def test_every_shape_of_row(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        QA,
        {"prompt": "The author ", "completion": "is Hina."},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
        {"text": "A long text."},
    )
    qa, completion, conversation, chat, text = load_records(path)
    turns = (Message("user", "Who?"), Message("assistant", "Hina Ameen."))
    assert (qa.kind, qa.messages, qa.prompt, qa.answer) == ("chat", turns, "", "Hina Ameen.")
    assert (qa.document, qa.source) == ("a.jsonl:1", f"{path}:1")
    assert (completion.kind, completion.messages) == ("completion", ())
    assert (completion.prompt, completion.answer) == ("The author ", "is Hina.")
    assert (conversation.kind, conversation.messages) == ("chat", turns)
    assert chat.messages == (Message("system", "Be brief."), *turns)
    assert (text.kind, text.answer, text.prompt, text.source) == ("text", "A long text.", "", f"{path}:5")
    assert [r.question for r in (qa, completion, chat, text)] == ["Who?", "The author ", "Who?", "A long text."]
    assert Record.from_text("x" * 200, document="d", source="s").question == "x" * 79 + "…"


def test_documents_extra_fields_and_nulls(tmp_path: Path) -> None:
    rows = [
        QA | {"document": "author-1", "score": [1]},
        QA | {"document": 7},
        QA | {"document": None, "text": None},
        QA | {"document": " ", "prompt": "an extra column"},
    ]
    records = load_records(write_jsonl(tmp_path / "a.jsonl", *rows))
    assert [r.document for r in records] == ["author-1", "7", "a.jsonl:3", "a.jsonl:4"]
    assert {r.kind for r in records} == {"chat"}


def test_an_empty_prompt_is_allowed(tmp_path: Path) -> None:
    assert load_records(write_jsonl(tmp_path / "a.jsonl", {"prompt": "", "completion": "x"}))[0].prompt == ""


SHORT_CHAT = [CHAT[0]]
BAD_ROWS = [
    ({"question": "Who?"}, "field 'answer' is missing", "question + answer"),
    ({"question": "Who?", "answer": None}, "field 'answer' has no value", "question + answer"),
    ({"question": None, "answer": "x"}, "field 'question' has no value", "question + answer"),
    ({"prompt": "a", "rejected": "b"}, "field 'completion' is missing", "prompt + completion"),
    (QA | {"answer": ""}, "field 'answer' has no text: ''", "a text that is not empty"),
    (QA | {"answer": " \n"}, "field 'answer' has no text: ' \\n'", "a text that is not empty"),
    (QA | {"question": 12}, "field 'question' is 12 (int)", "a text that is not empty"),
    (QA | {"answer": ["x"]}, "field 'answer' is ['x'] (list)", "a text that is not empty"),
    ({"text": "a\ud800b"}, "field 'text' has half of a surrogate pair, '\\ud800', at character 1", "Unicode text"),
    ({"prompt": 1, "completion": "b"}, "field 'prompt' is 1 (int)", "a text"),
    ({"prompt": "a", "completion": " "}, "field 'completion' has no text", "a text that is not empty"),
    ({"prompt": "a", "completion": CHAT}, "are str and list", "two texts or two lists of messages"),
    ({"prompt": CHAT[:1], "completion": CHAT[:1]}, "the last message is from 'user'", "'assistant'"),
    (QA | {"text": "x"}, "the row holds question + answer and text", "name the columns to read with --columns"),
    (
        {},
        "the row holds none",
        "question + answer, prompt + completion, prompt + chosen, messages, conversations, instruction + output or text",
    ),
    ({"query": "a", "response": "b"}, "the row holds query, response", "prompt + completion"),
    ("a text", "the row is 'a text' (str)", "an object with named fields"),
    ([QA], "(list)", "an object with named fields"),
    (None, "the row is null", "an object with named fields"),
    (QA | {"document": 1.5}, "field 'document' is 1.5 (float)", "a text or a whole number"),
    (QA | {"document": True}, "field 'document' is True (bool)", "a text or a whole number"),
    ({"messages": "hi"}, "field 'messages' is 'hi' (str)", "a list of objects with role and content"),
    ({"messages": []}, "field 'messages' is [] (list)", "a list of objects with role and content"),
    ({"messages": [CHAT[0], "x"]}, "message 2 is 'x' (str)", "role and content"),
    ({"messages": SHORT_CHAT}, "field 'messages': the last message is from 'user'", "'assistant'"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "message 1: role is 'bot' (str)", "one of system, user"),
    ({"messages": [{"content": "x"}]}, "message 1: role is null", "system, user, human, assistant"),
    ({"messages": [{"role": "user", "value": "x"}]}, "message 1 has the keys role, value", "role and content, or with from"),
    ({"messages": [{}]}, "message 1 has the keys none", "role and content"),
    ({"messages": [CHAT[0], {"role": "assistant"}]}, "message 2: content is null", "a text that is not empty"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "message 2: content has no text", "a text"),
    ({"messages": CHAT[1:]}, "the roles are assistant", "at least one message from 'user'"),
    ({"messages": [*CHAT, {"role": "system", "content": "x"}, *CHAT]}, "message 3 is from 'system'", "the first one"),
]


@pytest.mark.parametrize(("row", "seen", "valid"), BAD_ROWS)
def test_bad_row_names_file_line_field_value_and_what_is_valid(tmp_path: Path, row: object, seen: str, valid: str) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", {"text": "fine"}, row)
    message = message_of(path)
    line = next(line for line in message.splitlines() if f"{path}:2:" in line)
    assert seen in line
    assert valid in line.split("must be ")[1]
    assert "1 of 2 rows" in message


def test_values_are_shortened(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ["x" * 500]})
    assert "xxx… (list)" in message_of(path)
    assert len(message_of(path)) < 600


# --- rows as other tools write them ----------------------------------------------------------------------------------

TURNS = (Message("user", "Who?"), Message("assistant", "Hina Ameen."))
SYSTEM = Message("system", "Be brief.")
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Hina Ameen."}]
PREFERRED = {"prompt": "Who?", "chosen": "Hina.", "rejected": "Nobody."}

CHATS = {
    "ShareGPT": ({"conversations": SHAREGPT}, TURNS),
    "ShareGPT with a system turn": ({"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, (SYSTEM, *TURNS)),
    "ShareGPT with a system field": ({"conversations": SHAREGPT, "system": "Be brief.", "tools": ""}, (SYSTEM, *TURNS)),
    "conversations with roles": ({"conversations": CHAT}, TURNS),
    "messages from and value": ({"messages": SHAREGPT}, TURNS),
    "keys without a value": ({"messages": [turn | {"from": None, "name": None} for turn in CHAT]}, TURNS),
    "Alpaca": ({"instruction": "Who?", "input": "", "output": "Hina Ameen."}, TURNS),
    "Alpaca with input": (
        {"instruction": "Translate.", "input": "Who?", "output": "Wer?"},
        (Message("user", "Translate.\nWho?"), Message("assistant", "Wer?")),
    ),
    "Alpaca with input alone": ({"instruction": "", "input": "Who?", "output": "Hina Ameen."}, TURNS),
    "Alpaca with earlier turns": (
        {"instruction": "Who?", "output": "Hina Ameen.", "system": "Be brief.", "history": [["Hello.", "Good day."]]},
        (SYSTEM, Message("user", "Hello."), Message("assistant", "Good day."), *TURNS),
    ),
    "preference, chats": ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}, TURNS),
    "preference, whole chats": ({"prompt": CHAT[:1], "chosen": CHAT, "rejected": CHAT}, TURNS),
    "preference, prompt as a text": ({"prompt": "Who?", "chosen": CHAT, "score_chosen": 4.5}, TURNS),
    "preference, prompt in the chats alone": ({"chosen": CHAT, "rejected": CHAT}, TURNS),
    "preference, answer to a text": ({"prompt": "Who?", "chosen": CHAT[1:]}, TURNS),
    "question with a system field": (QA | {"system": "Be brief."}, (SYSTEM, *TURNS)),
    "messages with a developer and parts of text": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "W"}, {"type": "text", "text": "ho?"}]},
                CHAT[1],
            ]
        },
        (SYSTEM, *TURNS),
    ),
    "Alpaca beside a text of both": (
        {
            "instruction": "Who?",
            "input": "",
            "output": "Hina Ameen.",
            "text": "### Who?\n### Hina Ameen.",
        },
        TURNS,
    ),
    "preference with a question": ({"system": "", "question": "Who?", "chosen": "Hina Ameen.", "rejected": "Nobody."}, TURNS),
    "names in capitals": ({"Question": "Who?", " ANSWER": "Hina Ameen.", "ID": 3}, TURNS),
}


@pytest.mark.parametrize("name", list(CHATS))
def test_chats_of_other_tools(tmp_path: Path, name: str) -> None:
    row, turns = CHATS[name]
    [record] = load_records(write_jsonl(tmp_path / "a.jsonl", row))
    assert (record.kind, record.messages, record.answer) == ("chat", turns, turns[-1].content)


def test_a_preference_of_plain_texts_is_a_completion(tmp_path: Path) -> None:
    [record] = load_records(write_jsonl(tmp_path / "a.jsonl", PREFERRED))
    assert (record.kind, record.prompt, record.answer) == ("completion", "Who?", "Hina.")


REFUSED = [
    ({"instruction": "a", "output": "b"} | QA, "question + answer and instruction + output", "name the columns"),
    ({"instruction": "a", "output": "b", "text": "a and c"}, "instruction + output and text", "name the columns"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 1: content is [", "a text"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "a part of content is 5 (int)", "a text"),
    ({"instruction": " ", "input": "", "output": "b"}, "field 'instruction' has no text", "a text"),
    ({"instruction": 0, "output": "b"}, "field 'instruction' is 0 (int)", "a text"),
    ({"instruction": "a", "input": ["x"], "output": "b"}, "field 'input' is ['x'] (list)", "a text"),
    ({"instruction": "a", "output": "b", "history": "x"}, "field 'history' is 'x' (str)", "a list of pairs"),
    ({"instruction": "a", "output": "b", "history": [["x"]]}, "field 'history', pair 1 is ['x'] (list)", "and its answer"),
    ({"instruction": "a"}, "field 'output' is missing", "instruction + output"),
    (PREFERRED | {"completion": "c"}, "prompt + completion and prompt + chosen", "name the columns"),
    (PREFERRED | {"messages": CHAT}, "prompt + chosen and messages", "name the columns"),
    ({"chosen": "b", "rejected": "c"}, "field 'prompt' is missing", "prompt + chosen"),
    ({"prompt": CHAT[:1], "chosen": "b"}, "'prompt' and 'chosen' are list and str", "two texts or two lists of messages"),
    ({"prompt": "Where?", "chosen": CHAT}, "'chosen' begins with a message from 'user'", "with the prompt, or with the answer"),
    (PREFERRED | {"system": "Be brief."}, "field 'system' has no place", "lists of messages"),
    (QA | {"system": 3}, "field 'system' is 3 (int)", "a text"),
    ({"messages": [{"role": "system", "content": "x"}, *CHAT], "system": "y"}, "are two system prompts", "one"),
    ({"conversations": [*SHAREGPT, SHAREGPT[0]]}, "'conversations': the last message is from 'user'", "'assistant'"),
    ({"conversations": [{"from": "tool", "value": "x"}]}, "message 1: from is 'tool' (str)", "one of system, user, human"),
    ({"messages": [CHAT[0] | SHAREGPT[0]]}, "message 1 has the keys role, content, from, value", "role and content, or"),
    ({"answer": "a", "Answer": "b", "question": "c"}, "'answer' and 'Answer' are the same field", "given once"),
    ({"document": "a", "input": "b"}, "the row holds input, document and nothing to learn", "question + answer"),
]


@pytest.mark.parametrize(("row", "fault", "valid"), REFUSED)
def test_rows_that_could_be_read_in_two_ways_or_in_none(tmp_path: Path, row: dict[str, object], fault: str, valid: str) -> None:
    line = message_of(write_jsonl(tmp_path / "a.jsonl", row)).splitlines()[1]
    assert "a.jsonl:1: " in line and fault in line and valid in line.split("must be", 1)[-1]


# --- columns of other names ------------------------------------------------------------------------------------------


def test_columns_of_other_names(tmp_path: Path) -> None:
    columns = {"question": "Frage", "answer": "Antwort", "document": "Akte"}
    path = write_jsonl(tmp_path / "a.jsonl", {"FRAGE": "Who?", "antwort ": "Hina Ameen.", "Akte": 7, "text": None}, QA)
    german, own = load_records(path, columns=columns)
    assert german.messages == own.messages == TURNS
    assert (german.document, own.document) == ("7", "a.jsonl:2")


def test_named_columns_decide_between_two_shapes(tmp_path: Path) -> None:
    row = {"instruction": "Who?", "input": "", "output": "Hina Ameen.", "text": "### Who? ### Hina."}
    path = write_jsonl(tmp_path / "a.jsonl", row)
    assert "instruction + output and text" in message_of(path)
    assert load_records(path, columns={"instruction": "instruction", "output": "output"})[0].messages == TURNS
    assert load_records(path, columns={"text": "text"})[0].kind == "text"


def test_a_column_is_one_field(tmp_path: Path) -> None:
    """What is named as the answer is not the preferred completion at the same time."""
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "Who?", "chosen": "Hina Ameen.", "rejected": "x", "system": "Be brief."})
    [record] = load_records(path, columns={"question": "prompt", "answer": "chosen"})
    assert record.messages == (SYSTEM, *TURNS)


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", QA)
    assert "columns names the field 'frage'; must be one of question" in message_of(path, ConfigError, columns={"frage": "x"})
