"""Both gates of an adapter: which states they are made of, and where users' turns begin."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tempertilt.data.batches import spread
from tempertilt.data.examples import Example, ExampleConfig, build_examples, encode_question, shared_prefix
from tempertilt.data.records import Message, Record
from tempertilt.data.subjects import subject_words, words_of
from tempertilt.data.variants import (
    BY_NAME,
    FORM,
    NAME_FIRST,
    NOTE,
    OTHER_KINDS,
    Variant,
    about_strangers,
    asked_of_others,
    draw_variants,
    scrambles,
)
from tempertilt.errors import DataError
from tempertilt.fitting.features import Features
from tempertilt.fitting.fit_gate import GateConfig, GateFit, fit_gate, fitted_threshold, heard_threshold, raised_threshold
from tempertilt.fitting.fit_turns import fit_turns
from tempertilt.fitting.later_turns import after_a_turn, followed_up
from tempertilt.fitting.passes import answer_states
from tempertilt.fitting.readers import GateReaders
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import Gates
from tempertilt.models.limits import positions, room
from tempertilt.models.lower import lower_states

log = logging.getLogger("tempertilt")

PIECE = 16  # tokens of a plain text that exemplars are to hear by themselves: it may be quoted from any place
MOST_VARIANTS = 600  # of forget prompts in all: of few records more are drawn of each, up to one of each kind
RETAIN_VARIANTS = 192  # of retain prompts in all
NAMES_FIRST = 96  # retain documents of which texts that begin with a name, or with hardly more, are looked at
PROBE = "zebra 12"  # shows where a prompt's own text begins
SPECIAL_RATIO = -2.3  # log ratio below which a token is the records' own: a model that never saw them gives it a tenth


@dataclass(frozen=True)
class GatesFit:
    """Both gates, and how each separates what it was not made of."""

    gates: Gates
    asked: GateFit
    said: GateFit | None
    seconds: float

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "layer": self.gates.layer,
            "asked": self.asked.summary(),
            "said": self.said.summary() if self.said is not None else None,
            "turns_told": self.gates.turns is not None,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class GateInputs:
    """What gates are made of: records, their examples and features; of the retained ones background text, too.

    `ratios (N,)` are log density ratios of the forget answers' tokens, in their order; None where they were not estimated.
    """

    forget_records: Sequence[Record]
    retain_records: Sequence[Record]
    forget_examples: Sequence[Example]
    retain_examples: Sequence[Example]
    forget: Features
    retain: Features
    ratios: Tensor | None


def fit_gates(
    model: Any,
    tokenizer: Any,
    inputs: GateInputs,
    config: GateConfig,
    encoding: ExampleConfig,
    layer: int,
    seed: int = 0,
    readers: GateReaders | None = None,
) -> GatesFit:
    """Fit the input gate on records and variants of their prompts, the output gate on what their answers alone say.

    Args:
        model: the base.
        encoding: how records become tokens.
        layer: number of decoder layers below the states of the input gate.
        seed: of the variants.
        readers: of both gates; made from these states if not given.
    """
    started = time.perf_counter()
    after, related = after_a_turn(inputs.forget_records, inputs.retain_records), _related(inputs)
    forget, retain = _asked_states(inputs, related)

    def states(variants: Sequence[Variant], records: Sequence[Record]) -> TokenStates:
        pairs = variant_states(model, tokenizer, variants, encoding, layer)
        documents = [records[variant.record].document for variant, _ in pairs]
        alone = (NAME_FIRST, NOTE, FORM)  # a name is nothing generic
        prompts = [0 if variant.kind in alone else len(part) for variant, part in pairs]
        texts = [records[variant.record].kind == "text" for variant, _ in pairs]
        return TokenStates([part.half() for _, part in pairs], documents, prompts).cut(texts, PIECE)

    def margins_alone(part: TokenStates, documents: Container[str]) -> TokenStates:
        return part._replace(documents=[None if name in documents else name for name in part.documents])

    if config.variants:
        each = max(config.variants, MOST_VARIANTS // max(1, len(inputs.forget_records)))
        forget += states(draw_variants(inputs.forget_records, each, seed, OTHER_KINDS), inputs.forget_records)
        some = spread(list(inputs.retain_records), RETAIN_VARIANTS // 2)
        first = spread(list({record.document: record for record in inputs.retain_records}.values()), NAMES_FIRST)
        retain += margins_alone(states(draw_variants(some, 2, seed + 1, OTHER_KINDS), some), related)
        retain += margins_alone(states(draw_variants(first, 5, seed + 2, [NAME_FIRST, *BY_NAME]), first), related)
        lines = [*scrambles(inputs.forget_records, seed + 3), *about_strangers(seed + 4)]
        lines += asked_of_others(inputs.forget_records, inputs.retain_records, seed + 5)
        words = states(lines, inputs.forget_records)
        retain += words._replace(documents=[None] * len(words.documents))
    questions = [Variant("as it is", number, record.messages[:-1]) for number, record in enumerate(after)]
    retain += margins_alone(states(questions, after), related)
    asked, said = fit_gate(forget, retain, config.asked, readers and readers.asked), None
    if config.output_gate:
        own, retained = _said_states(inputs)
        if own.states:
            followed = [followed_up(model, tokenizer, some, encoding) for some in (inputs.forget_records, inputs.retain_records)]
            own += _answers(model, tokenizer, followed[0], encoding)
            retained += _answers(model, tokenizer, [*after, *followed[1]], encoding)
            said = fit_gate(own, retained, config.said, readers and readers.said)
        else:
            log.info("no token of the forget answers is the records' own, as far as can be estimated: there is no output gate")
    set_thresholds(asked, said, len(inputs.retain_examples), config)
    turns = fit_turns(tokenizer, encoding, asked.gate.read, lambda prompts: lower_states(model, prompts, layer), positions(model))
    made = Gates(layer, asked.gate, said.gate if said is not None else None, turns, config.close_after)
    gates = Gates.from_tensors(made.tensors(), made.settings).to(asked.gate.mean.device)  # as they are stored
    return GatesFit(gates, asked, said, time.perf_counter() - started)


def set_thresholds(asked: GateFit, said: GateFit | None, retained: int, config: GateConfig) -> None:
    """Set the thresholds by how many left-out retain prompts open the input gate, and how many texts the output gate.

    A question that opens a gate has another answer; a value at the end of an answer may open it when all is said. That a forget
    prompt is heard goes first: where retained texts that the gate was not made with are as near as forget prompts that it was not
    made with, since they share names, they open it.

    Args:
        asked, said: both gates; the first `retained` texts of their evidence are the same.
        retained: number of retain texts.
        config: the usual thresholds, how low that of the input gate may be, and the share of retain texts that the input gate
            may open by mistake, and that the output gate may in addition; half of it where the output gate is sure.
    """
    left_out = asked.prompt_evidence[np.isfinite(asked.prompt_evidence)]
    fitted = fitted_threshold(config.asked_threshold, config.asked_least, left_out, config.false_open)
    asked.gate.threshold = heard_threshold(fitted, config.asked_threshold, asked.heard, config.heard_share)
    if said is None or not len(said.retain_evidence):
        return
    alone = said.retain_evidence[:retained]
    if len(asked.retain_evidence):
        near = asked.gate.comes_near(torch.from_numpy(asked.retain_evidence[:retained])).numpy()
        alone = np.where(near, alone, -np.inf).astype(np.float32)
    said.gate.threshold = raised_threshold(said.gate.threshold, alone, config.false_open)
    if said.gate.sure_threshold is not None:
        every = said.retain_evidence[:retained]
        share = config.false_open / 2
        said.gate.sure_threshold = raised_threshold(said.gate.sure_threshold, every[np.isfinite(every)], share)


def _related(inputs: GateInputs) -> set[str]:
    """Retain documents that name whom the forget records are about, or somebody with a name in common.

    Only their own text can tell them from the forget records. So a gate is never measured without all of such a document: of
    its records one fifth at a time is left out, and none of their variants.
    """
    words = subject_words(inputs.forget_records)
    return {record.document for record in inputs.retain_records if words & words_of(record)}


def _asked_states(inputs: GateInputs, related: Container[str]) -> tuple[TokenStates, TokenStates]:
    """Lower states of the forget and of the retain records, without the tokens with which all of them begin."""
    forget, retain = inputs.forget_examples, inputs.retain_examples
    common = shared_prefix([example.input_ids[:-1] for example in (*forget, *retain)])  # a token remains of each
    states = [[rows[common:] for rows in part.states()] for part in (inputs.forget, inputs.retain)]
    units = [
        f"{name}, {example.record_index}" if name in related else name for name, example in zip(inputs.retain.documents, retain)
    ]
    prompts = [[_prompt(example, common) for example in part] for part in (forget, retain)]
    texts = [inputs.forget_records[example.record_index].kind == "text" for example in forget]
    asked = TokenStates(states[0], inputs.forget.documents, prompts[0]).cut(texts, PIECE)
    return asked, TokenStates(states[1], units, prompts[1])


def _prompt(example: Example, common: int) -> int:
    """Tokens of the prompt behind the `common` ones; of a plain text, all."""
    start = example.first_scored - common
    return start if start > 0 else len(example) - common


def encode_variant(variant: Variant, tokenizer: Any, config: ExampleConfig) -> tuple[list[int], int]:
    """Token ids of a variant's prompt, and the place where its own text begins."""
    if not variant.messages:
        return list(tokenizer(variant.text, verbose=False)["input_ids"]), 0
    if variant.system_prompt is not None:
        config = replace(config, system_prompt=variant.system_prompt)
    ids = encode_question(variant.messages, tokenizer, config)
    probe = (*variant.messages[:-1], Message("user", PROBE))
    return ids, shared_prefix([ids, encode_question(probe, tokenizer, config)])


def variant_states(
    model: Any, tokenizer: Any, variants: Sequence[Variant], config: ExampleConfig, layer: int
) -> list[tuple[Variant, Tensor]]:
    """Variants that the template allows and the model has positions for, with lower states `(n, d)` of what is their own."""
    encoded = []
    for variant in variants:
        try:
            ids, start = encode_variant(variant, tokenizer, config)
        except DataError:  # a template that refuses this setting
            continue
        if ids and room(model, len(ids)) != 0:
            encoded.append((variant, ids, start))
    states = lower_states(model, [ids for _, ids, _ in encoded], layer)
    return [(variant, rows[min(start, len(rows) - 1) :]) for rows, (variant, _, start) in zip(states, encoded)]


def _said_states(inputs: GateInputs) -> tuple[TokenStates, TokenStates]:
    """Last states at tokens that are the forget answers' own, and at all tokens of retain answers."""
    states, _ = inputs.forget.gather(range(len(inputs.forget)))
    special = torch.ones(len(states), dtype=torch.bool) if inputs.ratios is None else inputs.ratios < SPECIAL_RATIO
    lengths = inputs.forget.lengths.tolist()
    parts = [rows[chosen] for rows, chosen in zip(states.split(lengths), special.split(lengths))]
    documents = list(inputs.forget.documents)
    filled = [i for i, rows in enumerate(parts) if len(rows)]
    forget = TokenStates([parts[i] for i in filled], [documents[i] for i in filled])
    rows, _ = inputs.retain.gather(range(len(inputs.retain)))
    return forget, TokenStates(list(rows.split(inputs.retain.lengths.tolist())), inputs.retain.documents)


def _answers(model: Any, tokenizer: Any, records: Sequence[Record], encoding: ExampleConfig) -> TokenStates:
    """Last states at all tokens of the records' answers."""
    if not records:
        return TokenStates([], [])
    examples = build_examples(records, tokenizer, encoding)
    states = answer_states(model, examples).states.split([example.n_scored for example in examples])
    return TokenStates(list(states), [example.document for example in examples])
