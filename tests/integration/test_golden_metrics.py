"""SmolLM2 on twelve rows of TOFU against the figures of open-unlearning's own evaluation, from the same token ids.

That code hides every token equal to the pad token from attention, and `<|im_end|>`, which stands inside the sequences, is the
pad token here: its figures are reproduced with `hidden_token_id`, and the correct mask is tested beside it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tempertilt import metrics
from tempertilt.metrics import Sample
from tempertilt.models.base import BaseModel, load_base
from tempertilt.models.generation import generate_ids
from tempertilt.models.scoring import AnswerScore, Question, Scorer

HIDDEN = 2
LAYOUT = 1.3e-4
"""Nats by which that code's cross-entropy is off: it sums exponentials along a strided axis (see the test of it below)."""
SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return {name: json.loads((shared / "golden" / "metrics" / f"{name}.json").read_text())
            for name in ("inputs", "tofu_eval", "mask_quirk", "rows")}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("smollm2", device="cpu")


def as_question(rows: list[dict[str, Any]]) -> Question:
    """One question from rows that share their prompt; every token from the first label on is scored."""
    starts = [next(i for i, label in enumerate(row["labels"]) if label != -100) for row in rows]
    assert all(label != -100 for row, start in zip(rows, starts, strict=True) for label in row["labels"][start:])
    prompt = tuple(rows[0]["input_ids"][: starts[0]])
    return Question(prompt, tuple(tuple(row["input_ids"][len(prompt) :]) for row in rows), 1)


def scored(base: BaseModel, golden: dict[str, Any], name: str, hidden: int | None = HIDDEN) -> list[list[AnswerScore]]:
    of = golden["inputs"][name]
    rows = [of[str(i)] for i in range(len(of))]
    lists = [[row] if "labels" in row else [row[str(j)] for j in range(len(row))] for row in rows]
    return Scorer(base.model, hidden_token_id=hidden).score([as_question(row) for row in lists])


@pytest.fixture(scope="module")
def results(base: BaseModel, golden: dict[str, Any]) -> dict[str, list[Sample]]:
    """The samples of every split, measured with our engine."""
    out: dict[str, list[Sample]] = {}
    for short, split in SPLITS.items():
        answers, wrong = (scored(base, golden, f"{short}_Q_A_{kind}") for kind in ("Prob", "PERT_Prob"))
        para = scored(base, golden, f"{short}_Q_A_PARA_Prob") if f"{short}_Q_A_PARA_Prob" in golden["inputs"] else None
        texts = generated(base, golden, f"{short}_Q_A_ROUGE")
        truths = [row["answer"] for row in golden["rows"][ROWS[short]]]
        out[split] = [
            Sample(
                index=i,
                nll=answers[i][0].nll,
                paraphrase_nll=None if para is None else para[i][0].nll,
                perturbed_nll=tuple(score.nll for score in wrong[i]),
                generation=texts[i],
                **metrics.rouge_scores(truths[i], texts[i]),
            )
            for i in range(12)
        ]
    for side in ("forget", "holdout"):
        token_level = scored(base, golden, f"mia_min_k.{side}")
        texts = [answer_text(base, golden["inputs"][f"mia_zlib.{side}"][str(i)]) for i in range(12)]
        extra = [
            {
                "answer": text,
                "nll": score[0].nll,
                "log_probs": tuple(map(float, score[0].log_probs)),
                "standardised": tuple(map(float, score[0].standardised)),
                "hits": tuple(map(bool, score[0].hits)),
            }
            for text, score in zip(texts, token_level, strict=True)
        ]
        before = out.get(side, [Sample(index=i) for i in range(12)])
        out[side] = [replace(sample, **fields) for sample, fields in zip(before, extra, strict=True)]
    return out


ROWS = {
    "forget": "forget05_perturbed",
    "retain": "retain_perturbed",
    "ra": "real_authors_perturbed",
    "wf": "world_facts_perturbed",
}


def answer_text(base: BaseModel, row: dict[str, Any]) -> str:
    """The labelled text as that code has it: with the line break that the chat template puts after an answer."""
    return str(base.tokenizer.decode([label for label in row["labels"] if label != -100], skip_special_tokens=True))


def generated(base: BaseModel, golden: dict[str, Any], name: str) -> list[str]:
    prompts = [golden["inputs"][name][str(i)]["input_ids"] for i in range(12)]
    rows = generate_ids(base.model, base.tokenizer, prompts, max_new_tokens=64, hidden_token_id=HIDDEN)
    return [base.tokenizer.decode(row[0], skip_special_tokens=True).strip() for row in rows]


def by_index(log: dict[str, Any], name: str, key: str) -> list[Any]:
    values = log[name]["value_by_index"]
    return [values[str(i)][key] for i in range(len(values))]


def test_likelihood_of_every_row(results: dict[str, list[Sample]], golden: dict[str, Any]) -> None:
    log = golden["tofu_eval"]
    for short, split in SPLITS.items():
        for kind, of in (
            ("Prob", lambda sample: sample.nll),
            ("PARA_Prob", lambda sample: sample.paraphrase_nll),
            ("PERT_Prob", lambda sample: sample.perturbed_nll),
        ):
            if f"{short}_Q_A_{kind}" in log:
                expected = by_index(log, f"{short}_Q_A_{kind}", "avg_loss")
                np.testing.assert_allclose([of(sample) for sample in results[split]], expected, rtol=1e-4, atol=LAYOUT)


def test_every_generation_and_its_rouge(results: dict[str, list[Sample]], golden: dict[str, Any]) -> None:
    log = golden["tofu_eval"]
    for short, split in SPLITS.items():
        if f"{short}_Q_A_ROUGE" in log:
            assert [sample.generation for sample in results[split]] == by_index(log, f"{short}_Q_A_ROUGE", "generation")
            for kind in ("rouge1_recall", "rougeL_recall", "rougeL_f1"):
                assert [getattr(sample, kind) for sample in results[split]] == by_index(log, f"{short}_Q_A_ROUGE", kind)


def test_aggregates(results: dict[str, list[Sample]], golden: dict[str, Any]) -> None:
    log = golden["tofu_eval"]

    def close(result: metrics.MetricResult, name: str) -> None:
        assert result.value == pytest.approx(log[name]["agg_value"], rel=1e-4), name

    close(metrics.model_utility(results), "model_utility")
    close(metrics.truth_ratio(results["forget"]), "forget_truth_ratio")
    close(metrics.truth_ratio(results["retain"], "true_better"), "retain_Truth_Ratio")
    close(metrics.truth_ratio(results["real_authors"], "true_better"), "ra_Truth_Ratio")
    close(metrics.normalised_probability(results["real_authors"]), "ra_Q_A_Prob_normalised")
    close(metrics.exact_memorisation(results["forget"]), "exact_memorization")


@pytest.mark.parametrize("attack", ["loss", "zlib", "min_k", "min_k_plus_plus"])
def test_attacks(results: dict[str, list[Sample]], golden: dict[str, Any], attack: str) -> None:
    log = golden["tofu_eval"][f"mia_{attack}"]
    for side in ("forget", "holdout"):
        expected = [log[side]["value_by_index"][str(i)]["score"] for i in range(12)]
        np.testing.assert_allclose(
            np.array(metrics.attack_scores(results[side], attack), float), expected, rtol=1e-4, atol=LAYOUT
        )
    assert metrics.membership(results, attack).value == pytest.approx(log["auc"], abs=1e-12)


def test_privleak(results: dict[str, list[Sample]], golden: dict[str, Any]) -> None:
    assert metrics.privleak(results).value == pytest.approx(golden["tofu_eval"]["privleak"]["agg_value"], rel=1e-6)


def test_memorisation_of_every_row(results: dict[str, list[Sample]], golden: dict[str, Any]) -> None:
    log = golden["tofu_eval"]
    expected = by_index(log, "exact_memorization", "score")
    np.testing.assert_allclose(metrics.exact_memorisation(results["forget"]).per_sample, expected, rtol=1e-6)  # type: ignore[arg-type]
    ours = metrics.extraction_strength(results["forget"]).per_sample
    for value, theirs, sample in zip(ours, by_index(log, "extraction_strength", "score"), results["forget"], strict=True):
        m = len(sample.scored_hits)
        if sample.scored_hits[-1]:
            assert value == pytest.approx(theirs, abs=1e-6)
        else:  # no suffix matches: we say 0, that code says 1/m
            assert value == 0.0 and theirs == pytest.approx(1 / m, abs=1e-6)


def test_the_correct_mask_gives_other_figures(base: BaseModel, golden: dict[str, Any]) -> None:
    quirk = golden["mask_quirk"]
    for hidden, name in ((HIDDEN, "repo_mask"), (None, "true_mask")):
        scores = [score[0] for score in scored(base, golden, "forget_Q_A_Prob", hidden)]
        expected = [row["avg_loss"] for row in quirk[name]]
        np.testing.assert_allclose([score.nll for score in scores], expected, rtol=1e-4, atol=LAYOUT)
        memorised = [score.hits[:-1].mean() for score in scores]
        np.testing.assert_allclose(memorised, quirk["exact_memorization"][name], rtol=1e-6)


def test_float64_sides_with_us_where_the_figures_differ(base: BaseModel, golden: dict[str, Any]) -> None:
    ours = [score[0].nll for score in scored(base, golden, "forget_Q_A_Prob")]
    theirs = by_index(golden["tofu_eval"], "forget_Q_A_Prob", "avg_loss")
    for i in (5, 8):
        row = golden["inputs"]["forget_Q_A_Prob"][str(i)]
        ids, start = torch.tensor([row["input_ids"]]), row["labels"].count(-100)
        with torch.no_grad():
            logits = base.model(input_ids=ids, attention_mask=(ids != HIDDEN).long()).logits[0, start - 1 : -1]
        targets = ids[0, start:]
        exact = -logits.double().log_softmax(-1).gather(-1, targets[:, None]).mean().item()
        strided = torch.nn.functional.cross_entropy(logits[None].transpose(-1, -2), targets[None], reduction="none").mean()
        assert ours[i] == pytest.approx(exact, abs=2e-5)
        assert theirs[i] == pytest.approx(strided.item(), abs=2e-6) and abs(theirs[i] - exact) > 5e-5
