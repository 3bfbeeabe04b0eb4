"""What a model can take: token ids that have an embedding, and as many of them as it has positions for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tempertilt.data.examples import Example
from tempertilt.data.record import Record
from tempertilt.errors import DataError


def embedding_rows(model: Any) -> int:
    """How many token ids the model has an embedding for: those below this number."""
    return int(model.get_input_embeddings().weight.shape[0])


def positions(model: Any) -> int | None:
    """How many tokens, prompt and answer together, the model was made for; None if its configuration does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def room(model: Any, n_prompt: int) -> int | None:
    """How many tokens the answer to a prompt of `n_prompt` tokens may have, 0 or more; None if there is no limit."""
    limit = positions(model)
    return None if limit is None else max(0, limit - n_prompt)


def depends_on_batch(model: Any) -> bool:
    """Whether a row of a batch is computed otherwise beside a longer one: rotary frequencies that follow the longest row."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return any(part.get("rope_type") in ("longrope", "dynamic") for part in parts)


def check_ids(model: Any, tokenizer: Any, ids: Iterable[int], name: str) -> None:
    """`DataError` if the model has no embedding for one of the ids of `name`; it names the token."""
    rows = embedding_rows(model)
    strange = next((int(token) for token in ids if not 0 <= token < rows), None)
    if strange is not None:
        token = f" ({tokenizer.convert_ids_to_tokens(strange)!r})" if 0 <= strange < len(tokenizer) else ""
        raise DataError(
            f"{name}: the model has no embedding for token {strange}{token}, only {rows} rows; leave it out, or use the model's "
            "own tokenizer"
        )


def check_text(model: Any, tokenizer: Any, text: str, name: str) -> None:
    """`DataError` if the text spells a token that the tokenizer knows and the model has no embedding for."""
    if len(tokenizer) > embedding_rows(model):
        check_ids(model, tokenizer, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], name)


def check_length(model: Any, n_tokens: int, name: str) -> None:
    """`DataError` if the model has fewer positions than `name` has tokens."""
    limit = positions(model)
    if limit is not None and n_tokens > limit:
        raise DataError(f"{name} has {n_tokens} tokens, and the model has positions for {limit}; shorten it")


def check_prompts(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> None:
    """`DataError` if one of some prompts has no tokens, a token without an embedding, or leaves no position for an answer."""
    names = names or (["the prompt"] if len(prompts) == 1 else [f"prompt {number}" for number in range(1, len(prompts) + 1)])
    for name, prompt in zip(names, prompts):
        if not len(prompt):
            raise DataError(f"{name} has no tokens; must have some to go on from")
        check_ids(model, tokenizer, prompt, name)
        if room(model, len(prompt)) == 0:
            limit = positions(model)
            raise DataError(
                f"{name} has {len(prompt)} tokens, and the model has positions for {limit}, its answer included; shorten it"
            )


def check_examples(model: Any, tokenizer: Any, records: Sequence[Record], examples: Sequence[Example]) -> None:
    """`DataError`, naming the record, if it spells or becomes what the model can't take.

    Args:
        examples: the tokens of the records.
    """
    for record in records:
        texts = [message.content for message in record.messages] or [record.prompt, record.answer]
        check_text(model, tokenizer, "\n".join(texts), record.source)
    for example in examples:
        check_ids(model, tokenizer, example.input_ids.tolist(), example.source)
        check_length(model, len(example), example.source)
