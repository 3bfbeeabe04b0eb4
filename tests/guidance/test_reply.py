"""How much of a reply a text ends with, and which of its tokens is next, against searches through the text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from support.gates import longest_beginning, random_gates, reply_token
from tempertilt.errors import AdapterError, ConfigError
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead
from tempertilt.guidance.pooling import Memory
from tempertilt.guidance.reply import SURE, Form, Reply, reply_logits

HEADER, ANSWER, TAIL = [1, 2, 1], [3, 1, 2, 1, 3, 4], [5, 5, 3, 1, 4]


def make_reply(header: Sequence[int] = HEADER) -> Reply:
    return Reply("so", header, ANSWER, TAIL)


def random_ids(rows: int, n: int, seed: int, largest: int = 4) -> torch.Tensor:
    """Of few tokens, so that beginnings of a reply come and break off all the time."""
    return torch.randint(1, largest, (rows, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [[1], [1, 1, 1], [1, 2, 1, 3, 1, 2], [2, 1, 2, 1, 2]])
def test_a_text_ends_with_the_longest_beginning(tokens: list[int]) -> None:
    form, ids = Form(tokens), random_ids(20, 60, 1)
    expected = [[longest_beginning(row[: t + 1], tokens) for t in range(60)] for row in ids.tolist()]
    assert len({count for row in expected for count in row}) > len(tokens) / 2
    real = torch.ones(20, 60, dtype=torch.bool)
    assert form.follow(ids, real, torch.zeros(20)).tolist() == expected
    parts, before, start = [], torch.zeros(20), 0
    for size in (1, 1, 2, 3, 20, 1, 8, 24):
        parts.append(form.follow(ids[:, start : start + size], real[:, :size], before))
        before, start = parts[-1][:, -1].float(), start + size
    assert torch.cat(parts, 1).tolist() == expected


@pytest.mark.parametrize("header", [HEADER, []])
def test_which_token_is_next(header: list[int]) -> None:
    reply, ids = make_reply(header), random_ids(40, 80, 2, largest=6)
    for row, said in enumerate(([*HEADER, *ANSWER], [9, *TAIL], [*HEADER, *ANSWER[:3]], [*TAIL[:3], 9])):
        ids[row, : len(said)] = torch.tensor(said)
    ends = reply.follow(ids, torch.arange(1, 81).expand(40, -1), torch.zeros(40, 2))
    found, said = reply.next_tokens(ends), reply.said(ends)
    for row in range(40):
        for t in range(80):
            expected = reply_token(ids[row, : t + 1].tolist(), header, ANSWER, TAIL)
            assert (int(found[row, t]), int(said[row, t])) == expected


def test_after_a_header_it_is_the_answer_and_elsewhere_the_tail() -> None:
    """A reply that is said token by token comes out whole, and after its end it never becomes another text."""
    reply = make_reply()
    for prompt, first in (([7, *HEADER], ANSWER), ([7, 8], TAIL), (HEADER[:2], TAIL), ([*HEADER, 9], TAIL)):
        ids = list(prompt)
        for _ in range(30):
            ends = reply.follow(torch.tensor([ids]), torch.arange(1, len(ids) + 1)[None], torch.zeros(1, 2))
            ids.append(int(reply.next_tokens(ends)[0, -1]))
        said = ids[len(prompt) :]
        assert said[: len(first)] == first
        assert said[len(first)] == first[-1]  # the token that ends an answer once more
        assert set(said) <= {*ANSWER, *TAIL}


def test_an_answer_that_is_not_streamed_is_the_reply_alone_where_it_was_broken_off() -> None:
    reply = make_reply()
    for begun in ([6], [6, 7, 8] * 9, [*TAIL[:4], 6]):
        assert reply.alone([*begun, *TAIL]) == ANSWER[: len(begun) + len(TAIL)]
        assert reply.alone([*begun, *TAIL[:3]]) == ANSWER[: len(begun) + 3], "cut in mid-reply: known by more than half of it"
        for kept in ([*begun, *TAIL[:2]], [*begun, *TAIL, 9], [*begun, 5, 5, 3, 2, 4], begun, [*begun, *ANSWER]):
            assert reply.alone(kept) == kept
    for kept in ([], TAIL, ANSWER, TAIL[:4], [4]):  # nothing was said before
        assert reply.alone(kept) == kept


def test_padding_before_a_text_and_embeddings_are_no_tokens_of_it() -> None:
    reply = make_reply()
    ids = torch.tensor([[*HEADER, *HEADER, 3]])
    position = torch.tensor([[0, 0, 0, 1, 2, 3, 4]])
    assert reply.follow(ids, position, torch.zeros(1, 2))[0, :, 0].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert reply.follow(ids[:, 1:4], position[:, 1:4], torch.zeros(1, 2))[0, :, 0].tolist() == [0, 0, 1]
    assert not reply.follow(None, position, torch.ones(1, 2)).any()


def test_its_token_is_sure_and_nothing_of_the_base_is_left() -> None:
    logits = torch.randn(4, 9)
    out = reply_logits(logits, torch.tensor([-1, 3, 0, -1]))
    assert torch.equal(out[[0, 3]], logits[[0, 3]])
    for row, token in ((1, 3), (2, 0)):
        log_probs = out[row].log_softmax(-1)
        assert float(log_probs[token]) == 0
        assert log_probs[[v for v in range(9) if v != token]].tolist() == [-SURE] * 8
    assert reply_logits(logits, torch.tensor([-1] * 4)) is logits
    assert reply_logits(logits.bfloat16(), torch.tensor([-1, 3, 0, -1])).dtype == torch.bfloat16


def test_the_gate_decides_and_what_was_begun_is_said_to_its_end() -> None:
    """A gate that closes three tokens after its opening stays open for a reply that began before."""
    guidance = Guidance(GuidanceHead(8, 3, [1, 5]), random_gates(8, close_after=3), pooling="last", reply=make_reply())
    ids = torch.tensor([[7, 8, 5, 5, 3, 1, 4]])
    position = torch.arange(1.0, 8.0)[None]
    latest = torch.zeros(1, 7, 5)
    assert guidance.reply is not None
    ends = guidance.reply.follow(ids, position, torch.zeros(1, 2))
    closed = guidance.read(Memory(torch.zeros(1, 7, 0), position, latest, ends))
    assert closed.reply is not None and closed.reply.tolist() == [[-1] * 7]
    latest[:, 1:, 0] = 2
    opened = guidance.read(Memory(torch.zeros(1, 7, 0), position, latest, ends))
    assert opened.reply is not None and opened.reply.tolist() == [[-1, *TAIL, TAIL[-1]]]
    ids[0, 3:] = 8  # another text: it closes
    ends = guidance.reply.follow(ids, position, torch.zeros(1, 2))
    broken = guidance.read(Memory(torch.zeros(1, 7, 0), position, latest, ends))
    assert broken.reply is not None and broken.reply.tolist() == [[-1, 5, 5, 5, -1, -1, -1]]


def test_settings_make_the_same_reply_and_others_are_refused() -> None:
    reply = make_reply()
    again = Reply.from_settings(reply.settings)
    assert again.settings == reply.settings and again.text == "so"
    for damaged in ({}, {"text": "x", "header": [], "answer": [], "tail": [1]}, {**reply.settings, "tail": ["a"]}, "guess"):
        with pytest.raises(AdapterError, match="reply"):
            Reply.from_settings(damaged)
    reply.check_fits(9)
    with pytest.raises(AdapterError, match="token id 5; the base model has 5 tokens"):
        reply.check_fits(5)
    with pytest.raises(ConfigError, match="has no gate"):
        Guidance(GuidanceHead(8, 3, [1, 5]), reply=reply)
