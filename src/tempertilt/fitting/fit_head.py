"""Fit the guidance head, by one of two objectives.

"classify": balanced binary cross-entropy of retain against forget tokens on stored features (Block et al., arXiv 2602.10217:
AdamW, 100 epochs, batches of 32). The tilt is then log sigmoid of the log-odds.

"match": the guided distribution itself is fitted to what a model that never saw the records would say at each token of their
answers (`estimate`). The tilt is then the log-odds, without a bound: where the gate is open, all text is about the records.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from tempertilt.config.options import Options, option
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.fitting.estimate import Targets
from tempertilt.fitting.features import Features
from tempertilt.guidance.head import ACTIVATIONS, GuidanceHead
from tempertilt.guidance.tilt import TiltConfig, guided_columns

log = logging.getLogger("tempertilt")

OBJECTIVES = ("classify", "match")
OPTIMIZERS = ("adamw", "lbfgs")
IN_MEMORY_BYTES = 2 * 2**30  # features up to this size are copied to the device once
CHUNK_TOKENS = 16384  # rows evaluated at a time where all are


@dataclass(frozen=True)
class FitConfig(Options):
    """How the head is built and trained. An epoch is one pass over the forget records, as in the paper."""

    objective: str = option("classify", "classify (the paper) or match (the estimated distribution)", choices=OBJECTIVES)
    rank: int = option(20, "rank r of the head", ge=1, hint="the paper uses 20 and 50")
    activation: str = option("identity", "activation of the head", choices=tuple(ACTIVATIONS), advanced=True)
    num_hidden_layers: int = option(1, "hidden layers of the head", ge=1, advanced=True)
    optimizer: str = option("adamw", "adamw (the paper) or lbfgs (full batch)", choices=OPTIMIZERS, advanced=True)
    learning_rate: float = option(1e-2, "AdamW's learning rate", gt=0)
    weight_decay: float = option(1e-2, "AdamW's decoupled weight decay; lbfgs: penalty w/2 |x|^2 / tokens", ge=0, advanced=True)
    epochs: int = option(100, "epochs of AdamW, or iterations of lbfgs", ge=1)
    fit_batch_size: int = option(32, "records in a batch of AdamW, half retain and half forget", ge=2, advanced=True)
    class_balance: bool = option(True, "weight retain and forget equally, else each token", advanced=True)
    held_out_fraction: float = option(
        0.1, "share of the documents held out to measure, and to stop early", ge=0, lt=1, advanced=True
    )
    early_stopping: bool = option(
        False, "choose the number of epochs on the held-out documents, then fit all for as many", advanced=True
    )
    patience: int = option(10, "epochs without a better held-out loss before stopping early", ge=1, advanced=True)
    match_steps: int = option(280, "match: steps of AdamW", ge=1, advanced=True)
    match_batch_size: int = option(1024, "match: contexts in a step", ge=1, advanced=True)
    token_weight: float = option(
        0.3, "match: weight of the error in the log-probability of the records' own tokens", ge=0, advanced=True
    )
    retain_weight: float = option(
        0.1,
        "match: weight of the divergence from the base at retain contexts",
        ge=0,
        advanced=True,
    )
    seed: int = option(0, "seed of initial weights, batches and held-out documents", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping and self.held_out_fraction == 0:
            raise ConfigError("held_out_fraction is 0; must be > 0 with early_stopping, which needs held-out documents")


class Scores(NamedTuple):
    """Mean loss (nats a token, classes weighted as in training) and token accuracy of each class; NaN where empty."""

    loss: float
    retain_accuracy: float
    forget_accuracy: float


@dataclass(frozen=True)
class FitResult:
    """A fitted head and how well it separates.

    `train` is of the returned head on all records; `held_out` is of a head that was fitted without the held-out documents,
    on those documents (None if there are too few documents), `held_out_log_odds` what that head says at the last token of each of
    their examples, (retain, forget), nats. `parameter_share` is the trained numbers over the base's.
    """

    head: GuidanceHead
    train: Scores
    held_out: Scores | None
    held_out_documents: int
    epochs: int
    seconds: float
    num_parameters: int
    parameter_share: float
    history: list[dict[str, float]]
    held_out_log_odds: tuple[np.ndarray, np.ndarray] | None = None

    def summary(self) -> dict[str, Any]:
        """Everything but the head, JSON-ready."""
        out = {
            name: value for name, value in self.__dict__.items() if name not in ("head", "train", "held_out", "held_out_log_odds")
        }
        return out | {"train": self.train._asdict(), "held_out": self.held_out._asdict() if self.held_out else None}


def guidance_loss(log_odds: Tensor, is_retain: Tensor, class_balance: bool = True) -> Tensor:
    """Binary cross-entropy with logits, retain = 1 and forget = 0, nats.

    Args:
        log_odds: `(N,)`, of the target token at each position.
        is_retain: `(N,)` bool.
        class_balance: mean of the two class means; else the mean over all tokens. A class without tokens counts 0.

    Returns:
        A scalar.
    """
    per_token = F.softplus(torch.where(is_retain, -log_odds, log_odds))
    if not class_balance:
        return per_token.mean()
    retain = is_retain.to(per_token.dtype)
    means = [(per_token * of).sum() / of.sum().clamp(min=1) for of in (retain, 1 - retain)]
    return (means[0] + means[1]) / 2


def fit_head(
    retain: Features,
    forget: Features,
    config: FitConfig,
    *,
    base_parameters: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FitResult:
    """Fit a head that tells retain from forget tokens.

    With `held_out_fraction`, a head is first fitted without some documents of each class and measured on them. With
    `early_stopping` that also chooses the number of epochs. The head that is returned is fitted on every record.

    Args:
        retain, forget: features of the two classes, of one store.
        base_parameters: number of parameters of the base model, for `parameter_share`.
        device: where to fit.

    Raises:
        TemperTiltError: the loss is no longer finite.
    """
    clock = Clock()
    split = split_documents(retain, forget, config)
    epochs, held_out, log_odds = config.epochs, None, None
    history: list[dict[str, float]] = []
    with clock("fit"):
        if split is not None:
            (retain_in, forget_in), (retain_out, forget_out) = split
            trial = _Trainer(retain_in, forget_in, config, device)
            watched = _Data(retain_out, forget_out, device)
            epochs, history, held_out = trial.run(config.epochs, watched, progress=progress)
            log_odds = trial.last_log_odds(watched)
        trainer = _Trainer(retain, forget, config, device)
        _, full_history, _ = trainer.run(epochs, None, progress=progress)
    head = trainer.head.to("cpu")
    return FitResult(
        head=head,
        train=trainer.scores(trainer.data),
        held_out=held_out,
        held_out_documents=0 if split is None else len({*split[1][0].documents}) + len({*split[1][1].documents}),
        epochs=epochs,
        seconds=clock.seconds["fit"],
        num_parameters=head.num_parameters,
        parameter_share=head.num_parameters / base_parameters if base_parameters else math.nan,
        history=history or full_history,
        held_out_log_odds=log_odds,
    )


def split_documents(
    retain: Features, forget: Features, config: FitConfig
) -> tuple[tuple[Features, Features], tuple[Features, Features]] | None:
    """Hold out a share of each class's documents, whole: ((retain, forget) kept, (retain, forget) held out).

    At least one document of each class is held out and one kept; None where a class has a single one, or the share is 0.
    """
    if config.held_out_fraction == 0:
        return None
    rng = np.random.default_rng(config.seed)
    kept, out = [], []
    for features in (retain, forget):
        names = sorted(set(features.documents))
        if len(names) < 2:
            log.info("a class has one document: nothing is held out")
            return None
        count = min(len(names) - 1, max(1, round(config.held_out_fraction * len(names))))
        chosen = {names[i] for i in rng.permutation(len(names))[:count]}
        inside = [i for i, document in enumerate(features.documents) if document not in chosen]
        outside = [i for i, document in enumerate(features.documents) if document in chosen]
        kept.append(features.subset(inside))
        out.append(features.subset(outside))
    return (kept[0], kept[1]), (out[0], out[1])


class _Data:
    """Retain and forget features side by side: examples 0..R-1 are retain, the rest forget."""

    def __init__(self, retain: Features, forget: Features, device: torch.device | str) -> None:
        self.parts = (retain, forget)
        self.device = torch.device(device)
        self.num_retain, self.num_forget = len(retain), len(forget)
        self.lengths = np.concatenate([retain.lengths, forget.lengths])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._all: tuple[Tensor, Tensor] | None = None
        if int(self.lengths.sum()) * retain.hidden_size * 4 <= IN_MEMORY_BYTES:
            features, targets = zip(*(part.gather(range(len(part))) for part in self.parts))
            self._all = torch.cat(features).to(self.device), torch.cat(targets).to(self.device)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Features `(N, d)`, targets `(N,)` and is_retain `(N,)` of the examples at `indices`."""
        is_retain = torch.from_numpy(np.repeat(np.asarray(indices) < self.num_retain, self.lengths[indices])).to(self.device)
        if self._all is not None:
            rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in indices])
            where = torch.from_numpy(rows).to(self.device)
            return self._all[0][where], self._all[1][where], is_retain
        inside = (
            [i for i in indices if i < self.num_retain],
            [i - self.num_retain for i in indices if i >= self.num_retain],
        )
        assert list(indices) == inside[0] + [i + self.num_retain for i in inside[1]], "retain comes first"
        features, targets = zip(*(part.gather(which) for part, which in zip(self.parts, inside) if which))
        return torch.cat(features).to(self.device), torch.cat(targets).to(self.device), is_retain

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All examples, in order, in batches of about `CHUNK_TOKENS` rows."""
        chunk: list[int] = []
        size = 0
        for i, length in enumerate(self.lengths):
            chunk.append(i)
            size += int(length)
            if size >= CHUNK_TOKENS or i == len(self.lengths) - 1:
                yield self.batch(chunk)
                chunk, size = [], 0

    def class_tokens(self) -> tuple[int, int]:
        """Number of retain and of forget tokens."""
        return int(self.lengths[: self.num_retain].sum()), int(self.lengths[self.num_retain :].sum())


class _Trainer:
    """One head, its data and its optimiser."""

    def __init__(self, retain: Features, forget: Features, config: FitConfig, device: torch.device | str) -> None:
        self.config = config
        self.data = _Data(retain, forget, device)
        tokens = torch.cat([retain.target_tokens(), forget.target_tokens()]).unique(sorted=True)
        head = GuidanceHead(retain.hidden_size, config.rank, tokens, config.activation, config.num_hidden_layers)
        head.reset_parameters(torch.Generator().manual_seed(config.seed))
        self.head = head.to(self.data.device)
        self.rng = np.random.default_rng(config.seed)

    def run(self, epochs: int, watched: _Data | None, *, progress: bool) -> tuple[int, list[dict[str, float]], Scores | None]:
        """Train; return the best number of epochs, the history, and the scores of `watched` at that point."""
        step = self._adamw_epoch() if self.config.optimizer == "adamw" else self._lbfgs_epoch()
        best: tuple[float, int, Scores | None] = (math.inf, epochs, None)
        history: list[dict[str, float]] = []
        stop_early = self.config.early_stopping and watched is not None
        for epoch in tqdm(range(1, epochs + 1), desc="fit", unit=" epochs", disable=not progress):
            entry = {"epoch": epoch, "train_loss": step()}
            if not math.isfinite(entry["train_loss"]):
                raise TemperTiltError(
                    f"the head's loss is {entry['train_loss']} in epoch {epoch}; "
                    f"lower learning_rate ({self.config.learning_rate})"
                )
            if watched is not None and (stop_early or epoch == epochs):
                scores = self.scores(watched)
                entry["held_out_loss"] = scores.loss
                if scores.loss < best[0] or not stop_early:
                    best = (scores.loss, epoch, scores)
            history.append(entry)
            if stop_early and epoch - best[1] >= self.config.patience and best[2] is not None:
                break
        return best[1], history, best[2]

    def _adamw_epoch(self) -> Callable[[], float]:
        config, data = self.config, self.data
        optimizer = torch.optim.AdamW(
            self.head.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=data.device.type in ("cpu", "cuda"),
        )
        half = max(1, config.fit_batch_size // 2)
        retain = _endless(self.rng, data.num_retain)

        def epoch() -> float:
            order = self.rng.permutation(data.num_forget) + data.num_retain
            losses = []
            for start in range(0, len(order), half):
                forget = order[start : start + half].tolist()
                indices = [next(retain) for _ in forget] + forget
                optimizer.zero_grad(set_to_none=True)
                loss = self._loss(*data.batch(indices))
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            return float(torch.stack(losses).mean())

        return epoch

    def _lbfgs_epoch(self) -> Callable[[], float]:
        parameters = list(self.head.parameters())
        optimizer = torch.optim.LBFGS(parameters, max_iter=1, max_eval=10, history_size=20, line_search_fn="strong_wolfe")
        penalty = self.config.weight_decay / sum(self.data.class_tokens())

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = sum((parameter.square().sum() for parameter in parameters), torch.zeros(())) * penalty / 2
            loss.backward()
            total = loss.detach()
            for _, _, part in self._passes(self.data):
                part.backward()
                total = total + part.detach()
            return total

        return lambda: float(optimizer.step(closure))

    def _loss(self, features: Tensor, targets: Tensor, is_retain: Tensor) -> Tensor:
        return guidance_loss(self._log_odds(features, targets), is_retain, self.config.class_balance)

    def _log_odds(self, features: Tensor, targets: Tensor) -> Tensor:
        return self.head.score(self.head.project(features), self.head.rows_of(targets))

    def _passes(self, data: _Data) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Log-odds, is_retain and a part of the loss, of all of `data` in chunks; the parts add up to `guidance_loss`."""
        retain_tokens, forget_tokens = data.class_tokens()
        if self.config.class_balance:
            weights = 0.5 / max(1, retain_tokens), 0.5 / max(1, forget_tokens)
        else:
            weights = (1 / (retain_tokens + forget_tokens),) * 2
        for features, targets, is_retain in data.chunks():
            log_odds = self._log_odds(features, targets)
            per_token = F.softplus(torch.where(is_retain, -log_odds, log_odds))
            yield log_odds, is_retain, (per_token * torch.where(is_retain, weights[0], weights[1])).sum()

    @torch.no_grad()
    def last_log_odds(self, data: _Data) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds at the last scored token of each example, float64: retain `(R,)` and forget `(F,)`."""
        every = torch.cat([self._log_odds(features, targets) for features, targets, _ in data.chunks()])
        last = every.double().cpu().numpy()[data.starts[1:] - 1]
        return last[: data.num_retain], last[data.num_retain :]

    @torch.no_grad()
    def scores(self, data: _Data) -> Scores:
        """Loss and accuracy of each class over all of `data`. A token without a row has log-odds 0, which is not right."""
        right, loss = torch.zeros(2, dtype=torch.long), 0.0
        for log_odds, is_retain, part in self._passes(data):
            right[0] += ((log_odds > 0) & is_retain).sum().cpu()
            right[1] += ((log_odds < 0) & ~is_retain).sum().cpu()
            loss += float(part)
        retain, forget = (int(n) / total if total else math.nan for n, total in zip(right, data.class_tokens()))
        return Scores(loss, retain, forget)


def _endless(rng: np.random.Generator, n: int) -> Iterator[int]:
    """0..n-1 in random order, again and again in a new one."""
    while True:
        yield from rng.permutation(n).tolist()


# --- match ---------------------------------------------------------------------------------------------------------------


class Retained(NamedTuple):
    """Retain contexts: last states `(M, d)`; by the base log p of K tokens `(M, K)`, log sum p^(1/T) of the rest `(M,)`."""

    states: Tensor
    base: Tensor
    base_rest: Tensor


@dataclass(frozen=True)
class MatchResult:
    """A head that was fitted to targets, and how near it came.

    Attributes:
        head: with a bias; its log-odds are the tilt.
        divergence: mean KL(target || guided) over contexts, nats, at the end of the fit.
        token_error: mean absolute error of the log-probabilities of the records' own tokens, nats.
        seconds: wall time.
        num_parameters, parameter_share: trainable parameters, and their share of the base's.
    """

    head: GuidanceHead
    divergence: float
    token_error: float
    seconds: float
    num_parameters: int
    parameter_share: float

    def summary(self) -> dict[str, Any]:
        """Everything but the head, JSON-ready."""
        return {name: value for name, value in self.__dict__.items() if name != "head"}


def match_targets(
    targets: Targets,
    retained: Retained | None,
    config: FitConfig,
    tilt: TiltConfig,
    *,
    base_parameters: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> MatchResult:
    """Fit a head so that the guided distribution comes near the targets.

    The loss is the cross-entropy of the guided distribution from the target, `token_weight` times the (Huber) error of the
    log-probability of the record's own token, and `retain_weight` times the cross-entropy from the base at retain contexts.

    Args:
        targets: contexts of forget answers and what is wanted there.
        retained: retain contexts; None where there are none.
        tilt: temperature and prior of the guided distribution; the scale is 1.

    Raises:
        TemperTiltError: the loss is no longer finite.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(config.seed)
    hidden_size = targets.states.shape[1]
    options = (config.activation, config.num_hidden_layers, True)
    head = GuidanceHead(hidden_size, config.rank, targets.token_ids, *options)
    head.reset_parameters(generator)
    head.to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.99 * step / config.match_steps)
    batches = _batches_of(len(targets.rows), config.match_batch_size, generator)
    retain_batches = None
    if retained is not None and config.retain_weight:
        retain_batches = _batches_of(len(retained.base_rest), max(1, config.match_batch_size // 4), generator)
    for step in tqdm(range(config.match_steps), desc="fit", unit=" steps", disable=not progress):
        rows = next(batches)
        guided, rest = _guided(head, targets.states[rows], targets.base[rows], targets.base_rest[rows], tilt, device)
        target, target_rest = (part[rows].to(device) for part in (targets.target, targets.target_rest))
        own = targets.rows[rows].to(device)[:, None]
        loss = -(target.exp() * guided).sum(-1).mean() - (target_rest.exp() * rest).mean()
        loss = loss + config.token_weight * F.smooth_l1_loss(guided.gather(1, own), target.gather(1, own))
        if retain_batches is not None and retained is not None:
            some = next(retain_batches)
            kept = (retained.states[some], retained.base[some], retained.base_rest[some])
            guided, rest = _guided(head, *kept, tilt, device)
            base = kept[1].to(device)
            left = (1 - base.exp().sum(-1)).clamp(min=0.0)  # of the rest, which `kept` has tempered
            loss = loss + config.retain_weight * (-(base.exp() * guided).sum(-1) - left * rest).mean()
        if not bool(loss.isfinite()):
            raise TemperTiltError(f"the head's loss is not finite in step {step}; lower learning_rate ({config.learning_rate})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    head = GuidanceHead.from_tensors(head.tensors(), head.activation)  # as it is stored
    divergence, token_error = _nearness(head.to(device), targets, tilt, device)
    head = head.to("cpu")
    count = head.num_parameters
    share = count / base_parameters if base_parameters else math.nan
    return MatchResult(head, divergence, token_error, time.perf_counter() - started, count, share)


def _batches_of(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of `size` random numbers below `count`, each number as often as any other."""
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def _guided(
    head: GuidanceHead, states: Tensor, base: Tensor, rest: Tensor, tilt: TiltConfig, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Guided log-probabilities of the head's tokens `(n, K)` and of the rest `(n,)`, from the base's; the rest is tempered."""
    return guided_columns(base.to(device), rest.to(device), head(head.project(states.to(device))), tilt)


@torch.no_grad()
def _nearness(head: GuidanceHead, targets: Targets, tilt: TiltConfig, device: torch.device | str) -> tuple[float, float]:
    """Mean KL(target || guided) and mean absolute error of the own tokens' log-probabilities, nats, on up to 4096 contexts."""
    step = max(1, len(targets.rows) // 4096)
    divergences, errors = [], []
    for rows in torch.arange(0, len(targets.rows), step).split(1024):
        guided, rest = _guided(head, targets.states[rows], targets.base[rows], targets.base_rest[rows], tilt, device)
        target, target_rest = (part[rows].to(device) for part in (targets.target, targets.target_rest))
        own = targets.rows[rows].to(device)[:, None]
        divergences.append((target.exp() * (target - guided)).sum(-1) + target_rest.exp() * (target_rest - rest))
        errors.append((guided.gather(1, own) - target.gather(1, own)).abs()[:, 0])
    return float(torch.cat(divergences).mean()), float(torch.cat(errors).mean())
