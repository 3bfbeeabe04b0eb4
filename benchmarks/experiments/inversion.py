"""What the exemplars of an adapter's gates give back to somebody who has the base model, and what making them coarser would cost.

    python benchmarks/experiments/inversion.py --adapter ADAPTER --peft-adapter DIR --data TOFU [--exemplars 60] [--searched 20]

Three attacks, none of which knows the records:

- nearest token: every token of the vocabulary is put at the beginning of a user's turn; the likest to an exemplar of the input
  gate is the guess;
- search: four tokens there, changed one at a time as long as the last one's state comes nearer to the exemplar;
- head: an exemplar of the output gate is taken back to a state by the pseudo-inverse of its reader; what the base would say next
  is the guess.

The exemplars' true tokens are found by running the base over the records. Then the exemplars are made again from those states,
finer and coarser than they are stored, and hearing is measured: variants of the forget prompts, drawn anew, that open the input
gate, and retain records that do, of which the margins are not made.
"""

from __future__ import annotations

import copy
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _tofu import header, load, options, save, states
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from tempertilt.data.batches import spread
from tempertilt.data.examples import ExampleConfig, encode_question, shared_prefix
from tempertilt.data.names import names
from tempertilt.data.records import Message
from tempertilt.data.variants import KINDS, OTHER_KINDS, draw_variants
from tempertilt.fitting.fit_gates import MOST_VARIANTS, encode_variant, variant_states
from tempertilt.fitting.hearing import SEED
from tempertilt.guidance.gate import EvidenceGate, Reader, evidence_of
from tempertilt.models.adapter import load_adapter
from tempertilt.models.base import BaseModel, body_of, decoder_layers
from tempertilt.models.frozen import watch
from tempertilt.models.lower import lower_states, stopped_before

KNOWN = 0.97  # similarity of an exemplar to the state that it was made of
WIDTH, ROUNDS, CHOICES, BATCH = 4, 3, 256, 1024
TOP = 10


@dataclass(frozen=True)
class Source:
    """A token of the records: the text's ids, its place, what it is part of, and its state."""

    ids: list[int]
    place: int
    kind: str
    state: Tensor


def kind_of(tokenizer: Any, ids: Sequence[int], place: int, named: set[str]) -> str:
    """What the word is that a token is part of: a name of the records, a number, or something else."""
    pieces = [tokenizer.decode([token]) for token in ids]
    start, stop = place, place + 1
    while start > 0 and pieces[start][:1].isalnum() and pieces[start - 1][-1:].isalnum():
        start -= 1
    while stop < len(pieces) and pieces[stop][:1].isalnum():
        stop += 1
    word = "".join(pieces[start:stop]).strip().lower()
    if any(char.isdigit() for char in word):
        return "number"
    return "name" if set(re.findall(r"\w+", word)) & named else "other"


def sources(
    exemplars: Tensor, reader: Reader, texts: Sequence[list[int]], rows: Sequence[Tensor], kinds: Callable[..., str]
) -> list[Source | None]:
    """For each exemplar the token of the texts that it was made of; None where none is like it."""
    best, where = torch.full((len(exemplars),), -1.0), [(0, 0)] * len(exemplars)
    for number, states_of in enumerate(rows):
        value, place = (exemplars @ reader.directions(states_of).T).max(1)
        for i in (value > best).nonzero().flatten().tolist():
            best[i], where[i] = value[i], (number, int(place[i]))
    return [
        Source(texts[n], p, kinds(texts[n], p), rows[n][p].float()) if best[i] > KNOWN else None for i, (n, p) in enumerate(where)
    ]


class Attacker:
    """Has the base, the adapter's readers, and its own prompts."""

    def __init__(self, base: BaseModel, layer: int) -> None:
        self.base, self.layer = base, layer
        probe = [encode_question([Message("user", text)], base.tokenizer, ExampleConfig()) for text in ("zebra", "12")]
        self.prefix = probe[0][: shared_prefix(probe)]
        self.cache = DynamicCache()
        with torch.inference_mode():
            body_of(base.model)(input_ids=torch.tensor([self.prefix]), cache=self.cache, use_cache=True)

    @torch.inference_mode()
    def last_states(self, rows: Tensor) -> Tensor:
        """`(N, d)` lower state of the last of some tokens `(N, n)` at the beginning of a user's turn."""
        out = []
        for part in rows.split(BATCH):
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(len(part))
            layers = decoder_layers(self.base.model)
            with watch(layers[self.layer - 1]) as capture, stopped_before(layers[self.layer]):
                body_of(self.base.model)(input_ids=part, cache=cache, use_cache=True)
            assert capture.states is not None
            out.append(capture.states[:, -1].float())
        return torch.cat(out)

    def search(self, exemplar: Tensor, reader: Reader, vocabulary: Tensor, generator: torch.Generator) -> list[int]:
        """Tokens whose last state is like the exemplar, by changing one at a time."""
        likely = (vocabulary @ exemplar).topk(CHOICES // 2).indices
        tokens = likely[torch.randint(8, (WIDTH,), generator=generator)]
        tokens[-1] = likely[0]
        best = -1.0
        for _ in range(ROUNDS):
            before = best
            for place in reversed(range(WIDTH)):
                others = torch.randint(len(vocabulary), (CHOICES // 2,), generator=generator)
                tries = tokens.repeat(CHOICES, 1)
                tries[:, place] = torch.cat([likely, others])
                value, row = (reader.directions(self.last_states(tries)) @ exemplar).max(0)
                if float(value) > best:
                    best, tokens = float(value), tries[int(row)]
            if best == before:
                break
        return [int(token) for token in tokens]


def hits(ranked: Tensor, truth: Sequence[int]) -> tuple[int, int]:
    """How many true tokens come first, and among the first ten, of rows ranked `(N, TOP)`."""
    right = ranked == torch.tensor(truth)[:, None]
    return int(right[:, 0].sum()), int(right.any(1).sum())


def by_kind(found: Sequence[Source], right: Tensor) -> dict[str, list[int]]:
    """Right ones and all, by what the tokens are part of."""
    kinds = {source.kind for source in found}
    return {
        k: [int(sum(bool(r) for s, r in zip(found, right) if s.kind == k)), sum(s.kind == k for s in found)]
        for k in sorted(kinds)
    }


COARSER: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are, 8 bits": lambda f: (f * 127).round() / 127,
    "float32": lambda f: f,
    "4 bits": lambda f: (f * 21).round().clamp(-7, 7) / 21,
    "noise of half the length": lambda f: (
        f + 0.5 * F.normalize(torch.randn(f.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    ),
    "noise of the same length": lambda f: (
        f + F.normalize(torch.randn(f.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    ),
}
SHORTER = (48, 24, 12)


def narrowed(reader: Reader, size: int) -> Reader:
    """The reader with its last `size` directions alone, those in which states differ most."""
    return Reader(reader.mean, reader.matrix[-size:])


def main() -> None:
    """Find what the exemplars were made of, attack, make them coarser, and attack and listen again."""
    parser = options(__doc__)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--exemplars", type=int, default=60, help="of each gate, those from all over")
    parser.add_argument("--searched", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="with which the adapter was made")
    args = parser.parse_args()
    base, sets = load(args)
    header("what exemplars give back")
    gates = load_adapter(args.adapter).guidance.gates
    assert gates is not None and gates.said is not None
    forget, tokenizer = sets["forget"], base.tokenizer
    named = {
        word.lower()
        for r in forget
        for text in (r.question, r.answer)
        for i, j in names(text)
        for word in re.findall(r"\w+", text[i:j])
    }

    def kinds(ids: Sequence[int], place: int) -> str:
        return kind_of(tokenizer, ids, place, named)

    examples = sets.examples("forget", base)
    runs = states(base, examples, (gates.layer, -1))
    each = max(4, MOST_VARIANTS // len(forget))
    variants = [encode_variant(one, tokenizer, ExampleConfig())[0] for one in draw_variants(forget, each, args.seed, OTHER_KINDS)]
    texts = [one.input_ids.tolist() for one in examples]
    lower = [run[gates.layer].float() for run in runs] + [
        rows.float() for rows in lower_states(base.model, variants, gates.layer)
    ]
    asked = [s for s in sources(gates.asked.exemplars, gates.asked.read, [*texts, *variants], lower, kinds) if s]
    said = [
        s for s in sources(gates.said.exemplars, gates.said.read, texts, [r[-1].float() for r in runs], said_kind(kinds)) if s
    ]
    print(f"found {len(asked)} of {len(gates.asked.exemplars)} and {len(said)} of {len(gates.said.exemplars)} exemplars' tokens")
    asked, said = spread(asked, args.exemplars), spread(said, args.exemplars)
    attacker = Attacker(base, gates.layer)
    vocabulary = attacker.last_states(torch.arange(len(tokenizer))[:, None])
    kept = [run[gates.layer].float() for run in states(base, sets.examples("retain", base)[::2], (gates.layer,))]
    fresh = [
        rows.float()
        for _, rows in variant_states(
            base.model, tokenizer, draw_variants(spread(forget, 40), len(KINDS), SEED), ExampleConfig(), gates.layer
        )
    ]
    every = torch.stack(
        [s.state for s in sources(gates.asked.exemplars, gates.asked.read, [*texts, *variants], lower, kinds) if s]
    )
    results: dict[str, Any] = {"exemplars": {"asked": len(asked), "said": len(said)}, "rows": {}}
    print(f"\n{'':<28}nearest token      head              heard              false")
    for name, change in COARSER.items():
        results["rows"][name] = figures(gates.asked, gates.said, change, asked, said, vocabulary, base, (every, fresh, kept))
        show(name, results["rows"][name])
    for size in SHORTER:
        results["rows"][f"{size} numbers"] = figures(
            narrowed_gate(gates.asked, size),
            narrowed_gate(gates.said, size),
            COARSER["as they are, 8 bits"],
            asked,
            said,
            vocabulary,
            base,
            (every, fresh, kept),
        )
        show(f"{size} numbers", results["rows"][f"{size} numbers"])
    if args.save:
        save(args.save, results)
    results["search"] = searched(attacker, gates.asked, spread(asked, args.searched), vocabulary, tokenizer)
    if args.save:
        save(args.save, results)


def said_kind(kinds: Callable[..., str]) -> Callable[..., str]:
    """Of the token that comes after."""
    return lambda ids, place: kinds(ids, min(place + 1, len(ids) - 1))


def narrowed_gate(gate: EvidenceGate, size: int) -> EvidenceGate:
    """The gate with a narrower reader; its exemplars are made again anyway."""
    reader = narrowed(gate.read, size)
    return EvidenceGate(reader, F.normalize(gate.exemplars[:, -size:], dim=-1), gate.margins, threshold=gate.threshold)


def figures(
    asked: EvidenceGate,
    said: EvidenceGate,
    change: Callable[[Tensor], Tensor],
    of_asked: Sequence[Source],
    of_said: Sequence[Source],
    vocabulary: Tensor,
    base: BaseModel,
    heard: tuple[Tensor, Sequence[Tensor], Sequence[Tensor]],
) -> dict[str, Any]:
    """Hits of both attacks on exemplars that were made again, and what the input gate hears with them."""
    made = F.normalize(change(asked.read.directions(torch.stack([s.state for s in of_asked]))), dim=-1)
    ranked = (made @ asked.read.directions(vocabulary).T).topk(TOP).indices
    nearest = [s.ids[s.place] for s in of_asked]
    spoken = F.normalize(change(said.read.directions(torch.stack([s.state for s in of_said]))), dim=-1)
    scale = statistics.median(((s.state - said.mean) @ said.reader.T).norm().item() for s in of_said)
    back = said.mean + scale * spoken @ torch.linalg.pinv(said.reader).T
    with torch.inference_mode():
        guesses = base.model.get_output_embeddings()(back.to(base.model.dtype)).topk(TOP).indices
    following = [s.ids[s.place + 1] for s in of_said]
    every, fresh, kept = heard
    exemplars = F.normalize(change(asked.read.directions(every)), dim=-1)
    margins = torch.stack([(asked.read.directions(rows) @ exemplars.T).amax(0) for rows in kept[::2]]).amax(0)

    def opened(texts: Sequence[Tensor]) -> int:
        return sum(bool(evidence_of(asked.read.directions(rows), exemplars, margins).max() > asked.threshold) for rows in texts)

    return {
        "nearest": [*hits(ranked, nearest), len(nearest)],
        "nearest_by_kind": by_kind(of_asked, (ranked == torch.tensor(nearest)[:, None]).any(1)),
        "head": [*hits(guesses, following), len(following)],
        "head_by_kind": by_kind(of_said, (guesses == torch.tensor(following)[:, None]).any(1)),
        "heard": [opened(fresh), len(fresh)],
        "false": [opened(kept[1::2]), len(kept[1::2])],
    }


def show(name: str, row: dict[str, Any]) -> None:
    """Print a row."""
    print(f"{name:<28}{row['nearest']!s:<19}{row['head']!s:<18}{row['heard']!s:<19}{row['false']}", flush=True)
    print(f"{'':<28}{row['nearest_by_kind']}  {row['head_by_kind']}")


def searched(
    attacker: Attacker, gate: EvidenceGate, some: Sequence[Source], vocabulary: Tensor, tokenizer: Any
) -> dict[str, Any]:
    """What the search finds: last tokens that are right, and of the three before how many occur in what it found."""
    directions, generator = gate.read.directions(vocabulary), torch.Generator().manual_seed(0)
    last = before = pairs = 0
    print("\nsearch: the record's tokens -> what was found")
    for source in some:
        exemplar = gate.read.directions(source.state)
        found = attacker.search(exemplar, gate.read, directions, generator)
        true = source.ids[max(0, source.place - WIDTH + 1) : source.place + 1]
        last += found[-1] == true[-1]
        before += len(set(found[:-1]) & set(true[:-1]))
        pairs += len(set(true[:-1]))
        print(f"  {source.kind:<7}{tokenizer.decode(true)!r} -> {tokenizer.decode(found)!r}", flush=True)
    print(f"last token {last} of {len(some)}, of those before {before} of {pairs}")
    return {"last": [last, len(some)], "before": [before, pairs]}


if __name__ == "__main__":
    main()
