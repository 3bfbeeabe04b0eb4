"""Families of metrics that suites share."""

from __future__ import annotations

from typing import Any

from tempertilt import metrics
from tempertilt.metrics.divergence import TokenValue
from tempertilt.metrics.membership import ATTACKS
from tempertilt.suites.suite import Metric

TOFU_URL = "https://arxiv.org/abs/2401.06121"
OWN = "own definition, see docs/evaluation.md"
OPEN_UNLEARNING_URL = "https://arxiv.org/abs/2506.12618"


def answer_metrics(short: str, split: str) -> list[Metric]:
    """Likelihoods, ROUGE and truth ratios of a split, as TOFU has them; `short` begins their names."""
    forget = split == "forget"
    higher = not forget
    ratio: Any = "closer_to_1_better" if forget else "true_better"
    of_split = [
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
        of_split.append(
            Metric(f"{short}_Q_A_PARA_Prob", f"probability of the paraphrased answer, {split}", TOFU_URL,
                   lambda c: metrics.probability(c.of(split), of="paraphrase", higher_is_better=higher))
        )  # fmt: skip
    else:
        of_split.append(
            Metric(f"{short}_Q_A_Prob_normalised", f"probability of the true answer among the options, {split}", TOFU_URL,
                   lambda c: metrics.normalised_probability(c.of(split)))
        )  # fmt: skip
    return of_split


def sampling_metrics(split: str) -> list[Metric]:
    """Sampled answers of a split, and how fluent its answers are."""
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


def leakage_metrics() -> list[Metric]:
    """What forget answers give away, and how far they are from a reference's."""
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


def membership_metrics(*, with_reference: bool = False) -> list[Metric]:
    """The membership attacks, forget against holdout; the one that needs results of a reference model only where asked for."""
    return [_attack(name, url) for name, url in ATTACKS.items() if name != "reference" or with_reference]


def _attack(name: str, url: str) -> Metric:
    return Metric(f"mia_{name}", f"AUC of the membership attack {name}, forget against holdout", url,
                  lambda c: metrics.membership(c.results, name, reference=c.reference))  # fmt: skip


def gate_open(split: str, words: str, higher_is_better: bool) -> Metric:
    """Answers under an open gate: recall on what is to be forgotten, false openings elsewhere; `words` name the split."""
    kind = "recall" if higher_is_better else "false openings"
    return Metric(f"{split}_gate_open", f"share of answers under an open gate ({kind}), {words}", OWN,
                  lambda c: metrics.gate_open(c.of(split), higher_is_better=higher_is_better))  # fmt: skip


def unchanged(short: str, split: str, words: str, higher_is_better: bool | None = True) -> Metric:
    """Greedy answers that are those before unlearning; `short` begins the name, `words` name the split."""
    description = f"share of greedy answers that are, letter for letter, those before unlearning, {words}"
    return Metric(f"{short}_unchanged", description, OWN,
                  lambda c: metrics.unchanged(c.of(split), c.before(split), higher_is_better=higher_is_better))  # fmt: skip


def ks_tokens(value: TokenValue, words: str, url: str) -> Metric:
    """A distance of the forget answers' tokens from the reference's."""
    return Metric(f"forget_ks_{value}", f"distance D of the answer tokens' {words} from the reference's, forget", url,
                  lambda c: metrics.ks_tokens(c.of("forget"), c.known("reference").get("forget", ()), value))  # fmt: skip
