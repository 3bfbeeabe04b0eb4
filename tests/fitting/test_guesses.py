"""Guesses: the unlearned model's own answers to the forget prompts."""

from __future__ import annotations

from support.tiny import make_llama, make_tokenizer
from tempertilt.data.examples import ExampleConfig, encode_prompt
from tempertilt.data.records import Record
from tempertilt.fitting.guesses import NEW_TOKENS, guess_examples
from tempertilt.models.generation import generate_ids


def test_guesses_are_the_models_greedy_answers_to_the_records_prompts() -> None:
    model, tokenizer, config = make_llama(max_position_embeddings=200), make_tokenizer(), ExampleConfig(system_prompt="")
    records = [Record.from_question(f"Who is number {'9' * i}?", "x", document=f"d{i}", source="s") for i in range(5)]
    records.append(Record.from_text("The river and the house by the sea.", document="text", source="s"))
    found = guess_examples(model, tokenizer, records, config, 100)
    assert sorted(one.record_index for one in found) == list(range(6))
    for one in found:
        prompt = encode_prompt(records[one.record_index], tokenizer, config)
        [[answer]] = generate_ids(model, tokenizer, [prompt], max_new_tokens=NEW_TOKENS)
        assert one.input_ids.tolist() == [*prompt, *answer] and one.document == records[one.record_index].document
        assert one.scored.tolist() == [False] * len(prompt) + [True] * len(answer)


def test_few_are_from_all_over_and_none_where_there_is_no_room() -> None:
    model, tokenizer, config = make_llama(max_position_embeddings=80), make_tokenizer(), ExampleConfig(system_prompt="")
    records = [Record.from_question(f"Who is {i}?", "x", document="d", source="s") for i in range(9)]
    assert {one.record_index for one in guess_examples(model, tokenizer, records, config, 3)} == {1, 4, 7}
    long = Record.from_question("Who? " * 40, "x", document="d", source="s")
    assert {one.record_index for one in guess_examples(model, tokenizer, [*records[:2], long], config, 9)} == {0, 1}
