"""From the messages of a chat to its text: the tokenizer's chat template, or "Question: …" and "Answer: …" without one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tempertilt.data.record import Message
from tempertilt.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = "today"


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation: bool, date: str) -> str:
    """The text of a chat.

    Args:
        generation: append what comes before an answer.
        date: the day that it is for a template which asks for it, as YYYY-MM-DD, or "today".

    Raises:
        DataError: the chat template refuses the messages.
    """
    if not has_template(tokenizer):
        return _render_plain(messages, generation)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return _render(tokenizer, turns, generation, date)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message.role for message in messages) or "no messages"
        raise DataError(f"the chat template refuses the messages ({roles}): {error}") from error


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], generation: bool, date: str) -> str:
    template = tokenizer.get_chat_template()
    if "strftime_now" not in template or date == TODAY:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))
    # `apply_chat_template` passes no function on to the template, so the clock can't be set through it
    from transformers.utils.chat_template_utils import _compile_jinja_template

    variables: dict[str, Any] = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": generation}
    clock = datetime.fromisoformat(date).strftime
    return str(_compile_jinja_template(template).render(**{**tokenizer.special_tokens_map, **variables, "strftime_now": clock}))


def _render_plain(messages: Sequence[Message], generation: bool) -> str:
    """The format for base models: "Question: …" and "Answer: …", blocks separated by a blank line."""
    formats = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n\n"}
    text = "".join(formats[message.role].format(message.content) for message in messages)
    return text + "Answer:" if generation else text
