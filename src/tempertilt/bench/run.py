"""A benchmark from beginning to end: reference points, the choice of settings, the reported runs, the table."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tempertilt.bench.config import BenchConfig, Contender, Setting
from tempertilt.bench.jobs import job_of, run_jobs
from tempertilt.bench.resampling import Value
from tempertilt.bench.scores import HIGHER, Row, costs, figure, score, trial_metrics
from tempertilt.bench.trial import PARTS, RESULT, Trial, Trials, load_data
from tempertilt.bench.worker import spec_of
from tempertilt.environment import machine_of
from tempertilt.errors import TemperTiltError
from tempertilt.storage import make_dir
from tempertilt.training.config import check_tracker

POINTS = ("target", "reference")


@dataclass(frozen=True)
class RunOptions:
    """How trials are run; none of this changes their results."""

    jobs: str = "local"
    workers: int = 1
    launcher: tuple[str, ...] = ()
    report_to: str = "none"
    retry_failed: bool = False
    report_only: bool = False


class Bench:
    """The trials of a benchmark and what has become of them.

    Args:
        config: what is compared.
        path: the YAML file that it was read from, which each trial reads again.
        output_dir: where trials and tables go; made if needed.
        say: called with each line of progress.
    """

    def __init__(
        self, config: BenchConfig, path: Path, output_dir: Path, options: RunOptions, say: Callable[[str], None] = lambda _: None
    ) -> None:
        check_tracker(options.report_to)
        self.config, self.path, self.options, self.say = config, path, options, say
        self.output_dir = make_dir(output_dir)
        self.trials = Trials(config, load_data(config), output_dir)
        self.contenders = [*_points(config), *(c for c in config.contenders if c.name not in POINTS)]
        self.labels: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def run(self) -> list[Row]:
        """Run what has not finished, in three rounds; return the rows in the configuration's order."""
        self._run([self._trial(c, 0, self._seeds(c)[0], part) for c in self.contenders if c.name in POINTS for part in PARTS])
        for name, part in itertools.product(POINTS, PARTS):
            self._point(name, part)  # nothing can be compared without them
        self._run(
            [
                self._trial(c, number, seed, "validation")
                for c in self.contenders
                if len(c.settings) > 1
                for number in range(len(c.settings))
                for seed in self.config.selection_seeds
            ]
        )
        chosen = {c.name: self._chosen(c) for c in self.contenders}
        self._run(
            [self._trial(c, number, seed, "report") for c in self.contenders if (number := chosen[c.name][0]) is not None
             for seed in self._seeds(c)]
        )  # fmt: skip
        return [self._row(c, *chosen[c.name]) for c in self.contenders]

    def plan(self) -> list[Trial]:
        """Every trial that can be named now: all but the reported ones of contenders whose setting is not chosen yet."""
        out = [self._trial(c, 0, self._seeds(c)[0], part) for c in self.contenders if c.name in POINTS for part in PARTS]
        for c in self.contenders:
            if len(c.settings) > 1:
                numbers = range(len(c.settings))
                out += [self._trial(c, i, seed, "validation") for i in numbers for seed in self.config.selection_seeds]
            elif c.name not in POINTS:
                out += [self._trial(c, 0, seed, "report") for seed in self._seeds(c)]
        return list({trial.key: trial for trial in out}.values())

    def _seeds(self, contender: Contender) -> tuple[int, ...]:
        seeds = contender.seeds or self.config.seeds
        return seeds if contender.settings[0].build().is_random else seeds[:1]

    def _trial(self, contender: Contender, number: int, seed: int, part: str) -> Trial:
        trial = self.trials.trial(contender.name, contender.settings[number], seed, part)
        self.labels[trial.key] = contender.labels[number]
        return trial

    def _run(self, trials: Sequence[Trial]) -> None:
        """Run those of the trials that have not finished."""
        wanted = list({trial.key: trial for trial in trials}.values())
        todo = [trial for trial in wanted if trial.result() is None and (self.options.retry_failed or trial.failure() is None)]
        if self.options.report_only:
            self.say(f"{len(wanted) - len(todo)} of {len(wanted)} trials are finished; none is run")
            return
        if kept := len(wanted) - len(todo):
            self.say(f"{kept} of {len(wanted)} trials are finished: not run again")
        lost = self._lost({trial.part for trial in todo})
        for trial in lost:
            (trial.directory / RESULT).unlink()
        todo = [*lost, *todo]
        count, started = 0, time.perf_counter()

        def done(trial: Trial, trouble: str) -> None:
            nonlocal count
            count += 1
            result = trial.result()
            if result is None:
                self.errors[trial.key] = trial.failure() or trouble or "it wrote no result"
            how = f"unlearn {result['seconds']['unlearn']:.0f} s" if result else f"failed: {self.errors[trial.key]}"
            elapsed = time.perf_counter() - started
            self.say(f"[{count}/{len(todo)}, {elapsed:.0f} s] {trial.name} {self.labels[trial.key]}: {how}")

        jobs = [
            job_of(
                trial,
                spec_of(trial, self.labels[trial.key], self.options.report_to),
                self.path,
                self.options.launcher,
                self.config.trial_seconds,
            )
            for trial in todo
        ]
        run_jobs(jobs, self.options.jobs, self.options.workers, done)

    def _lost(self, parts: set[str]) -> list[Trial]:
        """Finished reference points without their samples, as in a clone: new trials have nothing to be compared with."""
        points = [self._trial(c, 0, self._seeds(c)[0], part) for c in self.contenders if c.name in POINTS for part in parts]
        return [point for point in points if point.result() is not None and not point.has_samples]

    def _point(self, name: str, part: str) -> Trial | None:
        contender = next((c for c in self.contenders if c.name == name), None)
        if contender is None:
            return None
        trial = self._trial(contender, 0, self._seeds(contender)[0], part)
        if trial.result() is None:
            raise TemperTiltError(f"the {name} model could not be measured: {self._why(trial)}")
        return trial

    def _why(self, trial: Trial) -> str:
        return trial.failure() or self.errors.get(trial.key, "it has not been run")

    def _metrics(self, trial: Trial) -> dict[str, Value]:
        """The figures of a trial; "score" is among them, and "gap_score", which decides between equal ones."""
        target = self._point("target", trial.part)
        values = trial_metrics(trial, self._point("reference", trial.part), target)
        assert target is not None
        base = values if trial.key == target.key else trial_metrics(target, self._point("reference", trial.part), target)
        return values | {"score": score(values, base), "gap_score": score(values, base, "forget_gap")}

    def _chosen(self, contender: Contender) -> tuple[int | None, tuple[tuple[str, float | None, str], ...]]:
        """The number of the setting with the best mean score on the validation part, and all scores.

        Of settings with the same score, 0 as a rule, the one with the best mean "gap_score".
        """
        if len(contender.settings) == 1:
            return 0, ()
        scores: list[tuple[str, float | None, str]] = []
        ranks: list[tuple[float, float, int]] = []
        for number, label in enumerate(contender.labels):
            trials = [self._trial(contender, number, seed, "validation") for seed in self.config.selection_seeds]
            found = [self._metrics(trial) for trial in trials if trial.result() is not None]
            whole = len(found) == len(trials)
            why = "" if whole else next(self._why(trial) for trial in trials if trial.result() is None)
            means = [sum(of[name].value for of in found) / len(trials) for name in ("score", "gap_score")]
            scores.append((label, means[0] if whole else None, why))
            if whole:
                ranks.append((means[0], means[1], -number))
        return (-max(ranks)[2] if ranks else None), tuple(scores)

    def _row(self, contender: Contender, number: int | None, selection: tuple[tuple[str, float | None, str], ...]) -> Row:
        setting: Setting = contender.settings[number or 0]
        trials = [] if number is None else [self._trial(contender, number, s, "report") for s in self._seeds(contender)]
        finished = [trial for trial in trials if trial.result() is not None]
        metrics = [self._metrics(trial) for trial in finished]
        results = [result for trial in finished if (result := trial.result()) is not None]
        names = [name for name in HIGHER if metrics and all(name in of for of in metrics)]
        failures = [self._why(trial) for trial in trials if trial not in finished]
        if number is None:
            failures = ["no setting has a result on the validation part"]
        return Row(
            name=contender.name,
            method=setting.method,
            label="" if number is None else contender.labels[number],
            options=dict(setting.options),
            seeds=tuple(trial.seed for trial in finished),
            figures={name: figure(name, [of[name] for of in metrics]) for name in names},
            costs=costs(results) if results else {},
            selection=selection,
            failures=tuple(failures),
            machines=tuple(sorted({machine_of(result["environment"]) for result in results})),
        )


def _points(config: BenchConfig) -> list[Contender]:
    """The target, and the reference where there is one: always measured, as everything is compared with them."""
    names = ["target", *(["reference"] if config.has_reference else [])]
    return [Contender(name, (Setting(name, {}),), ("",)) for name in names]
