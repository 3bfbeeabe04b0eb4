"""Runs of the playground: for each browser tab the latest one, both answers step by step; an older one stops."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tempertilt.guidance.tilt import TiltConfig
from tempertilt.playground.trace import Followed, PromptToken, Step, Tracer

REMEMBERED = 64  # tabs


@dataclass(frozen=True)
class Request:
    """A prompt and its settings.

    Attributes:
        prompt: as written.
        tilt: the settings of the guided distribution.
        max_new_tokens: of each answer.
        raw: continue the prompt as it is, without a chat template.
        seed: to sample; None takes the likeliest token.
    """

    prompt: str
    tilt: TiltConfig
    max_new_tokens: int = 96
    raw: bool = False
    seed: int | None = None


@dataclass
class Answer:
    """An answer so far, and whether it is finished."""

    steps: list[Step] = field(default_factory=list)
    done: bool = False

    def extend(self, steps: Iterator[Step]) -> bool:
        """Append the next step; False, and `done`, if there is none."""
        step = next(steps, None)
        if step is None:
            self.done = True
        else:
            self.steps.append(step)
        return step is not None

    @property
    def draft(self) -> list[int]:
        """Its tokens without the one that ends it."""
        return [step.chosen.token_id for step in self.steps if not step.ends]


@dataclass
class View:
    """A run at some moment."""

    request: Request
    prompt: list[PromptToken]
    answers: dict[Followed, Answer]


@dataclass
class _Tab:
    number: int = 0
    stopped: bool = False
    ids: list[int] = field(default_factory=list)
    prompt: list[PromptToken] = field(default_factory=list)
    drafts: dict[Followed, list[int]] = field(default_factory=dict)


class Runs:
    """The runs of all tabs.

    Args:
        tracer: of the model.
        encode: token ids of a prompt, and whether it is raw; may raise a `TemperTiltError`.
    """

    def __init__(self, tracer: Tracer, encode: Callable[[str, bool], list[int]]) -> None:
        self.tracer, self._encode = tracer, encode
        self._tabs: OrderedDict[str, _Tab] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def stop(self, tab: str) -> None:
        """End the run of a tab after its current step."""
        self._begin(tab, stopped=True)

    def play(self, tab: str, request: Request) -> Iterator[View]:
        """Both answers as they grow, the same `View` again and again; it ends early when the tab has a newer run.

        The answers of the tab's last run to the same prompt are drafts for those of this one: tokens that the new settings do not
        change appear at once.
        """
        number = self._begin(tab)
        ids = self._encode(request.prompt, request.raw)
        prompt, drafts = self._remembered(tab, ids)
        view = View(request, prompt or self.tracer.prompt(ids), {"base": Answer(), "guided": Answer()})
        options = {"max_new_tokens": request.max_new_tokens, "seed": request.seed}
        streams = {
            name: self.tracer.steps(ids, request.tilt, follows=name, draft=drafts.get(name, ()), **options)  # type: ignore[arg-type]
            for name in view.answers
        }
        for _ in self._grow(tab, number, view, ids, streams, drafts):
            yield view
        if self._is_stopped(tab):
            for answer in view.answers.values():
                answer.done = True
            yield view

    def _grow(
        self,
        tab: str,
        number: int,
        view: View,
        ids: list[int],
        streams: dict[Followed, Iterator[Step]],
        drafts: dict[Followed, list[int]],
    ) -> Iterator[None]:
        """Append steps to the answers, one to each at a time, until they are finished or the run is no longer the latest."""
        for name, answer in view.answers.items():  # the right tokens of the draft are there at once
            for token in drafts.get(name, ()):
                if not self._is_latest(tab, number):
                    return
                if not answer.extend(streams[name]) or answer.steps[-1].chosen.token_id != token:
                    break
        while streams:
            for name in list(streams):
                if not self._is_latest(tab, number):
                    return
                if not view.answers[name].extend(streams[name]):
                    del streams[name]
            if not self._remember(tab, number, ids, view):
                return
            yield

    def _begin(self, tab: str, *, stopped: bool = False) -> int:
        with self._lock:
            state = self._tabs.setdefault(tab, _Tab())
            self._tabs.move_to_end(tab)
            while len(self._tabs) > REMEMBERED:
                self._tabs.popitem(last=False)
            state.number, state.stopped = next(self._numbers), stopped
            return state.number

    def _is_latest(self, tab: str, number: int) -> bool:
        with self._lock:
            return tab in self._tabs and self._tabs[tab].number == number

    def _is_stopped(self, tab: str) -> bool:
        with self._lock:
            return tab in self._tabs and self._tabs[tab].stopped

    def _remembered(self, tab: str, ids: list[int]) -> tuple[list[PromptToken], dict[Followed, list[int]]]:
        """The prompt's tokens and the drafts of the tab's last run, if it was of the same prompt."""
        with self._lock:
            state = self._tabs.get(tab, _Tab())
            return (state.prompt, dict(state.drafts)) if state.ids == ids else ([], {})

    def _remember(self, tab: str, number: int, ids: list[int], view: View) -> bool:
        """Keep the answers as drafts; False if the run is no longer the latest."""
        with self._lock:
            state = self._tabs.get(tab)
            if state is None or state.number != number:
                return False
            if state.ids != ids:
                state.ids, state.prompt, state.drafts = ids, view.prompt, {}
            for name, answer in view.answers.items():
                if answer.done or len(answer.steps) > len(state.drafts.get(name, ())):
                    state.drafts[name] = answer.draft
            return True
