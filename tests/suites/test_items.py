"""The tokens of a suite's items."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.suites.items import Item, ItemKind, MeasureConfig, Plan, cut_answers, questions_of


@pytest.mark.parametrize("kind", ["question", "completion"])
def test_an_item_without_an_answer_is_asked_as_its_kind(tokenizer: PreTrainedTokenizerFast, kind: ItemKind) -> None:
    text = "The author was born in"
    [question] = questions_of([Item(text, "", None, (), "here:1", kind=kind)], tokenizer, ExampleConfig())
    plain, chat = tokenizer(text).input_ids, encode_question(text, tokenizer, ExampleConfig())
    assert list(question.prompt) == (plain if kind == "completion" else chat)


def test_the_token_that_begins_a_text_counts_where_answers_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    begun = copy.deepcopy(tokenizer)
    begun._tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    text = "The author's name is Hina Ameen."
    plan, config = Plan((), (), (), cut=("verbatim",)), MeasureConfig(max_new_tokens=4)
    for chosen, tokens in ((tokenizer, 4), (begun, 3)):
        [item] = cut_answers("verbatim", [Item("", text, None, (), "here:1")], chosen, plan, config)
        assert item.answer == tokenizer.decode(tokenizer(text).input_ids[:tokens])
    [item] = cut_answers("other", [Item("", text, None, (), "here:1")], tokenizer, plan, config)
    assert item.answer == text
