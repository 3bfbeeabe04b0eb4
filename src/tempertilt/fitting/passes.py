"""Passes over answers: the states at their tokens, and what a model says there of the whole vocabulary, a part at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.errors import ModelError
from tempertilt.fitting.features import FeatureConfig
from tempertilt.fitting.workers import batch_features

ROWS = 512  # contexts whose logits over the whole vocabulary are held at a time
LIKELIEST = 6  # likeliest other tokens at a context that are kept
LEAST_REST = 1e-6  # probability of all tokens but some, at least


@dataclass(frozen=True)
class AnswerStates:
    """Last hidden states `(N, d)` at the positions that predict the answers' tokens `(N,)`.

    `lower` has, for each example, the states `(T, d)` of a lower layer at all its tokens, where they were asked for.
    """

    states: Tensor
    tokens: Tensor
    lower: Sequence[Tensor] | None = None


def answer_states(model: Any, examples: Sequence[Example], batch_tokens: int = 2048, *, layer: int | None = None) -> AnswerStates:
    """One pass of a model's body over examples; on CPU, in the order of the examples. Lower states are those after `layer`."""
    config = FeatureConfig(pooling="last")
    states: dict[int, Tensor] = {}
    tokens: dict[int, Tensor] = {}
    lower: dict[int, Tensor] = {}
    for batch in plan_batches(examples, batch_tokens):
        chosen = [examples[i] for i in batch]
        rows, targets, below = batch_features(model, chosen, config, layer)
        sizes = [example.n_scored for example in chosen]
        states |= dict(zip(batch, rows.split(sizes)))
        tokens |= dict(zip(batch, targets.long().split(sizes)))
        if below is not None:
            lower |= dict(zip(batch, below.split([len(example) for example in chosen])))
    numbers = range(len(examples))
    last, targets = (torch.cat([part[i] for i in numbers]) for part in (states, tokens))
    return AnswerStates(last, targets, [lower[i] for i in numbers] if lower else None)


@torch.inference_mode()
def output_logits(model: Any, states: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """Logits float32 that a model makes of last hidden states `(N, d)`, on the states' device.

    They are of all tokens `(N, V)`, or of some `(N, K)`.
    """
    output = model.get_output_embeddings()
    inputs = states.to(output.weight.device, output.weight.dtype)
    if token_ids is None:
        logits = output(inputs).float().to(states.device)
    elif type(output) is torch.nn.Linear:
        rows = token_ids.to(output.weight.device)
        bias = None if output.bias is None else output.bias[rows]
        logits = torch.nn.functional.linear(inputs, output.weight[rows], bias).float().to(states.device)
    else:
        logits = output(inputs)[:, token_ids.to(output.weight.device)].float().to(states.device)
    config = model.config.get_text_config()
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits  # type: ignore[no-any-return]


@torch.inference_mode()
def check_output(model: Any, probe: Example) -> None:
    """Raise `ModelError` unless `output_logits` gives the model's own logits."""
    batch = pad_batch([probe], model.device)
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[batch.predicting].float()
    made = output_logits(model, answer_states(model, [probe]).states)
    if not torch.allclose(own.cpu().log_softmax(-1), made.cpu().log_softmax(-1), rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the output layer in a way that is not known here: fit the head "
            "with --objective classify"
        )


@dataclass(frozen=True)
class Likelihoods:
    """Of each context: log p of its token, entropy in nats, and log sum exp of the logits, `(N,)` each; likeliest other tokens.

    The last are `(N, LIKELIEST)`.
    """

    log_probs: Tensor
    entropies: Tensor
    log_z: Tensor
    likeliest: Tensor

    def only(self, rows: Tensor) -> Likelihoods:
        """Those of some contexts."""
        return Likelihoods(self.log_probs[rows], self.entropies[rows], self.log_z[rows], self.likeliest[rows])


@torch.inference_mode()
def likelihoods(model: Any, found: AnswerStates) -> Likelihoods:
    """What a model says at the contexts of which it made the states."""
    parts = []
    for states, tokens in zip(found.states.split(ROWS), found.tokens.split(ROWS)):
        logits = output_logits(model, states)
        log_z = logits.logsumexp(-1)
        entropy = log_z - ((logits - log_z[:, None]).exp_() * logits).sum(-1)
        own = logits.gather(-1, tokens[:, None])[:, 0] - log_z
        likeliest = logits.scatter_(-1, tokens[:, None], -math.inf).topk(min(LIKELIEST, logits.shape[-1])).indices
        parts.append((own, entropy, log_z, likeliest))
    return Likelihoods(*(torch.cat(column) for column in zip(*parts)))


@torch.inference_mode()
def likeliest_tokens(model: Any, states: Tensor) -> Tensor:
    """The most likely token at each context `(N,)`, of last hidden states `(N, d)`."""
    return torch.cat([output_logits(model, rows).argmax(-1) for rows in states.split(ROWS)])


@torch.inference_mode()
def columns_and_rest(
    model: Any, states: Tensor, token_ids: Tensor, temperature: float = 1.0, log_z: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N, K)` of some tokens, and of all others log sum p^(1/T) `(N,)`.

    `log_z (N,)`, log sum exp of the logits where it is known, saves the logits of the others at T = 1.
    """
    parts = []
    for i, rows in enumerate(states.split(ROWS)):
        if log_z is not None and temperature == 1.0:
            columns = output_logits(model, rows, token_ids) - log_z[i * ROWS : (i + 1) * ROWS, None]
            parts.append((columns, torch.log(-torch.expm1(columns.logsumexp(-1).clamp(max=-LEAST_REST)))))
        else:
            log_probs = output_logits(model, rows).log_softmax(-1)
            parts.append((log_probs[:, token_ids], (log_probs / temperature).index_fill(-1, token_ids, -math.inf).logsumexp(-1)))
    own, rest = zip(*parts)
    return torch.cat(own), torch.cat(rest)
