"""Decoding for many clients at once: one thread that makes a step for every answer, again and again.

Answers of one distribution are rows of one batch. An answer leaves as soon as it is over, and a waiting one takes its place at
the next step. transformers' own continuous batching packs all sequences into one row over a paged cache, in which the state that
an adapter keeps for each sequence has no place; so there is a loop of our own.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

from tempertilt.errors import TemperTiltError
from tempertilt.serving.answers import Answer
from tempertilt.serving.batch import Batch
from tempertilt.serving.decoder import Decoder, Distribution
from tempertilt.serving.prefixes import Prefixes

log = logging.getLogger("tempertilt")

POSITIONS = 16384
"""Positions that all batches hold together when an answer joins, padding included."""

Key = tuple[Decoder, Distribution, int]
"""Of a batch: answers with the same key are decoded together. A model whose parts change has another decoder after it."""

TOGETHER = 0


class BusyError(TemperTiltError):
    """As many answers wait as may."""


class Engine:
    """A thread that writes answers. Their models may share a base: only this thread runs them.

    Args:
        max_batch_size: answers of one model decoded at a time.
        max_waiting: answers that may wait.
        prefix_tokens: of what prompts begin with that are kept read, for each model; 0 = none.
    """

    def __init__(self, *, max_batch_size: int, max_waiting: int, prefix_tokens: int = 0) -> None:
        self._max_batch, self._max_waiting, self._prefix_tokens = max_batch_size, max_waiting, prefix_tokens
        self._prefixes: WeakKeyDictionary[Decoder, Prefixes] = WeakKeyDictionary()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._batches: dict[Key, Batch] = {}  # only the engine's thread looks at them
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="t3-engine", daemon=True)
        self._thread.start()

    # --- from any thread ----------------------------------------------------------------------------------------------

    def submit(self, answers: Sequence[Answer]) -> None:
        """Queue the answers of a request, all or none; `BusyError` if too many wait."""
        with self._changed:
            if self._stopping:
                raise BusyError("the server is shutting down")
            if len(answers) > self._room():
                raise BusyError(f"{len(self._waiting)} answers wait and at most {self._max_waiting} may; try again later")
            self._waiting.extend(answers)
            self._changed.notify()

    def has_room(self) -> bool:
        """Whether one more answer would be taken."""
        with self._changed:
            return self.is_alive() and not self._stopping and self._room() > 0

    def _room(self) -> int:
        """Answers that may be queued; within the lock."""
        free = max(0, self._max_batch - self.running)
        return self._max_waiting + free - len(self._waiting)

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Let go of answers that nobody waits for."""
        with self._changed:
            for answer in answers:
                answer.cancelled = True
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)

    @property
    def waiting(self) -> int:
        """Answers that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return sum(not answer.over for answer in self._running)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after the present step; answers that are not finished are dropped."""
        with self._changed:
            self._stopping = True
            for answer in [*self._running, *self._waiting]:
                answer.cancelled = True
            self._waiting.clear()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    # --- on the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batches or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
                joining = self._admit()
            with torch.inference_mode():
                for key, batch in self._batches.items():
                    self._step(key, batch)
                for key, answers in joining.items():
                    self._begin(key, answers)
            self._batches = {key: batch for key, batch in self._batches.items() if batch.answers}

    def _admit(self) -> dict[Key, list[Answer]]:
        """Take from the queue the answers that have a place: of the client that has the fewest, then first come first served."""
        self._running = [answer for answer in self._running if not answer.over]
        rows = Counter(answer.distribution.model for answer in self._running)
        lengths: dict[Key, list[int]] = defaultdict(list)
        for answer in self._running:
            lengths[self._key(answer)].append(answer.length)
        joining: dict[Key, list[Answer]] = defaultdict(list)
        served = Counter(answer.client for answer in self._running)
        for answer in _in_turn(self._waiting, served):
            key, model = self._key(answer), answer.distribution.model
            if rows[model] >= self._max_batch:
                continue
            lengths[key].append(answer.length)
            if rows.total() and _positions(lengths) > POSITIONS:
                break  # nobody overtakes the one that does not fit
            rows[model] += 1
            served[answer.client] += 1
            joining[key].append(answer)
        taken = [answer for answers in joining.values() for answer in answers]
        self._running += taken
        self._waiting = deque(answer for answer in self._waiting if answer not in taken)
        return joining

    def _key(self, answer: Answer) -> Key:
        """Of the batch that an answer is decoded in: alone where another's length would change its numbers."""
        decoder = answer.decoder
        steady = decoder.steady_length is None or answer.longest <= decoder.steady_length
        return decoder, answer.distribution, TOGETHER if decoder.merges and steady else id(answer)

    def _step(self, key: Key, batch: Batch) -> None:
        """A token for every answer of a batch; if that fails, all of them fail."""
        decoder, distribution, _ = key
        with _failing(batch), decoder.under(distribution.tilt):
            batch.step()

    def _begin(self, key: Key, answers: Sequence[Answer]) -> None:
        """Read the prompts of answers, draw their first tokens, and have them join the batch of their key."""
        decoder = key[0]
        for answer in answers:
            self._score(answer)
        ready = [answer for answer in answers if not answer.over]
        try:
            batches = self._new_batches(decoder, ready)
        except Exception as error:  # what an earlier prompt left behind can't be taken up: no memory, say
            log.error("prompts could not be read", exc_info=True)
            for answer in ready:
                answer.fail(error)
            return
        for new in batches:
            self._step(key, new)
            batch = self._batches.setdefault(key, new)
            if batch is not new:
                with _failing(batch, new):
                    batch.join(new)

    def _new_batches(self, decoder: Decoder, answers: Sequence[Answer]) -> list[Batch]:
        """Batches whose prompts are to be read: those that begin as earlier ones apart from the others."""
        if not decoder.pads:
            return [Batch(decoder, [answer]) for answer in answers]
        if not decoder.shares or not self._prefix_tokens:
            return [Batch(decoder, answers)] if answers else []
        prefixes = self._prefixes.setdefault(decoder, Prefixes(self._prefix_tokens))
        found = [(answer, prefixes.find(answer.client, answer.prompt)) for answer in answers]
        known = [(answer, part) for answer, part in found if part is not None]
        fresh = [answer for answer, part in found if part is None]
        batches = [Batch(decoder, fresh, prefixes=prefixes)] if fresh else []
        if known:
            batches.append(Batch(decoder, [answer for answer, _ in known], [part for _, part in known], prefixes))
        return batches

    @staticmethod
    def _score(answer: Answer) -> None:
        """The numbers of a prompt, if they are wanted; an answer of no tokens is then over."""
        decoder = answer.decoder
        try:
            if answer.score_prompt and not answer.over:
                with decoder.under(answer.distribution.tilt):
                    answer.scored(decoder.score(answer.prompt, answer.sampling.logprobs or 0))
            if answer.sampling.max_tokens == 0:
                answer.end("length")
        except Exception as error:
            log.error("a prompt could not be scored", exc_info=True)
            answer.fail(error)


def _in_turn(waiting: Sequence[Answer], served: Mapping[str, int]) -> Iterator[Answer]:
    """The answers that wait, always the first of the client that is served least; the one that waits longest between equals.

    Args:
        served: answers of each client that are written; the caller counts those that it takes.
    """
    queues: dict[str, deque[tuple[int, Answer]]] = defaultdict(deque)
    for number, answer in enumerate(waiting):
        queues[answer.client].append((number, answer))
    while queues:
        client = min(queues, key=lambda name: (served[name], queues[name][0][0]))
        yield queues[client].popleft()[1]
        if not queues[client]:
            del queues[client]


def _positions(lengths: Mapping[Key, Sequence[int]]) -> int:
    """Positions that batches with answers of these lengths hold, padding included."""
    return sum(len(batch) * max(batch) for batch in lengths.values())


@contextmanager
def _failing(*batches: Batch) -> Iterator[None]:
    """Give an error to all answers of the batches, and drop them."""
    try:
        yield
    except Exception as error:
        log.error("decoding failed", exc_info=True)
        for batch in batches:
            for answer in batch.answers:
                if not answer.over:
                    answer.fail(error)
            batch.answers = []
