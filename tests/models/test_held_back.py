"""What a stream that lags shows, token by token, against what it must have shown in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tempertilt.guidance.reply import Reply
from tempertilt.models.held_back import HeldBack, HeldStreamer

ANSWER, TAIL = [50, 51, 52, 53, 9], [40, 50, 51, 52, 53, 9]
REPLY, OTHER = Reply("", [], ANSWER, TAIL), Reply("", [], [60, 61, 9], [40, 60, 61, 9])
KNOWN = 4  # of six tokens of the tail


def stream(answer: list[int], lag: int | None, replies: Any = (OTHER, REPLY)) -> list[list[tuple[int, int | None]]]:
    """What is shown at each token, the last of them known to be the last."""
    held = HeldBack(replies, lag)
    return [[(*one,) for one in held.show(answer[: n + 1], n + 1 == len(answer))] for n in range(len(answer))]  # type: ignore[misc]


@pytest.mark.parametrize("lag", [0, 1, 5, 16, None])
@pytest.mark.parametrize("before", [1, 2, 7, 30])
def test_what_a_reply_breaks_off(before: int, lag: int | None) -> None:
    """All that was shown before more than half of the reply was there stays, and nothing else of it is ever shown."""
    said = list(range(100, 100 + before))
    shown = [one for part in stream(said + TAIL, lag) for one in part]
    seen = 0 if lag is None else max(0, before - 1 - lag)
    if seen:
        places = [*range(seen), *range(before, before + len(TAIL))]
        assert shown == [((said + TAIL)[place], place) for place in places]
    else:
        assert shown == [(token, None) for token in ANSWER]


@pytest.mark.parametrize("lag", [0, 3, None])
def test_an_answer_without_a_reply_is_shown_whole_and_late(lag: int | None) -> None:
    said = [*range(100, 120), *TAIL[: KNOWN - 1], *range(200, 210)]  # it may begin like one
    parts = stream(said, lag)
    for n, part in enumerate(parts[:-1]):
        assert [place for _, place in part] == ([] if lag is None else [n - lag - KNOWN] if n >= lag + KNOWN else [])
    assert [token for part in parts for token, _ in part] == said


def test_an_answer_that_is_a_reply_from_the_first_token_on() -> None:
    assert [token for part in stream(ANSWER, 3) for token, _ in part] == ANSWER
    assert [token for part in stream(TAIL, 3) for token, _ in part] == TAIL, "nothing was said before it"


def test_the_reply_goes_on_once_it_is_known() -> None:
    """A stream stands still no longer than it must."""
    parts = stream([100, 101, *TAIL], 16)
    assert [[token for token, _ in part] for part in parts] == [[], [], [], [], [], ANSWER, [], []]
    parts = stream([*range(100, 130), *TAIL], 2)
    assert [[token for token, _ in part] for part in parts[-4:]] == [[126], TAIL[:4], [53], [9]]


def test_one_of_two_replies_is_cut_off() -> None:
    shown = stream([100, *OTHER.settings["tail"][:3]], 8)
    assert [token for part in shown for token, _ in part] == OTHER.by_itself
    shown = stream([100, *TAIL[: KNOWN - 1]], 8)
    assert [token for part in shown for token, _ in part] == [100, *TAIL[: KNOWN - 1]], "as likely another sentence"


def test_without_a_reply_nothing_waits() -> None:
    assert stream([1, 2, 3], 16, ()) == [[(1, 0)], [(2, 1)], [(3, 2)]]


def test_a_streamer_gets_what_may_be_shown() -> None:
    got: list[list[int]] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            got.append(value.reshape(-1).tolist())

        def end(self) -> None:
            got.append([-1])

    streamer = HeldStreamer(Streamer(), HeldBack([REPLY], 1), 100)
    for value in ([[7, 8]], *([token] for token in (100, 101, 102, 103, *TAIL))):
        streamer.put(torch.tensor(value))
    streamer.end()
    assert got == [[7, 8], *([token] for token in (100, 101, *TAIL)), [-1]] and streamer.shown == [100, 101, *TAIL]
