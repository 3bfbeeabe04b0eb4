"""Two processes that want to make the same thing at the same time."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from typing import Any

WAIT = 20.0  # seconds, for what takes none


class Pair(logging.Handler):
    """Runs a function in two forked processes. The second starts while the first works, which goes on when the second waits.

    The work calls `hold` at a point where it is half done. A second process that says nothing of waiting works, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.context: Any = multiprocessing.get_context("fork")
        self.started, self.waiting = self.context.Event(), self.context.Event()
        self.works = self.context.Value("i", 0)
        self.answers: Any = self.context.SimpleQueue()

    def hold(self) -> None:
        """Count a process that works; stop the first one here until the second waits for it."""
        with self.works.get_lock():
            self.works.value += 1
            first = self.works.value == 1
        self.started.set()
        if first:
            self.waiting.wait(WAIT)

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log."""
        if "another process is" in record.getMessage():
            self.waiting.set()

    def run(self, work: Callable[[], object]) -> tuple[list[object], int]:
        """What both processes got (or raised), and how many of them worked."""
        processes = [self.context.Process(target=self._work, args=(work,)) for _ in range(2)]
        processes[0].start()
        assert self.started.wait(WAIT)
        processes[1].start()
        results = [self.answers.get() for _ in processes]
        for process in processes:
            process.join(WAIT)
        return results, self.works.value

    def _work(self, work: Callable[[], object]) -> None:
        logging.getLogger("tempertilt").addHandler(self)
        try:
            self.answers.put(work())
        except Exception as error:
            self.answers.put(repr(error))
