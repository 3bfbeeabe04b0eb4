"""GatedRotation: clusters of forget questions, each with a direction into which the residual stream is turned.

After GUARD-IT (Inference-Time Machine Unlearning via Gated Activation Redirection, arXiv 2605.12765): an input that is near a
cluster of forget inputs opens a gate, and the states are turned, their norm unchanged, into the cluster's direction. Here,
other than there:

- Questions are embedded by the base model's own states after the same layer, averaged over the question's tokens and centred,
  not by a sentence-embedding model.
- A cluster's direction is from the mean state of its forget answers to that of all retain answers.
- The gate's threshold lets `false_open` of the retain questions through; it is read once, when the question has ended.
- Only positions that predict the answer are turned, in a second pass beside the base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from tempertilt.config.options import Options, option
from tempertilt.environment import Clock
from tempertilt.errors import ConfigError
from tempertilt.methods.activations import ChangedLayer, layer_at, mean_states
from tempertilt.methods.prompts import Ids, PromptReader, real_rows
from tempertilt.methods.registry import register
from tempertilt.methods.routed import RoutedModel
from tempertilt.methods.steered import Pass
from tempertilt.methods.task import Method, Task, Unlearned
from tempertilt.models.base import decoder_layers
from tempertilt.models.frozen import watch


@dataclass(frozen=True)
class GatedRotationConfig(Options):
    """Options of gate and rotation."""

    strength: float = option(1.0, "length of the shift, in lengths of the state, before its norm is put back", ge=0)
    depth: float = option(0.5, "the layer that is read and turned, as a share of the layers", gt=0, le=1)
    clusters: int = option(4, "clusters of forget questions, at most", ge=1)
    false_open: float = option(0.02, "share of retain questions that may open the gate", ge=0, lt=1)


class Clusters(NamedTuple):
    """Clusters of forget questions, unit rows.

    Attributes:
        mean: of all questions' embeddings, which is taken off `(d,)`.
        centroids: of embeddings `(k, d)`.
        directions: into which states are turned `(k, d)`.
        threshold: the cosine to a centroid above which the gate is open.
    """

    mean: Tensor
    centroids: Tensor
    directions: Tensor
    threshold: float


def rotated(states: Tensor, directions: Tensor, strength: float) -> Tensor:
    """|h| u / |u|, u = h + strength |h| v, for states h `(..., d)` and unit directions v `(..., d)`; v = 0 changes nothing."""
    norms = states.norm(dim=-1, keepdim=True)
    turned = states + strength * norms * directions
    turned = turned * norms / turned.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.where(directions.abs().sum(-1, keepdim=True) > 0, turned, states)


@torch.no_grad()
def question_state(base: Any, before: Sequence[int], question: Ids, layer: int) -> Tensor:
    """Mean state of a question's tokens after a layer, `(d,)` float32, on the CPU."""
    ids = torch.tensor([[*before, *question]], device=base.device)
    with watch(decoder_layers(base)[layer]) as capture:
        base(input_ids=ids, use_cache=False)
    assert capture.states is not None
    return capture.states[0, len(before) :].float().mean(0).cpu()


class GatedRotationModel(RoutedModel):
    """The base model, whose states are turned in answers to questions near a cluster."""

    def __init__(self, base: Any, reader: PromptReader, clusters: Clusters, layer: int, settings: dict[str, Any]) -> None:
        super().__init__(base, reader, settings | {"layer": layer, "threshold": clusters.threshold})
        for name, tensor in clusters._asdict().items():
            if isinstance(tensor, Tensor):
                self.register_buffer(name, tensor)
        self.layer, self.threshold = layer, clusters.threshold
        self.changed = ChangedLayer(base, layer)
        self._known: dict[Ids, int] = {}

    def cluster(self, question: Ids) -> int:
        """The cluster whose gate a question opens, -1 for none."""
        if question not in self._known:
            state = question_state(self.base, self.reader.before, question, self.layer)
            cosines = self.get_buffer("centroids").cpu() @ F.normalize(state - self.get_buffer("mean").cpu(), dim=-1)
            best = int(cosines.argmax())
            self._known[question] = best if float(cosines[best]) > self.threshold else -1
        return self._known[question]

    def is_other(self, question: Ids) -> bool:
        """Whether it opens a gate."""
        return self.cluster(question) >= 0

    def other(self, step: Pass) -> Tensor:
        """Logits of the model whose states are turned where an answer is predicted."""
        directions = self._directions(step)
        strength = self.settings["strength"]
        return self.changed(
            lambda states: rotated(states, directions.to(states), strength), lambda model: step.logits(model, "rotated")
        )

    def _directions(self, step: Pass) -> Tensor:
        """`(B, n, d)` for the new positions; 0 where nothing is turned."""
        known = self.get_buffer("directions")
        out = torch.zeros(*step.tokens.shape, known.shape[1], device=step.tokens.device)
        for row, (ids, where) in enumerate(real_rows(step.tokens, step.mask)):
            found = self.reader.read(ids)
            cluster = -1 if found is None else self.cluster(found[0])
            if found is not None and cluster >= 0:
                out[row, where[found[1] - 1 :]] = known[cluster].to(out)
        return out[:, -step.new :]


def fit_clusters(task: Task, reader: PromptReader, layer: int, config: GatedRotationConfig) -> Clusters:
    """Clusters of the task's forget questions, by k-means on unit vectors."""
    states, embeddings = [], []
    for records in (task.forget, task.retain):
        examples = task.examples_of(records)
        pairs = [(example, reader.read(example.input_ids.tolist())) for example in examples]
        asked = [(example, found[0]) for example, found in pairs if found is not None]
        if not asked:
            raise ConfigError("this method needs records with questions, of both kinds; there are none that can be told apart")
        states.append(mean_states(task.base.model, [example for example, _ in asked], layer))
        embeddings.append(torch.stack([question_state(task.base.model, reader.before, ids, layer) for _, ids in asked]))
    mean = torch.cat(embeddings).mean(0)
    forget, retain = (F.normalize(of - mean, dim=-1) for of in embeddings)
    k = min(config.clusters, len(forget))
    _, labels = kmeans2(forget.double().numpy(), k, minit="++", seed=task.seed, missing="warn")
    members = [torch.from_numpy(labels == c) for c in range(k) if (labels == c).any()]
    centroids = torch.stack([F.normalize(forget[of].mean(0), dim=-1) for of in members])
    directions = torch.stack([F.normalize(states[1].mean(0) - states[0][of].mean(0), dim=-1) for of in members])
    nearest = (retain @ centroids.T).amax(1).numpy()
    threshold = float(np.quantile(nearest, 1 - config.false_open, method="higher"))
    return Clusters(mean, centroids, directions, threshold)


@register("GatedRotation", "https://arxiv.org/abs/2605.12765", GatedRotationConfig)
class GatedRotation(Method):
    """Clusters of forget questions open a gate; then the residual stream is turned, its norm unchanged (after GUARD-IT)."""

    def unlearn(self, task: Task) -> Unlearned:
        """Find clusters, directions and threshold."""
        clock, config = Clock(), self.config
        reader, layer = PromptReader(task.base.tokenizer, task.examples), layer_at(task.base.model, config.depth)
        with clock("reference"):
            clusters = fit_clusters(task, reader, layer, config)
        settings = {"method": "GatedRotation", "strength": config.strength}
        return Unlearned(
            model=GatedRotationModel(task.base.model, reader, clusters, layer, settings),
            seconds=clock.seconds,
            artefact_bytes=4 * sum(tensor.numel() for tensor in clusters if isinstance(tensor, Tensor)),
            details={"clusters": len(clusters.centroids), "threshold": clusters.threshold},
        )
