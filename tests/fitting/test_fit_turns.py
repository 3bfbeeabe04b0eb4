"""Where a user's turn begins: the token of the header, and the same token as a word of a text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Message
from tempertilt.fitting.fit_turns import fit_turns, header_token
from tempertilt.guidance.gate import Reader, TurnStarts

PLAIN = ExampleConfig(system_prompt="")
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
SAME = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
READER = Reader(torch.zeros(8), torch.eye(8))


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def states_by_place(marker: int, after: int, noise: float = 0.05) -> Callable[[Sequence[Sequence[int]]], list[torch.Tensor]]:
    """States that show whether the token before was `after`, as a lower layer's do, and else are random."""

    def states_of(prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        out = []
        for ids in prompts:
            states = noise * torch.randn(len(ids), 8, generator=generator)
            for i, token in enumerate(ids):
                states[i, 0 if token == marker and i and ids[i - 1] == after else 1] += 1
            out.append(states)
        return out

    return states_of


def ids_of(tokenizer: Any, *messages: tuple[str, str], config: ExampleConfig = PLAIN) -> list[int]:
    return encode_question([Message(*message) for message in messages], tokenizer, config)


def test_the_token_of_the_header(tokenizer: Any) -> None:
    marker = header_token(tokenizer, PLAIN)
    ids = ids_of(tokenizer, ("user", "Hello"))
    assert ids.index(marker) == 1 and tokenizer.decode(ids[:3]) == "<|im_start|>user"  # "assistant" begins otherwise


def test_templates_without_such_a_token(tokenizer: Any) -> None:
    assert header_token(with_template(tokenizer, SAME), PLAIN) is None
    assert fit_turns(with_template(tokenizer, SAME), PLAIN, READER, states_by_place(0, 0)) is None


def test_other_brackets(tokenizer: Any) -> None:
    """A turn that has no header of its own begins where the answer before it ends."""
    marker = header_token(with_template(tokenizer, BRACKETS), PLAIN)
    assert marker == tokenizer.convert_tokens_to_ids("<|im_end|>")


def begins(turns: TurnStarts, tokenizer: Any, states_of: Any, ids: list[int]) -> list[int]:
    """Places where the fitted rule finds a turn."""
    return turns.found(torch.tensor(ids), F.normalize(states_of([ids])[0], dim=-1)).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("system", ["", "You are a helpful assistant.", "You help the user. A user is a friend."])
def test_a_header_is_told_from_the_word(tokenizer: Any, system: str) -> None:
    config = ExampleConfig(system_prompt=system)
    marker, start = header_token(tokenizer, config), tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert marker is not None
    states_of = states_by_place(marker, start)
    turns = fit_turns(tokenizer, config, READER, states_of)
    assert turns is not None and turns.token_ids.tolist() == [marker]
    chat = (("user", "Is user a word, user?"), ("assistant", "user\nuser"), ("user", "The user's user."))
    ids = ids_of(tokenizer, *chat, config=config)
    headers = [i for i in range(1, len(ids)) if ids[i - 1] == start and ids[i] == marker]
    assert len(headers) == 2 and ids.count(marker) > 4
    assert begins(turns, tokenizer, states_of, ids) == headers


def test_states_that_do_not_tell_them_apart(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    def random_states(prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(len(ids), 8, generator=generator) for ids in prompts]

    with caplog.at_level("INFO", logger="tempertilt"):
        assert fit_turns(tokenizer, PLAIN, READER, random_states) is None
    assert "can't be told" in caplog.text


def test_a_token_that_no_text_holds_needs_no_state(tokenizer: Any) -> None:
    changed = with_template(tokenizer, BRACKETS)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    states_of = states_by_place(0, 0)
    turns = fit_turns(changed, PLAIN, READER, states_of)
    assert turns is not None
    ids = ids_of(changed, ("user", "What?"), ("assistant", "The sea."), ("user", "Where?"))
    assert begins(turns, changed, states_of, ids) == [ids.index(end)]


def test_chats_that_the_model_has_no_positions_for_are_left_out(tokenizer: Any) -> None:
    lengths: list[int] = []

    def states_of(prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        lengths.extend(map(len, prompts))
        return states_by_place(header_token(tokenizer, PLAIN) or 0, 1)(prompts)

    assert fit_turns(tokenizer, PLAIN, READER, states_of, positions=60) is not None and max(lengths) <= 60
    assert fit_turns(tokenizer, PLAIN, READER, states_of, positions=2) is None
