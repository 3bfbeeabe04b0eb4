"""How little data will do: forget documents, share of the retain set, background text.

    python benchmarks/experiments/data_efficiency.py --peft-adapter FULL --data DATA [--save FILE]

For each setting an adapter is made (guidance scale by the holdout records) and read: the gate on the forget records, on their
paraphrases, on retain authors that it was not made of, on real authors and world facts; P(answer) and greedy recall on the forget
records before and after. About ten minutes on two cores once the features are there.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _tofu import check_records, header, load, options, save, states, unseen

from tempertilt.data.batches import spread
from tempertilt.fitting.before_after import ReportConfig, Summary, likelihoods
from tempertilt.fitting.pipeline import METHODS, unlearn


def main() -> None:
    args = options(__doc__).parse_args()
    base, sets = load(args)
    header("data efficiency of t3")
    recipe = replace(METHODS["t3"], report=ReportConfig(report_records=0, show=0))
    layer = recipe.gate.layer(base.model.config.num_hidden_layers)
    asked = {name: sets.examples(name, base) for name in ("forget paraphrased", "retain", "real authors", "world facts")}
    read = {
        name: [of[layer][: int(example.scored.argmax())] for of, example in zip(states(base, examples, (layer,)), examples)]
        for name, examples in asked.items()
    }
    left_out = unseen([record.document for record in sets["retain"]])[0]
    authors = sorted({record.document for record in sets["forget"]})
    kept = [record for record in sets["retain"] if record.document not in left_out]
    settings: list[tuple[str, int, float, int]] = [(f"{n} forget authors", n, 1.0, 64) for n in (1, 2, 5, 10)]
    settings += [(f"{share:.0%} of the retain records", 10, share, 64) for share in (0.5, 0.25, 0.05)]
    settings += [("no retain set", 10, 0.0, 64), ("no retain set, 1 author", 1, 0.0, 64)]
    settings += [("no background text", 10, 1.0, 0), ("no retain set, 192 texts", 10, 0.0, 192)]
    results: dict[str, Any] = {}
    print(
        f"{'setting':<28} seconds  gate opens: forget, paraphrased, retain left out, real authors, world facts"
        "   P(forget)      recall      scale"
    )
    for title, n, share, background in settings:
        forget = [record for record in sets["forget"] if record.document in authors[:n]]
        config = replace(recipe, background=replace(recipe.background, background=background))
        some = spread(kept, round(share * len(kept))) if share else []
        with tempfile.TemporaryDirectory() as directory:
            made = unlearn(base, check_records(forget, some, sets["holdout"]), Path(directory) / "a", config, progress=False)
        assert made.gate is not None and made.calibration is not None and made.model.gate is not None
        gate = made.model.gate
        paraphrased = [of for of, r in zip(read["forget paraphrased"], sets["forget paraphrased"]) if r.document in authors[:n]]
        outside = [of for of, r in zip(read["retain"], sets["retain"]) if r.document in left_out]

        def opened(of: list[torch.Tensor], gate: Any = gate) -> float:
            return sum(float(gate.evidence(rows.float()).max()) > gate.threshold for rows in of) / len(of)

        rates = [made.gate.coverage, *map(opened, (paraphrased, outside, read["real authors"], read["world facts"]))]
        few = [e for e, r in zip(sets.examples("forget", base), sets["forget"]) if r.document in authors[:n]]
        summary = Summary.of(likelihoods(made.model, spread(few, 40)))
        seconds = sum(value for name, value in made.seconds.items() if name != "evidence")
        results[title] = {"seconds": made.seconds, "opened": rates, "forget": summary.__dict__, "scale": made.calibration}
        print(
            f"{title:<28} {seconds:7.1f}  " + ", ".join(f"{rate:.3f}" for rate in rates)
            + f"   {summary.base_probability:.3f} -> {summary.unlearned_probability:.3f}  "
            f"{summary.base_recalled} -> {summary.unlearned_recalled} of {summary.n}  {made.calibration.guidance_scale:.3f}",
            flush=True,
        )  # fmt: skip
    if args.save:
        save(args.save, {"results": results})


if __name__ == "__main__":
    main()
