"""Where should the gate read, and at what evidence should it open?

    python benchmarks/experiments/gate_opening.py --peft-adapter FULL --data DATA [--layers 6 9 12] [--save FILE]

The gate is made as by default but for its layer, without a fifth of the retain authors, five times. For each threshold: the share
of forget prompts, as trained and paraphrased, that open it, and the share of texts that do although they should not: the base's
own greedy and sampled answers, with their prompts, about the authors left out, real authors, world facts and chat. Where the gate
stays shut the unlearned model's answer is the base's. "fit" is what `t3 unlearn` itself can see: kept records under gates made
without them. About half an hour on one core, most of it to generate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from _tofu import Sets, header, load, options, save, states, unseen
from numpy.typing import NDArray
from torch import Tensor

from tempertilt.data.examples import Example, ExampleConfig, encode_prompt, shared_prefix
from tempertilt.data.records import Record
from tempertilt.fitting.background import BackgroundConfig, background_examples
from tempertilt.fitting.fit_gate import GateConfig, TokenStates, fit_gate
from tempertilt.guidance.gate import EvidenceGate
from tempertilt.models.base import BaseModel
from tempertilt.models.generation import generate_ids

THRESHOLDS, OPENED = (0.8, 0.85, 0.9, 0.92, 0.95), 0.995
ASKED = ("retain", "real authors", "world facts", "chat")
TOKENS, BATCH = 64, 32
Evidence = dict[str, NDArray[np.float32]]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=(6, 9, 12))
    args = parser.parse_args()
    base, sets = load(args)
    header("the gate by layer and threshold, made without a fifth of the retain authors")
    texts = gather(base, sets)
    common = shared_prefix([example.input_ids for of in texts.values() for example in of])
    read = {name: states(base, of, args.layers) for name, of in texts.items()}
    results = {}
    for layer in args.layers:
        of_layer = {name: [of[layer][common:].float() for of in rows] for name, rows in read.items()}
        found, exemplars = evidence(texts, of_layer, common, layer)
        print(f"after {layer} layers, {exemplars} exemplars\n  threshold  " + "  ".join(found))
        for threshold in THRESHOLDS:
            shares = {name: float((values > threshold).mean()) for name, values in found.items()}
            print(f"  {threshold:9.2f}  " + "  ".join(f"{share:{len(name)}.3f}" for name, share in shares.items()), flush=True)
            results[f"{layer}, {threshold}"] = {**shares, "exemplars": exemplars}
        steps = np.arange(50, 100) / 100
        highest_step = max((step for step in steps if (found["forget"] > step).mean() >= OPENED), default=float("nan"))
        alarms = float((found["fit"] > highest_step).mean())
        print(
            f"  highest threshold at which {OPENED:.1%} of forget prompts open: {highest_step:.2f}; fit {alarms:.4f}", flush=True
        )
        results[f"{layer}, rule"] = {"threshold": float(highest_step), "fit": alarms}
    if args.save:
        save(args.save, {"results": results})


def gather(base: BaseModel, sets: Sets) -> dict[str, list[Example]]:
    """The texts by set; `greedy` and `sampled` are prompts with the base's own answers."""
    texts = {name: sets.examples(name, base) for name in ("forget", "forget paraphrased", "retain")}
    texts["background"] = background_examples(
        base.model, base.tokenizer, texts["forget"], BackgroundConfig(background=64), ExampleConfig(),
        fingerprint=base.fingerprint, progress=False,
    )  # fmt: skip
    for name in ASKED:
        for kind, draws in (("greedy", None), ("sampled", 1)):
            texts[f"{name}, {kind}"] = answered(base, sets[name], draws)
    return texts


def answered(base: BaseModel, records: Sequence[Record], draws: int | None) -> list[Example]:
    """Each prompt with an answer of the base."""
    prompts = [encode_prompt(record, base.tokenizer, ExampleConfig()) for record in records]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    torch.manual_seed(0)
    options = {} if draws is None else {"draws": draws}
    found: dict[int, Example] = {}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        answers = generate_ids(base.model, base.tokenizer, [prompts[i] for i in rows], max_new_tokens=TOKENS, **options)
        for i, [answer] in zip(rows, answers):
            ids = np.array([*prompts[i], *answer], np.int32)
            found[i] = Example(ids, np.arange(len(ids)) >= len(prompts[i]), records[i].document, "s", i)
    return [found[i] for i in range(len(prompts))]


def evidence(texts: dict[str, list[Example]], rows: dict[str, list[Tensor]], common: int, layer: int) -> tuple[Evidence, int]:
    """The highest evidence of each text, of all folds one after another, and the number of exemplars of the last."""
    documents = [example.document for example in texts["retain"]]
    given = {
        name: [int(example.scored.argmax()) - common for example in texts[name]] for name in ("forget", "forget paraphrased")
    }
    found: dict[str, list[NDArray[np.float32]]] = {}
    exemplars = 0
    for fold, part in enumerate(unseen(documents)):
        inside = [i for i, document in enumerate(documents) if document not in part]
        outside = [i for i, document in enumerate(documents) if document in part]
        kept = TokenStates(
            [*(rows["retain"][i] for i in inside), *rows["background"]],
            [*(documents[i] for i in inside), *(example.document for example in texts["background"])],
        )
        forget = TokenStates(rows["forget"], [example.document for example in texts["forget"]], given["forget"])
        fit = fit_gate(forget, kept, GateConfig(gate=True), layer)
        exemplars = len(fit.gate.margins)
        judged = {name: [of[:n] for of, n in zip(rows[name], given[name])] for name in given}
        for kind in ("greedy", "sampled"):
            judged[f"retain, {kind}"] = [rows[f"retain, {kind}"][i] for i in outside]
            if fold == 0:
                judged |= {f"{name}, {kind}": rows[f"{name}, {kind}"] for name in ASKED[1:]}
        for name, of in judged.items():
            found.setdefault(name, []).append(highest(fit.gate, of))
        found.setdefault("fit", []).append(fit.kept_evidence)
    return {name: np.concatenate(of) for name, of in found.items()}, exemplars


def highest(gate: EvidenceGate, rows: Sequence[Tensor]) -> NDArray[np.float32]:
    """The highest evidence of each text."""
    return np.array([float(gate.evidence(of).amax()) for of in rows], np.float32)


if __name__ == "__main__":
    main()
