"""From a model and questions with their answers to samples: likelihoods in one pass, greedy and sampled answers, fluency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from tempertilt.config.keys import PROTOCOLS, key_of
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.metrics.rouge import rouge_scores
from tempertilt.metrics.samples import Draw, Sample
from tempertilt.models.divergence import divergences
from tempertilt.models.frozen import FrozenLM, switched_off
from tempertilt.models.generation import generate_ids, replies_of, stop_ids
from tempertilt.models.scoring import AnswerScore, Question, Scorer, common_prefix
from tempertilt.suites.items import Item, MeasureConfig, Plan, end_ids
from tempertilt.suites.journal import Journal

COMPARED = "forget"
"""The split at whose answers a model is compared with a reference."""


def run_key(weights: str, splits: Mapping[str, Sequence[Item]], questions: Mapping[str, list[Question]], config: Any) -> str:
    """The key of a run: what decides its samples, which are `model_digest`, text, tokens and options."""
    items = {name: [item.content for item in split] for name, split in splits.items()}
    tokens = {name: [[question.prompt, question.answers] for question in split] for name, split in questions.items()}
    return key_of("examples", "measure", model=weights, items=items, tokens=tokens, config=config)


def model_digest(model: Any) -> str:
    """SHA-256 of every parameter and buffer, the configuration, and the settings of an adapter; hex.

    Raises:
        ConfigError: the object has no parameters to tell it by.
    """
    if not hasattr(model, "state_dict"):
        raise ConfigError(f"{type(model).__name__} has no state_dict, so its results can't be told from another model's")
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config: Any = getattr(model, "config", None)
    settings = {"config": config.to_diff_dict() if hasattr(config, "to_diff_dict") else str(config)}
    if isinstance(model, FrozenLM):
        settings["method"] = model.settings
        if replies_of(model):
            settings["reply"] = PROTOCOLS["reply"]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def measure(
    model: Any,
    tokenizer: Any,
    splits: Mapping[str, Sequence[Item]],
    questions: Mapping[str, list[Question]],
    plan: Plan,
    config: MeasureConfig,
    journal: Journal,
    *,
    reference: Any = None,
    progress: bool = True,
) -> tuple[dict[str, list[Sample]], dict[str, float]]:
    """The samples of every split, and the seconds of each step. What the journal holds is not measured again.

    Args:
        reference: a model that never saw the forget set, to compare with at forget answers.
    """
    work = _Work(model, tokenizer, splits, questions, plan, config, reference)
    units, clock = list(work.units()), Clock()
    with tqdm(total=sum(weight for _, weight, _ in units), desc="measure", unit="answer", disable=not progress) as bar:
        for name, weight, run in units:
            if name not in journal.units:
                with clock(name):
                    rows = run()
                journal.add(name, {"rows": rows, "seconds": clock.seconds[name]})
            bar.set_description(name.rsplit(" ", 1)[0], refresh=False)
            bar.update(weight)
    found: dict[str, list[dict[str, Any]]] = {name: [{} for _ in items] for name, items in splits.items()}
    seconds: dict[str, float] = {}
    for name, _, _ in units:
        step, split, _ = name.split(" ")
        seconds[f"{step} {split}"] = seconds.get(f"{step} {split}", 0.0) + journal.units[name]["seconds"]
        for index, values in journal.units[name]["rows"]:
            found[split][index] |= values
    return {split: [_sample(i, splits[split][i], row) for i, row in enumerate(rows)] for split, rows in found.items()}, seconds


def _sample(index: int, item: Item, values: dict[str, Any]) -> Sample:
    draws = tuple(Draw(**draw) for draw in values.pop("draws", ()))
    measured: dict[str, Any] = {name: _whole(value) if isinstance(value, list) else value for name, value in values.items()}
    return Sample(index=index, question=item.question, answer=item.answer, group=item.group, draws=draws, **measured)


def _whole(values: list[Any]) -> tuple[Any, ...]:
    """The values, or none where one of them was not a finite number, which the journal holds as null."""
    return () if None in values else tuple(values)


Rows = list[tuple[int, dict[str, Any]]]


class _Work:
    """The units of a run: name, weight for the progress bar, and how to do it. They depend on data and options alone."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        splits: Mapping[str, Sequence[Item]],
        questions: Mapping[str, list[Question]],
        plan: Plan,
        config: MeasureConfig,
        reference: Any = None,
    ) -> None:
        self.model, self.tokenizer, self.ends = model, tokenizer, end_ids(tokenizer)
        self.stops = stop_ids(model, tokenizer)
        self.has_gates = getattr(model, "gates", None) is not None
        self.splits, self.questions, self.plan, self.config = splits, questions, plan, config
        batch_tokens = config.batch_tokens or (1024 if model.device.type == "cpu" else 8192)
        prefix = common_prefix([question for of in questions.values() for question in of])
        self.scorer, self.base_scorer = (Scorer(model, batch_tokens, prefix=prefix) for _ in range(2))
        self.reference = None if reference is None else Scorer(reference, batch_tokens, prefix=prefix)

    def units(self) -> Iterator[tuple[str, int, Callable[[], Rows]]]:
        for split, of in self.questions.items():
            scored = any(item.answer for item in self.splits[split])
            for n, batch in enumerate(self.scorer.plan(of) if scored else []):
                yield f"likelihood {split} {n}", sum(len(of[i].answers) for i in batch), _bind(self._likelihood, split, batch)
        if self.reference is not None:
            for n, batch in enumerate(self.scorer.plan(self.questions[COMPARED])):
                yield f"reference {COMPARED} {n}", len(batch), _bind(self._compare, self.reference, batch)
        for split in self.plan.gated if self.has_gates else ():
            for n, batch in enumerate([] if split in self.plan.generated else self._prompts(split)):
                yield f"gate {split} {n}", len(batch), _bind(self._gate, split, batch)
        for split in self.plan.generated:
            for n, batch in enumerate(self._prompts(split)):
                yield f"greedy {split} {n}", len(batch), _bind(self._greedy, split, batch)
        for split in self.plan.drawn if self.config.draws else ():
            for n, batch in enumerate(self._prompts(split, max(1, self.config.draws))):
                yield (
                    f"draws {split} {n}x{self.config.draws}/{self.config.seed}",
                    len(batch) * self.config.draws,
                    _bind(self._draw, split, batch, n),
                )

    def _prompts(self, split: str, each: int = 1) -> list[list[int]]:
        of, size = self.questions.get(split, []), max(1, self.config.generation_batch // each)
        order = sorted(range(len(of)), key=lambda i: -len(of[i].prompt))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _likelihood(self, split: str, batch: list[int]) -> Rows:
        scores = self.scorer.score([self.questions[split][i] for i in batch])
        return [(i, self._likelihood_fields(split, i, of)) for i, of in zip(batch, scores)]

    def _likelihood_fields(self, split: str, i: int, scores: list[AnswerScore]) -> dict[str, Any]:
        item, answer = self.splits[split][i], scores[0]
        first_wrong = 1 if item.paraphrase is None else 2
        row: dict[str, Any] = {"nll": answer.nll, "perturbed_nll": [score.nll for score in scores[first_wrong:]]}
        row["ends"] = self.questions[split][i].answers[0][-1] in self.ends
        if item.paraphrase is not None:
            row["paraphrase_nll"] = scores[1].nll
        if split in self.plan.token_level:
            row["log_probs"] = [_float32(value) for value in answer.log_probs]
            row["hits"] = answer.hits.tolist()
            row["standardised"] = [_float32(value) for value in answer.standardised]
        return row

    def _compare(self, reference: Scorer, batch: list[int]) -> Rows:
        """The next-token distributions of model and reference at answers, two whole sets of logits at a time."""
        questions = [self.questions[COMPARED][i] for i in batch]
        results = divergences(self.model, reference.model, questions, max(1, self.scorer.batch_tokens // 2))
        return [
            (i, {"reference_kl": [_float32(value) for value in result.kl], "reference_same_top": result.same_top.tolist()})
            for i, result in zip(batch, results)
        ]

    def _greedy(self, split: str, batch: list[int]) -> Rows:
        prompts = [self.questions[split][i].prompt for i in batch]
        options: dict[str, Any] = {"max_new_tokens": self.plan.length(split, self.config)}
        ids = [of[0] for of in generate_ids(self.model, self.tokenizer, prompts, **options)]
        perplexities = self._perplexities(split, prompts, [[row] for row in ids])
        rows: Rows = []
        for i, row, perplexity in zip(batch, ids, perplexities):
            text, truth = self._text(row), self.splits[split][i].answer
            values = {"generation": text, **(rouge_scores(truth, text) if truth else {})}
            rows.append((i, values | {"generation_ends": bool(row) and row[-1] in self.stops, "base_perplexity": perplexity[0]}))
        if self.reference is not None and split == COMPARED:
            for (_, values), [value] in zip(rows, _perplexities(self.reference, prompts, [[row] for row in ids])):
                values["reference_perplexity"] = value
        if self.has_gates and split in self.plan.gated:
            for (_, values), gate in zip(rows, highest_gates(self.model, prompts, ids)):
                values["gate"] = gate
        return rows

    def _gate(self, split: str, batch: list[int]) -> Rows:
        """Gates where the first token of the true answer is predicted, of a split whose answers are not generated."""
        questions = [self.questions[split][i] for i in batch]
        gates = highest_gates(self.model, [of.prompt for of in questions], [of.answers[0][:1] for of in questions])
        return [(i, {"gate": gate}) for i, gate in zip(batch, gates)]

    def _draw(self, split: str, batch: list[int], unit: int) -> Rows:
        prompts = [self.questions[split][i].prompt for i in batch]
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self.config.seed} {split} {unit}".encode()).digest()[:8], "big") >> 1)
        options: dict[str, Any] = {"max_new_tokens": self.plan.length(split, self.config), "draws": self.config.draws}
        ids = generate_ids(self.model, self.tokenizer, prompts, **options)
        rows: Rows = []
        for i, of, perplexity in zip(batch, ids, self._perplexities(split, prompts, ids)):
            texts = [self._text(row) for row in of]
            recall = [rouge_scores(self.splits[split][i].answer, text)["rougeL_recall"] for text in texts]
            values = zip(texts, recall, perplexity)
            rows.append((i, {"draws": [dict(zip(("text", "rougeL_recall", "base_perplexity"), value)) for value in values]}))
        return rows

    def _perplexities(
        self, split: str, prompts: Sequence[tuple[int, ...]], generated: list[list[list[int]]]
    ) -> list[list[float | None]]:
        """Perplexity of each generation under the base model, the adapter switched off; None where it is not asked for."""
        if split not in self.plan.drawn:
            return [[None] * len(of) for of in generated]
        with switched_off(self.model):
            return _perplexities(self.base_scorer, prompts, generated)

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _perplexities(
    scorer: Scorer, prompts: Sequence[tuple[int, ...]], generated: list[list[list[int]]]
) -> list[list[float | None]]:
    """Perplexity of each generation after its prompt."""
    questions = [Question(prompt, tuple(map(tuple, rows))) for prompt, rows in zip(prompts, generated)]
    return [[float(torch.tensor(score.nll, dtype=torch.float64).exp()) for score in scores] for scores in scorer.score(questions)]


@torch.inference_mode()
def highest_gates(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
    """The highest gate value before a token of each answer; 0 = the answer is the base's.

    Args:
        model: a `T3ForCausalLM` with gates.
        answers: token ids, at least one each.
    """
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    gates = model.gate_values(ids, mask)
    return [float(gate[len(prompt) - 1 : len(row)].max()) for gate, prompt, row in zip(gates, prompts, rows)]


def _bind(method: Callable[..., Rows], *args: Any) -> Callable[[], Rows]:
    return lambda: method(*args)


def _float32(value: Any) -> float:
    """The shortest decimal that is this float32."""
    return float(f"{float(value):.9g}")
