"""From one row to one record: question and answer, completions, chats in several forms, plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tempertilt.data.fields import SHAPES, VALID_ROWS, Columns, match_fields
from tempertilt.data.lines import half_pair
from tempertilt.data.record import Message, Record, shorten, shown
from tempertilt.data.sources import Row

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "developer": "system",
}
"""Our name for each role of a message, as the OpenAI format and ShareGPT write it."""

MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message: those of the OpenAI format, and ShareGPT's."""

MESSAGES = "must be a list of objects with role and content, or with from and value"

Fields = Mapping[str, Any]
Where = dict[str, str]


class BadRowError(Exception):
    """Why one row is no record; collected and reported with the others."""


def parse_row(row: Row, columns: Columns) -> Record:
    """The record in a row.

    Raises:
        BadRowError: it is none, or could be more than one.
    """
    if row.fault:
        raise BadRowError(row.fault)
    if not isinstance(row.value, Mapping):
        raise BadRowError(f"the row is {shown(row.value)}; must be an object with named fields")
    fields = _named_fields(row.value, columns)
    where = {"document": _document(fields.get("document"), row.document), "source": row.source}
    return PARSERS[_shape(fields, columns)](fields, where)


def _named_fields(row: Mapping[str, object], columns: Columns) -> dict[str, object]:
    """The values of the fields that are ours; null where a column has no value."""
    fields: dict[str, object] = {}
    for field, names in match_fields(map(str, row), columns).items():
        given = [name for name in names if row[name] is not None]
        if len(given) > 1:
            raise BadRowError(f"{' and '.join(map(repr, given))} are the same field; must be given once")
        fields[field] = row[given[0]] if given else None
    if fields.get("question") is not None and fields.get("answer") is None and isinstance(fields.get("chosen"), str):
        fields["answer"] = fields.pop("chosen")  # a preference whose prompt is called question
    if not fields:
        listed = ", ".join(map(str, row)) or "none"
        raise BadRowError(f"no field is known: the row holds {shorten(listed)}; must be {VALID_ROWS}")
    return fields


def _shape(fields: Fields, columns: Columns) -> tuple[str, ...]:
    """The one shape whose fields the row holds. Null counts as absent, as in tables of mixed rows."""
    complete = [shape for shape in SHAPES if _is_complete(shape, fields)]
    if complete == [("instruction", "output"), ("text",)] and _is_repeated(complete[0], fields):
        complete = complete[:1]
    if len(complete) > 1:  # the user has named the columns of one of them
        complete = [shape for shape in complete if all(field in columns for field in shape)] or complete
    if len(complete) == 1:
        return complete[0]
    if complete:
        both = " and ".join(" + ".join(shape) for shape in complete)
        raise BadRowError(
            f"the row holds {both}; must be one of {VALID_ROWS}; name the columns to read with --columns (columns=)"
        )
    nearest = max(SHAPES, key=lambda shape: sum((field in fields) + (fields.get(field) is not None) for field in shape))
    if not fields.keys() & set(nearest):
        raise BadRowError(f"the row holds {', '.join(fields)} and nothing to learn; must be {VALID_ROWS}")
    missing = next(field for field in nearest if fields.get(field) is None)
    state = "has no value" if missing in fields else "is missing"
    raise BadRowError(f"field {missing!r} {state}; must be {' + '.join(nearest)}, each with a value")


def _is_complete(shape: tuple[str, ...], fields: Fields) -> bool:
    whole_chat = shape == ("prompt", "chosen") and isinstance(fields.get("chosen"), list)  # may hold the prompt, too
    return whole_chat or all(fields.get(field) is not None for field in shape)


def _is_repeated(shape: tuple[str, ...], fields: Fields) -> bool:
    """Whether `text` holds what the fields of a shape hold, as Alpaca's own file has prompt and answer in one beside them."""
    values = [fields[name] for name in shape]
    return isinstance(fields["text"], str) and all(isinstance(value, str) and value in fields["text"] for value in values)


def _document(value: object, default: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRowError(f"field 'document' is {shown(value)}; must be a text or a whole number, or absent")
    return _text(str(value), "field 'document'")


def _text(value: object, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {shown(value)}; must be a text that is not empty")
    if fault := half_pair(value):
        raise BadRowError(f"{name} has {fault}; must be Unicode text")
    if not value.strip() and not may_be_empty:
        raise BadRowError(f"{name} has no text: {shorten(repr(value))}; must be a text that is not empty")
    return value


# --- shapes ----------------------------------------------------------------------------------------------------------


def _question(fields: Fields, where: Where) -> Record:
    turns = [Message("user", _text(fields["question"], "field 'question'"))]
    return _chat(fields, [*turns, Message("assistant", _text(fields["answer"], "field 'answer'"))], "the row", where)


def _instruction(fields: Fields, where: Where) -> Record:
    """Alpaca's: the input, if any, stands on the line below the instruction; earlier turns are in `history`."""
    parts = {name: fields.get(name) for name in ("instruction", "input")}
    texts = [_text(part, f"field {name!r}", may_be_empty=True) for name, part in parts.items() if part is not None]
    asked = "\n".join(text for text in texts if text.strip())
    turns = [
        *_history(fields.get("history")),
        Message("user", _text(asked, "field 'instruction'")),
        Message("assistant", _text(fields["output"], "field 'output'")),
    ]
    return _chat(fields, turns, "the row", where)


def _history(value: object) -> list[Message]:
    if value is not None and not isinstance(value, list):
        raise BadRowError(f"field 'history' is {shown(value)}; must be a list of pairs of instruction and answer")
    turns = []
    for number, pair in enumerate(value or [], start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRowError(f"field 'history', pair {number} is {shown(pair)}; must be an instruction and its answer")
        for role, text in zip(("user", "assistant"), pair):
            turns.append(Message(role, _text(text, f"field 'history', pair {number}")))
    return turns


def _completion(fields: Fields, where: Where) -> Record:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = [*_messages(prompt, "field 'prompt'"), *_messages(completion, "field 'completion'")]
        return _chat(fields, turns, "fields 'prompt' + 'completion'", where)
    return _plain_completion(fields, "completion", where)


def _plain_completion(fields: Fields, name: str, where: Where) -> Record:
    prompt, completion = fields["prompt"], fields[name]
    if isinstance(prompt, list) or isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise BadRowError(f"fields 'prompt' and {name!r} are {kinds}; must be two texts or two lists of messages")
    if _system(fields):
        raise BadRowError(
            f"field 'system' has no place beside a prompt that no chat template is applied to; "
            f"give prompt and {name} as lists of messages, or leave it out"
        )
    prompt = _text(prompt, "field 'prompt'", may_be_empty=True)
    return Record.from_completion(prompt, _text(completion, f"field {name!r}"), **where)


def _preferred(fields: Fields, where: Where) -> Record:
    """A row for preference learning: the preferred answer; the rejected one is no record."""
    if not isinstance(fields["chosen"], list):
        return _plain_completion(fields, "chosen", where)
    turns = _messages(fields["chosen"], "field 'chosen'")
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        before = [Message("user", _text(prompt, "field 'prompt'"))]
        repeated = before[0] in turns
    else:
        before = [] if prompt is None else _messages(prompt, "field 'prompt'")
        repeated = turns[: len(before)] == before
    if not repeated and turns[0].role != "assistant":
        raise BadRowError(
            f"field 'chosen' begins with a message from {turns[0].role!r}; must begin with the prompt, or with the answer to it"
        )
    return _chat(fields, turns if repeated else [*before, *turns], "fields 'prompt' + 'chosen'", where)


def _turns(name: str) -> Callable[[Fields, Where], Record]:
    def parse(fields: Fields, where: Where) -> Record:
        return _chat(fields, _messages(fields[name], f"field {name!r}"), f"field {name!r}", where)

    return parse


def _plain_text(fields: Fields, where: Where) -> Record:
    return Record.from_text(_text(fields["text"], "field 'text'"), **where)


PARSERS: dict[tuple[str, ...], Callable[[Fields, Where], Record]] = {
    ("question", "answer"): _question,
    ("prompt", "completion"): _completion,
    ("prompt", "chosen"): _preferred,
    ("messages",): _turns("messages"),
    ("conversations",): _turns("conversations"),
    ("instruction", "output"): _instruction,
    ("text",): _plain_text,
}


# --- chats -----------------------------------------------------------------------------------------------------------


def _messages(value: object, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{name} is {shown(value)}; {MESSAGES}")
    return [_message(item, f"{name}, message {number}") for number, item in enumerate(value, start=1)]


def _message(item: object, label: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRowError(f"{label} is {shown(item)}; {MESSAGES}")
    keys = [keys for keys in MESSAGE_KEYS if any(item.get(key) is not None for key in keys)]
    if len(keys) != 1:
        raise BadRowError(f"{label} has the keys {', '.join(map(str, item)) or 'none'}; {MESSAGES}")
    role, content = (item.get(key) for key in keys[0])
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(_text(part.get("text"), f"{label}: a part of {keys[0][1]}", may_be_empty=True) for part in content)
    if not isinstance(role, str) or role not in ROLES:
        raise BadRowError(f"{label}: {keys[0][0]} is {shown(role)}; must be one of {', '.join(ROLES)}")
    return Message(ROLES[role], _text(content, f"{label}: {keys[0][1]}"))


def _chat(fields: Fields, messages: list[Message], name: str, where: Where) -> Record:
    """The record of a chat, behind the field `system` if the row has one."""
    system = _system(fields)
    if system and messages[0].role == "system" and messages[0] not in system:
        raise BadRowError(f"field 'system' and the first message of {name} are two system prompts; must be one")
    messages = messages if messages[:1] == system else [*system, *messages]
    return Record.from_messages(_checked(messages, name), **where)


def _system(fields: Fields) -> list[Message]:
    """The field `system` as a message, if there is one."""
    text = "" if fields.get("system") is None else _text(fields["system"], "field 'system'", may_be_empty=True)
    return [Message("system", text)] if text.strip() else []


def _checked(messages: list[Message], name: str) -> list[Message]:
    roles = [message.role for message in messages]
    if roles[-1] != "assistant":
        raise BadRowError(f"{name}: the last message is from {roles[-1]!r}; must be from 'assistant'")
    if "user" not in roles:
        raise BadRowError(f"{name}: the roles are {', '.join(roles)}; must be at least one message from 'user'")
    if "system" in roles[1:]:
        number = roles.index("system", 1) + 1
        raise BadRowError(f"{name}: message {number} is from 'system'; must be the first one if any")
    return messages
