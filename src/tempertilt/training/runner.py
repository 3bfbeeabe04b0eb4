"""A model in training, with its examples and its objective: what one batch runs, and what is kept of the frozen model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tempertilt.data.batches import Batch, pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError, ModelError
from tempertilt.models.base import decoder_layers
from tempertilt.training.answers import Answers, Frozen
from tempertilt.training.config import TrainConfig
from tempertilt.training.replay import (
    Replay,
    all_logits,
    has_plain_output,
    hidden_states,
    returns_tuple,
    skipped,
    with_lora,
)

PASS_TOKENS = 2048
"""Tokens in a pass of the frozen model."""


class Objective(Protocol):
    """What is trained for.

    Attributes:
        reference: roles whose answers are also wanted under the frozen model.
        hidden_layer: number of the layer whose states `Step.hidden` gives, None if they are not wanted; those
            above do not train.
        hidden_reference: roles of which these states are also wanted under the frozen model.
    """

    reference: tuple[str, ...]
    hidden_layer: int | None
    hidden_reference: tuple[str, ...]

    def loss(self, step: Step) -> Tensor:
        """The loss of one batch, a scalar."""
        ...


class Step:
    """One batch: the answers of each role, run through the model when they are asked for. `epoch` is a fraction."""

    def __init__(self, runner: Runner, indices: dict[str, list[int]], epoch: float) -> None:
        self._runner, self._indices, self.epoch = runner, indices, epoch

    def answers(self, role: str) -> Answers:
        """The answers of a role."""
        return self._runner.answers(self._indices[role])

    @cached_property
    def forget(self) -> Answers:
        """Answers to be forgotten."""
        return self.answers("forget")

    @cached_property
    def retain(self) -> Answers:
        """Retain answers, as many as are to be forgotten."""
        return self.answers("retain")

    @cached_property
    def alternate(self) -> Answers:
        """Other answers to the questions of `forget`, in their order."""
        return self.answers("alternate")

    def numbers(self, role: str) -> list[int]:
        """The numbers of a role's examples, counted over all roles in their order."""
        return self._indices[role]

    def hidden(self, role: str) -> Tensor:
        """States `(N, d)` of the objective's layer at the answer tokens of a role."""
        return self._runner.hidden(self._indices[role])

    def frozen_hidden(self, role: str) -> Tensor:
        """The same under the frozen model."""
        return torch.cat([self._runner.frozen_states[i] for i in self._indices[role]])


def first_trained(layers: int, share: float) -> int:
    """The number of the lowest layer that trains, where a share of the layers does, from the top."""
    return layers - max(1, round(share * layers))


class Runner(nn.Module):
    """A model in training with its examples and its objective; `forward` takes numbers of examples and gives the loss."""

    causal_lm: Any
    layers: nn.ModuleList
    frozen_output: nn.Module

    def __init__(self, model: Any, roles: Mapping[str, Sequence[Example]], objective: Objective, config: TrainConfig) -> None:
        super().__init__()
        self.examples = [example for examples in roles.values() for example in examples]
        starts = np.cumsum([0, *(len(examples) for examples in roles.values())]).tolist()
        self.roles = {role: range(start, stop) for role, start, stop in zip(roles, starts, starts[1:])}
        self.objective = objective
        self.epoch = self.flops = 0.0
        self.frozen: dict[int, tuple[Tensor, Tensor]] = {}
        self.frozen_states: dict[int, Tensor] = {}
        self.plain = has_plain_output(model, self.examples[0])
        places = getattr(model, "hf_device_map", None) or {}
        if len(set(places.values())) > 1:
            self.hf_device_map = places  # the Trainer leaves a model on several GPUs where it is
        model.eval()
        self.__dict__["causal_lm"] = model  # registered below, by itself or inside a PEFT model
        self.__dict__["layers"] = decoder_layers(model)
        self.first = self._first_layer(config)
        self.last = len(self.layers) if objective.hidden_layer is None else objective.hidden_layer + 1
        self.full = config.lora_rank == 0
        self.returns_tuple = returns_tuple(model, self.layers, self.examples[0])
        self.sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.layers]
        output = model.get_output_embeddings()
        self.output_size = sum(p.numel() for p in output.parameters())
        self.__dict__["frozen_output"] = copy.deepcopy(output).requires_grad_(False) if self.full else output
        if self.full:
            self.model = model.requires_grad_(True)
        else:
            model.requires_grad_(False)
            lora: dict[str, Any] = {"rank": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
            self.model = with_lora(model, self.layers, self.first, self.last, **lora)
        cached = self.first > 0 and config.cache_lower_layers
        self.replay = Replay.of(model, self.layers, self.first, self.examples, config.max_cache_gib) if cached else None
        if self.replay is not None:
            self.flops += 2.0 * sum(map(len, self.examples)) * sum(self.sizes[: self.first])

    def _first_layer(self, config: TrainConfig) -> int:
        if config.lora_rank == 0:
            return 0
        first = first_trained(len(self.layers), config.train_layers)
        layer = self.objective.hidden_layer
        if layer is not None and not first <= layer < len(self.layers):
            raise ConfigError(
                f"layer is {layer}; must be {first} to {len(self.layers) - 1}, those that train with train_layers "
                f"{config.train_layers}"
            )
        return first

    def train(self, mode: bool = True) -> Runner:
        """The model stays in eval mode, for frozen references and replayed layers have no dropout; only LoRA's own is on."""
        super().train(False)
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, **indices: Tensor) -> dict[str, Tensor]:
        """The loss of the examples with these numbers, by role, each `(B,)`."""
        step = Step(self, {role: numbers.tolist() for role, numbers in indices.items()}, self.epoch)
        return {"loss": self.objective.loss(step)}

    def answers(self, indices: Sequence[int]) -> Answers:
        """The answers of some examples."""
        return self._answers_and_states(indices)[0]

    def hidden(self, indices: Sequence[int]) -> Tensor:
        """States `(N, d)` of the objective's layer at the answer tokens; the layers above do not run."""
        batch, _ = self._batch(indices)
        seen: dict[str, Any] = {}
        with self._replayed(indices), skipped(self.layers, self.last, self.returns_tuple):
            hook = self.layers[self.last - 1].register_forward_hook(lambda _m, _i, out: seen.__setitem__("state", out))
            try:
                hidden_states(self.causal_lm, batch)
            finally:
                hook.remove()
        state = seen["state"][0] if isinstance(seen["state"], tuple) else seen["state"]
        self._count(batch, self.last, 0)
        return state[batch.targets].float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def run_frozen(self, objective: Objective) -> None:
        """Answers, and states of the objective's layer, before anything is trained (LoRA adds nothing yet), kept by example."""
        if objective.reference and not self.plain:
            raise ModelError(
                f"{type(self.causal_lm).__name__} changes its logits after the output layer; methods that compare with the "
                "frozen model's distribution are not there for such models"
            )
        for role in objective.reference:
            for batch in self._plan(role):
                answers, states = self._answers_and_states(batch)
                assert states is not None
                self.frozen.update(zip(batch, zip(*(self._split(rows, batch) for rows in (-answers.token_nll, states)))))
        for role in objective.hidden_reference:
            for batch in self._plan(role):
                self.frozen_states.update(zip(batch, self._split(self.hidden(batch), batch)))

    def _answers_and_states(self, indices: Sequence[int]) -> tuple[Answers, Tensor | None]:
        """Answers, and the states `(N, d)` that they are predicted from where the output layer alone makes logits of them."""
        batch, examples = self._batch(indices)
        states = None
        with self._replayed(indices):
            if self.plain:
                states = hidden_states(self.causal_lm, batch)[batch.predicting]
                logits = self.causal_lm.get_output_embeddings()(states)
            else:
                logits = all_logits(self.causal_lm, batch)[batch.predicting]
        self._count(batch, len(self.layers), len(logits))
        lengths = torch.tensor([example.n_scored for example in examples], device=logits.device)
        rows = torch.repeat_interleave(torch.arange(len(examples), device=logits.device), lengths)
        targets = batch.input_ids[batch.targets]
        return Answers(logits.float(), targets, rows, len(examples), self._frozen(indices)), states

    def _plan(self, role: str) -> list[list[int]]:
        start = self.roles[role].start
        return [[start + i for i in of] for of in plan_batches([self.examples[i] for i in self.roles[role]], PASS_TOKENS)]

    def _split(self, values: Tensor, indices: Sequence[int]) -> list[Tensor]:
        return [part.clone() for part in values.split([self.examples[i].n_scored for i in indices])]

    def _frozen(self, indices: Sequence[int]) -> Frozen | None:
        if not all(i in self.frozen for i in indices):
            return None
        log_probs, states = zip(*(self.frozen[i] for i in indices))
        return Frozen(torch.cat(log_probs), torch.cat(states), self.frozen_output)

    def _batch(self, indices: Sequence[int]) -> tuple[Batch, list[Example]]:
        examples = [self.examples[i] for i in indices]
        return pad_batch(examples, self.causal_lm.device), examples

    def _replayed(self, indices: Sequence[int]) -> ExitStack:
        stack = ExitStack()
        if self.replay is not None:
            stack.enter_context(self.replay.batch(indices))
        return stack

    def _count(self, batch: Batch, last: int, scored: int) -> None:
        """Add the floating-point operations of one pass."""
        tokens = float(batch.attention_mask.sum())
        run = sum(self.sizes[self.first if self.replay is not None else 0 : last])
        self.flops += 2 * (tokens * run + scored * self.output_size)
        if torch.is_grad_enabled():
            again = 4 if self.full else 2
            self.flops += again * (tokens * sum(self.sizes[self.first : last]) + scored * self.output_size)


@torch.no_grad()
def answer_states(model: Any, examples: Sequence[Example]) -> list[Tensor]:
    """Last hidden states `(n, d)` at the positions that predict each example's scored tokens.

    Raises:
        ModelError: the output layer alone does not make the model's logits of them.
    """
    if not has_plain_output(model, examples[0]):
        raise ModelError(f"{type(model).__name__} changes its logits after the output layer; this method is not there for it")
    states: dict[int, Tensor] = {}
    for indices in plan_batches(examples, PASS_TOKENS):
        batch = pad_batch([examples[i] for i in indices], model.device)
        parts = hidden_states(model, batch)[batch.predicting].split([examples[i].n_scored for i in indices])
        states.update(zip(indices, (part.clone() for part in parts)))
    return [states[i] for i in range(len(examples))]
