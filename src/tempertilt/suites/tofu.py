"""TOFU (Maini et al., arXiv 2401.06121; data and logs MIT): its splits, what is measured on each, and its metrics."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tempertilt import metrics
from tempertilt.config.options import Options, option
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.lines import half_pair, json_text
from tempertilt.data.records import load_rows
from tempertilt.environment import environment, peak_memory_mib
from tempertilt.errors import DataError, TemperTiltError
from tempertilt.metrics.divergence import TokenValue
from tempertilt.metrics.result import MetricResult
from tempertilt.metrics.samples import Results, Samples
from tempertilt.models.base import BaseModel
from tempertilt.storage import make_dir, read_stored, remove_unfinished, write_text
from tempertilt.suites.journal import Journal
from tempertilt.suites.logs import COMPRESSED, SAMPLES, SPLITS, read_log, write_samples
from tempertilt.suites.measure import (
    Item,
    MeasureConfig,
    Plan,
    check_questions,
    measure,
    model_digest,
    questions_of,
    run_key,
)

__all__ = ["METRICS", "TofuConfig", "TofuRun", "evaluate", "load_split", "load_tofu", "questions_of", "read_log", "run_tofu"]

log = logging.getLogger("tempertilt")

HUB_ID = "locuslab/TOFU"
FORGET_SPLITS = ("forget01", "forget05", "forget10")
REQUIRED = ("forget", "retain", "real_authors", "world_facts")
PLAN = Plan(generated=REQUIRED, token_level=("forget", "retain", "holdout"), drawn=("forget", "retain"))

RESULTS, CONFIG, ENVIRONMENT, TIMING, JOURNAL = "results.json", "config.yaml", "env.json", "timing.json", ".journal.jsonl"


@dataclass(frozen=True)
class TofuConfig(Options):
    """Which part of TOFU."""

    split: str = option("forget10", "forget01, forget05 or forget10 (a directory may have one of its own)", choices=FORGET_SPLITS)
    limit: int | None = option(None, "only the first N questions of each split", ge=1)


def split_names(split: str) -> dict[str, tuple[str, ...]]:
    """The names under which each split may be found, the first on the hub and in a whole copy, the second in a cut."""
    return {
        "forget": (f"{split}_perturbed", "forget_perturbed"),
        "retain": ("retain_perturbed",),
        "real_authors": ("real_authors_perturbed",),
        "world_facts": ("world_facts_perturbed",),
        "holdout": (split.replace("forget", "holdout"), "holdout"),
    }


def load_tofu(source: str | Path | None, config: TofuConfig) -> dict[str, list[Item]]:
    """The questions of every split.

    Args:
        source: a directory of .jsonl files named as on the hub (or forget_perturbed.jsonl, holdout.jsonl for a cut of its own),
            or a dataset on the hub; None is locuslab/TOFU.

    Raises:
        DataError: a split is missing (holdout may be: membership is then not measured), or a row is not one of TOFU's.
    """
    directory = None if source is None else Path(source).expanduser()
    if directory is None or not directory.is_dir():
        if directory is not None and (isinstance(source, Path) or directory.exists() or str(source).count("/") != 1):
            raise DataError(f"no directory {str(source)!r}; must be a directory of TOFU's .jsonl files or a dataset on the hub")
        names = {split: f"{source or HUB_ID}:{found[0]}:train" for split, found in split_names(config.split).items()}
        return {split: load_split(name, limit=config.limit) for split, name in names.items()}
    out = {}
    for split, found in split_names(config.split).items():
        path = next((path for name in found if (path := directory / f"{name}.jsonl").is_file()), None)
        if path is not None:
            out[split] = load_split(path, limit=config.limit)
        elif split in REQUIRED:
            raise DataError(
                f"{str(directory)!r} has no {' or '.join(f'{name}.jsonl' for name in found)}, the {split} split of TOFU"
            )
    return out


def load_split(source: str | Path, *, limit: int | None = None) -> list[Item]:
    """The questions of one file, or of one split of a dataset on the hub (org/name:config:split)."""
    return [_item(where, row) for where, row in load_rows(source, limit=limit)]


def _item(where: str, row: Mapping[str, object]) -> Item:
    question, answer, paraphrase = (row.get(name) for name in ("question", "answer", "paraphrased_answer"))
    wrong = row.get("perturbed_answer") or []
    wrong = [wrong] if isinstance(wrong, str) else wrong
    texts = [question, answer, *([] if paraphrase is None else [paraphrase]), *(wrong if isinstance(wrong, list) else [None])]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{where}: not a row of TOFU; must have a question and an answer, and optionally a paraphrased_answer and a list "
            "of perturbed_answer, none of them empty"
        )
    assert isinstance(wrong, list)
    if fault := next((fault for text in texts if (fault := half_pair(str(text)))), ""):
        raise DataError(f"{where}: a text has {fault}; must be Unicode text")
    return Item(str(question), str(answer), None if paraphrase is None else str(paraphrase), tuple(wrong), where)


# --- metrics -------------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """What metrics are computed from: a model's results, a reference's, and those before unlearning, where known."""

    results: Results
    reference: Results | None
    target: Results | None

    def of(self, split: str) -> Samples:
        """The samples of a split, or none."""
        return self.results.get(split, ())

    def known(self, side: str) -> Results:
        """The reference or the target; `DataError` if it was not given."""
        found: Results | None = getattr(self, side)
        if found is None:
            raise DataError(f"needs the results of a {side} model: --{side} RUN")
        return found


class Metric(NamedTuple):
    """One metric of the suite."""

    name: str
    description: str
    source: str
    compute: Callable[[Compared], MetricResult]


TOFU_URL = "https://arxiv.org/abs/2401.06121"
OWN = "own definition, see docs/evaluation.md"
OPEN_UNLEARNING_URL = "https://arxiv.org/abs/2506.12618"


def _split_metrics(short: str, split: str) -> list[Metric]:
    forget = split == "forget"
    higher = not forget
    ratio: Any = "closer_to_1_better" if forget else "true_better"
    found = [
        Metric(f"{short}_Q_A_Prob", f"probability of the true answer, {split}", TOFU_URL,
               lambda c: metrics.probability(c.of(split), higher_is_better=higher)),
        Metric(f"{short}_Q_A_ROUGE", f"ROUGE-L recall of the greedy answer, {split}", TOFU_URL,
               lambda c: metrics.rouge(c.of(split), higher_is_better=higher)),
        Metric(f"{short}_Q_A_PERT_Prob", f"probability of the wrong answers, {split}", TOFU_URL,
               lambda c: metrics.probability(c.of(split), of="perturbed")),
        Metric(f"{short}_Truth_Ratio", f"truth ratio, {ratio}, {split}", TOFU_URL,
               lambda c: metrics.truth_ratio(c.of(split), ratio)),
    ]  # fmt: skip
    if split in ("forget", "retain"):
        found.append(
            Metric(f"{short}_Q_A_PARA_Prob", f"probability of the paraphrased answer, {split}", TOFU_URL,
                   lambda c: metrics.probability(c.of(split), of="paraphrase", higher_is_better=higher))
        )  # fmt: skip
    else:
        found.append(
            Metric(f"{short}_Q_A_Prob_normalised", f"probability of the true answer among the options, {split}", TOFU_URL,
                   lambda c: metrics.normalised_probability(c.of(split)))
        )  # fmt: skip
    return found


def _sampling_metrics(split: str) -> list[Metric]:
    higher = split != "forget"
    url = "https://arxiv.org/abs/2602.10217"
    return [
        Metric(f"{split}_sampled_ROUGE", f"ROUGE-L recall of sampled answers, temperature 1, {split}", url,
               lambda c: metrics.sampled_rouge(c.of(split), higher_is_better=higher)),
        Metric(f"{split}_sampled_verbatim", f"chance that a sampled answer is the true one word for word, {split}", url,
               lambda c: metrics.verbatim_leak(c.of(split), 1, higher_is_better=higher)),
        Metric(f"{split}_ended", f"share of greedy answers that end by themselves, {split}", OWN,
               lambda c: metrics.ended(c.of(split))),
        Metric(f"{split}_perplexity", f"perplexity of greedy answers under the base model, {split}", url,
               lambda c: metrics.base_perplexity(c.of(split))),
        Metric(f"{split}_sampled_perplexity", f"perplexity of sampled answers under the base model, {split}", url,
               lambda c: metrics.base_perplexity(c.of(split), sampled=True)),
    ]  # fmt: skip


def _leakage_metrics() -> list[Metric]:
    return [
        Metric("reference_kl", "KL(reference || model) between next-token distributions at forget answers, nats a token",
               "https://arxiv.org/abs/1911.04933", lambda c: metrics.reference_kl(c.of("forget"))),
        Metric("reference_same_top", "share of contexts with the reference's most likely token, forget answers",
               "https://arxiv.org/abs/1911.04933", lambda c: metrics.reference_same_top(c.of("forget"))),
        Metric("forget_reference_perplexity", "perplexity of greedy answers under the reference model, forget", OWN,
               lambda c: metrics.reference_perplexity(c.of("forget"), (c.reference or {}).get("forget", ()))),
        Metric("forget_leaked", "share of greedy answers that hold a fact of the true answer, forget",
               "https://arxiv.org/abs/2511.04934", lambda c: metrics.greedy_leaks(c.of("forget"))),
        Metric("forget_leak_rate", "share of sampled answers that hold a fact of the true answer, with its exact bound, forget",
               "https://arxiv.org/abs/2410.03523", lambda c: metrics.sampled_leaks(c.of("forget"))),
        Metric("forget_leak_at_n", "leak@k for k = all sampled answers: chance that one of them holds a fact, forget",
               "https://arxiv.org/abs/2511.04934", lambda c: metrics.leak_at_k(c.of("forget"))),
        Metric("misattribution", "share of greedy forget answers that hold a value of a retain answer",
               OWN, lambda c: metrics.greedy_misattribution(c.results)),
    ]  # fmt: skip


def _attack(name: str, url: str) -> Metric:
    return Metric(f"mia_{name}", f"AUC of the membership attack {name}, forget against holdout", url,
                  lambda c: metrics.membership(c.results, name, reference=c.reference))  # fmt: skip


def _ks_tokens(value: TokenValue, words: str, url: str) -> Metric:
    return Metric(f"forget_ks_{value}", f"distance D of the answer tokens' {words} from the reference's, forget", url,
                  lambda c: metrics.ks_tokens(c.of("forget"), c.known("reference").get("forget", ()), value))  # fmt: skip


METRICS: tuple[Metric, ...] = (
    Metric("forget_quality", "p-value: truth ratios on forget as those of a model that never saw it?", TOFU_URL,
           lambda c: metrics.forget_quality(c.results, c.reference)),
    Metric("ks_distance", "distance D of the truth ratios on forget from the reference's", TOFU_URL,
           lambda c: metrics.ks_distance(c.results, c.reference)),
    Metric("forget_quality_arithmetic", "the same with the paper's arithmetic mean over wrong answers", TOFU_URL,
           lambda c: metrics.forget_quality(c.results, c.reference, mean="arithmetic")),
    _ks_tokens("log_probs", "log-probabilities", OWN),
    _ks_tokens("standardised", "log-probabilities, standardised as in Min-K++,", "https://arxiv.org/abs/2404.02936"),
    Metric("model_utility", "harmonic mean of nine on retain, real authors, world facts", TOFU_URL,
           lambda c: metrics.model_utility(c.results)),
    Metric("mu_rouge", "harmonic mean of ROUGE-L recall on retain, real authors, world facts", "https://arxiv.org/abs/2602.10217",
           lambda c: metrics.mu_rouge(c.results)),
    *_split_metrics("forget", "forget"),
    *_split_metrics("retain", "retain"),
    *_split_metrics("ra", "real_authors"),
    *_split_metrics("wf", "world_facts"),
    Metric("exact_memorization", "share of answer tokens that are the argmax, forget", "https://arxiv.org/abs/2205.10770",
           lambda c: metrics.exact_memorisation(c.of("forget"))),
    Metric("extraction_strength", "share of an answer that greedy decoding completes, forget", "https://arxiv.org/abs/2012.07805",
           lambda c: metrics.extraction_strength(c.of("forget"))),
    _attack("loss", "https://arxiv.org/abs/1709.01604"),
    _attack("zlib", "https://arxiv.org/abs/2012.07805"),
    _attack("min_k", "https://arxiv.org/abs/2310.16789"),
    _attack("min_k_plus_plus", "https://arxiv.org/abs/2404.02936"),
    _attack("reference", "https://arxiv.org/abs/2012.07805"),
    Metric("privleak", "Min-K AUC relative to the reference's; 0 is best", "https://arxiv.org/abs/2407.06460",
           lambda c: metrics.privleak(c.results, c.reference)),
    Metric("memorization_score", "harmonic mean of 1 - memorisation metrics", OPEN_UNLEARNING_URL,
           lambda c: metrics.memorisation_score(c.results)),
    Metric("privacy_score", "harmonic mean of 1 - |AUC - AUC of the reference|", OPEN_UNLEARNING_URL,
           lambda c: metrics.privacy_score(c.results, c.known("reference"))),
    Metric("utility_score", "model utility relative to that before unlearning", OPEN_UNLEARNING_URL,
           lambda c: metrics.utility_score(c.results, c.target)),
    Metric("aggregate_score", "harmonic mean of memorisation, privacy and utility score", OPEN_UNLEARNING_URL,
           lambda c: metrics.aggregate_score(c.results, c.known("reference"), c.target)),
    *_sampling_metrics("forget"),
    *_leakage_metrics(),
    Metric("forget_best_of_n_ROUGE", "highest ROUGE-L recall among sampled answers, forget", "https://arxiv.org/abs/2602.10217",
           lambda c: metrics.best_of_n_rouge(c.of("forget"))),
    *_sampling_metrics("retain"),
)  # fmt: skip


def evaluate(
    results: Results, reference: Results | None = None, target: Results | None = None
) -> tuple[dict[str, MetricResult], dict[str, str]]:
    """Every metric that the results allow, and for the others why not.

    Args:
        results: of the model in question.
        reference: of a model that never saw the forget set.
        target: of the model before unlearning.
    """
    compared = Compared(results, reference, target)
    found: dict[str, MetricResult] = {}
    reasons: dict[str, str] = {}
    for metric in METRICS:
        try:
            found[metric.name] = metric.compute(compared)
        except DataError as error:
            reasons[metric.name] = str(error)
    return found, reasons


# --- a run ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TofuRun:
    """A finished run: where it is, whether it was there already, its samples, metrics, and what could not be computed."""

    directory: Path
    reused: bool
    results: Results
    metrics: dict[str, MetricResult]
    not_computed: dict[str, str]
    seconds: dict[str, float]


def run_tofu(
    model: Any,
    tokenizer: Any,
    data: Mapping[str, Sequence[Item]],
    output_dir: Path,
    *,
    config: TofuConfig | None = None,
    measuring: MeasureConfig | None = None,
    examples: ExampleConfig | None = None,
    reference: str | Path | None = None,
    reference_model: BaseModel | None = None,
    target: str | Path | None = None,
    describe: Mapping[str, Any] | None = None,
    plan: Plan = PLAN,
    overwrite: bool = False,
    progress: bool = True,
) -> TofuRun:
    """Measure a model on TOFU and write the run folder.

    The samples of a finished run with the same key (weights, adapter, data, options) are reused, and an interrupted one resumes.
    One with another key is refused, or with `overwrite` replaced at the end.

    Args:
        model: any object with the forward and generate of a transformers causal LM: plain, PEFT, `T3ForCausalLM`.
        data: as `load_tofu` gives it.
        output_dir: made if needed; other files in it are refused.
        reference, target: results (anything that `read_log` reads) of a model that never saw the forget set, and of the model
            before unlearning.
        reference_model: a model that never saw the forget set, run beside `model` at the forget answers.
        describe: how the model was named, for the record.
        plan: which splits get what.
        overwrite: measure again even if the key is the same, and replace a run with another.

    Raises:
        TemperTiltError: a file, an option or the directory is not usable; each says what is valid.
    """
    config, measuring, examples = config or TofuConfig(), measuring or MeasureConfig(), examples or ExampleConfig()
    others = [None if path is None else read_log(path) for path in (reference, target)]
    standardised = ("forget", "holdout")
    questions = {
        split: questions_of(items, tokenizer, examples, standardise=split in standardised) for split, items in data.items()
    }
    for split, items in data.items():
        check_questions(model, tokenizer, items, questions[split])
    options = {**asdict(config), **asdict(measuring), **asdict(examples)}
    if plan != PLAN:
        options["plan"] = asdict(plan)
    if reference_model is not None:
        _check_same_tokens(tokenizer, reference_model.tokenizer)
        options["reference_digest"] = model_digest(reference_model.model)
    weights = model_digest(model)
    key = run_key(weights, data, questions, options)
    _check_directory(output_dir)
    # sampled answers are units by themselves: to want more of them, or none, undoes nothing else
    part_key = run_key(weights, data, questions, {name: options[name] for name in options.keys() - {"draws", "seed"}})
    if overwrite:
        (output_dir / JOURNAL).unlink(missing_ok=True)
    journal = Journal(output_dir / JOURNAL, part_key)
    samples, seconds = (None, {}) if overwrite or journal.units else _finished(output_dir, key)
    reused = samples is not None
    if samples is None:
        other = None if reference_model is None else reference_model.model
        samples, seconds = _measure(model, tokenizer, data, questions, plan, measuring, output_dir, journal, other, progress)
    found, reasons = evaluate(samples, *others)
    content = {
        "suite": "tofu",
        "key": key,
        "model": {**(describe or {}), "digest": weights},
        "questions": {split: len(of) for split, of in samples.items()},
        "reference": None if reference is None else str(reference),
        "target": None if target is None else str(target),
        "samples_sha256": _sha256(output_dir / SAMPLES),
        "metrics": {name: result.summary() for name, result in found.items()},
        "not_computed": reasons,
    }
    write_text(output_dir / CONFIG, yaml.safe_dump({"suite": "tofu", **(describe or {}), **options}, sort_keys=True))
    write_text(output_dir / RESULTS, json_text(content, indent=1) + "\n")
    journal.remove()
    return TofuRun(output_dir, reused, samples, found, reasons, seconds)


def _check_same_tokens(tokenizer: Any, other: Any) -> None:
    if tokenizer.get_vocab() != other.get_vocab():
        raise DataError(
            "the reference model's tokenizer has other tokens than the model's; must be the same: name a reference of the same "
            "base model"
        )


def _check_directory(directory: Path) -> None:
    make_dir(directory)
    remove_unfinished(directory)
    ours = {
        RESULTS,
        CONFIG,
        ENVIRONMENT,
        TIMING,
        JOURNAL,
        SAMPLES,
        COMPRESSED,
        "report.html",
        "report.md",
        "report.tex",
        "report.json",
    }
    if foreign := sorted(path.name for path in directory.iterdir() if path.name not in ours):
        raise TemperTiltError(f"{str(directory)!r} holds other files ({', '.join(foreign[:5])}); name a new or empty directory")


def _finished(directory: Path, key: str) -> tuple[Results | None, dict[str, float]]:
    """The samples of the run `key`, if it is finished here."""
    if not (directory / RESULTS).is_file():
        return None, {}
    try:
        content = json.loads((directory / RESULTS).read_text(encoding="utf-8"))
        known = content["key"], content["samples_sha256"]
        seconds = json.loads((directory / TIMING).read_text(encoding="utf-8"))["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(directory / RESULTS)!r} is damaged ({error}); measure again with --overwrite") from error
    if known[0] != key:
        raise TemperTiltError(
            f"{str(directory)!r} holds the results of another model, other data or other options; name another directory, or "
            "replace them with --overwrite"
        )
    if _sha256(directory / SAMPLES) != known[1]:
        raise DataError(f"{str(directory / SAMPLES)!r} is not what this run wrote; measure again with --overwrite")
    log.warning("%s holds the samples of this model, data and options: reused", directory)
    return read_log(directory), seconds


def _sha256(path: Path) -> str:
    """The hash of the content of a file, compressed or not; empty where there is none, or not a whole one."""
    try:
        return hashlib.sha256(read_stored(path)).hexdigest()
    except OSError:
        return ""


def _measure(
    model: Any,
    tokenizer: Any,
    data: Mapping[str, Sequence[Item]],
    questions: Any,
    plan: Plan,
    config: MeasureConfig,
    directory: Path,
    journal: Journal,
    reference: Any,
    progress: bool,
) -> tuple[Results, dict[str, float]]:
    """Samples and seconds, written into the run folder; the results of an earlier run stay until all is measured."""
    if journal.units:
        log.warning("going on with an interrupted run: %d parts are done", len(journal.units))
    samples, seconds = measure(model, tokenizer, data, questions, plan, config, journal, reference=reference, progress=progress)
    for name in (RESULTS, SAMPLES, COMPRESSED):
        (directory / name).unlink(missing_ok=True)
    ordered = {split: samples[split] for split in SPLITS if split in samples}
    write_text(directory / SAMPLES, write_samples(ordered))
    write_text(directory / ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")
    answers = {split: sum(len(q.answers) for q in of) for split, of in questions.items()}
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    timing = {"seconds": seconds, "answers_scored": answers, "peak_memory_mib": peak_memory_mib()}
    write_text(directory / TIMING, json.dumps(timing, indent=1) + "\n")
    return read_log(directory), seconds
