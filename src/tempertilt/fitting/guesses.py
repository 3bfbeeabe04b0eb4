"""Guesses: what an unlearned model says in place of the records.

A head that is fitted at the records' own answers alone is not fitted where its guesses lead, and what it says there breaks. So
it answers the forget prompts, and is fitted anew with the contexts of these answers beside the records' (as in Ross, Gordon,
Bagnell 2011, DAgger: a policy is trained on the states that it comes to by itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tempertilt.data.batches import spread
from tempertilt.data.examples import Example, ExampleConfig, encode_prompt
from tempertilt.data.record import Record
from tempertilt.fitting.before_after import greedy_token_ids
from tempertilt.models.limits import room

NEW_TOKENS = 64  # of a guess, at most


def guess_examples(model: Any, tokenizer: Any, records: Sequence[Record], config: ExampleConfig, count: int) -> list[Example]:
    """Greedy answers of a model to the prompts of records, as examples whose answers are scored.

    Args:
        model: the unlearned one.
        count: prompts that are answered, from all over the records, at most.

    Returns:
        One example for each prompt that leaves room for an answer and has one, the shortest prompt first.

    Raises:
        DataError: the chat template refuses a record.
    """
    numbers = spread(range(len(records)), count)
    prompts = {number: encode_prompt(records[number], tokenizer, config) for number in numbers}
    numbers = sorted((number for number in numbers if room(model, len(prompts[number])) != 0), key=lambda i: len(prompts[i]))
    answers = greedy_token_ids(model, tokenizer, [prompts[number] for number in numbers], max_new_tokens=NEW_TOKENS)
    found = []
    for number, answer in zip(numbers, answers):
        if answer:
            ids = np.array([*prompts[number], *answer], np.int32)
            scored = np.arange(len(ids)) >= len(prompts[number])
            found.append(Example(ids, scored, records[number].document, "guess", number))
    return found
