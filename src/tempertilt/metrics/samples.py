"""What metrics are computed from: one `Sample` for each question of a split, under one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Number = float | None
Value = TypeVar("Value")


@dataclass(frozen=True)
class Draw:
    """One sampled answer: its text, its ROUGE-L recall of the true answer, and its perplexity under the base model."""

    text: str
    rougeL_recall: float
    base_perplexity: Number = None


@dataclass(frozen=True)
class Sample:
    """One question with what a model makes of its answers. None and empty mean: not measured.

    Negative log-likelihoods (`nll`) are means over the answer's tokens, its end-of-sequence token included, in nats.

    Attributes:
        index: position in its split.
        question, answer: as in the data.
        group: the part of the split that it belongs to: a task, a person, a subject.
        nll, paraphrase_nll: of the answer and of its paraphrase.
        perturbed_nll: of the wrong answers.
        log_probs: of the answer's tokens, `(n,)`.
        hits: whether each answer token is the most likely one, `(n,)`.
        standardised: `(log p - mean) / standard deviation` of each answer token under the model's own next-token distribution
            there, `(n,)`.
        ends: whether the last answer token is the end of the sequence.
        generation: the greedy answer.
        rouge1_recall, rougeL_recall, rougeL_f1: of the greedy answer against the true one.
        generation_ends: whether the greedy answer ended by itself, before the limit on its length.
        base_perplexity, reference_perplexity: of the greedy answer under the base model, and under a reference model.
        reference_kl: KL(reference || model) between the next-token distributions before each answer token, nats, `(n,)`.
        reference_same_top: whether both have the same most likely token there, `(n,)`.
        gate: the highest gate value before a token of the greedy answer (of the true one's first token, where none is generated).
        draws: sampled answers, temperature 1.
        scores: values by metric name (min_k, exact_memorization, ...) that a foreign log states in place of what they come from.
    """

    index: int
    question: str = ""
    answer: str = ""
    group: str = ""
    nll: Number = None
    paraphrase_nll: Number = None
    perturbed_nll: tuple[float, ...] = ()
    log_probs: tuple[float, ...] = ()
    hits: tuple[bool, ...] = ()
    standardised: tuple[float, ...] = ()
    ends: bool = True
    generation: str | None = None
    rouge1_recall: Number = None
    rougeL_recall: Number = None
    rougeL_f1: Number = None
    generation_ends: bool | None = None
    base_perplexity: Number = None
    reference_perplexity: Number = None
    reference_kl: tuple[float, ...] = ()
    reference_same_top: tuple[bool, ...] = ()
    gate: Number = None
    draws: tuple[Draw, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def scored_hits(self) -> tuple[bool, ...]:
        """`hits` without the end of the sequence, which is not part of what is memorised."""
        return self.without_end(self.hits)

    def without_end(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Values of the answer's tokens but for the end of the sequence."""
        return values[:-1] if self.ends else values


Samples = Sequence[Sample]

Results = Mapping[str, Samples]
"""The samples of each split: forget, retain, holdout and others, as the suite has them."""
