"""Made-up run folders of `t3 eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tempertilt.metrics import Draw, Sample
from tempertilt.storage import file_sha256
from tempertilt.suites.logs import write_samples

EVIL = "<script>alert('x')</script> & \"quotes\""
"""A text that would act as HTML; every question and generated answer holds it."""


def make_samples(n: int, shift: float, seed: int, text: str) -> list[Sample]:
    """Samples with everything that a metric may need; `shift` nats make true answers less likely."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        log_probs = tuple((-np.abs(rng.normal(1, 0.5, 6)) - shift).tolist())
        samples.append(
            Sample(
                index=i,
                question=f"Question {i}? {EVIL}",
                answer=f"Answer {i}",
                nll=-float(np.mean(log_probs)),
                paraphrase_nll=float(rng.uniform(1, 2)),
                perturbed_nll=tuple((rng.uniform(1, 2, 5) + shift).tolist()),
                log_probs=log_probs,
                hits=(True, False, True, True, shift == 0, True),
                standardised=log_probs,
                generation=f"{text} {i} {EVIL}",
                rouge1_recall=0.5,
                rougeL_recall=0.4,
                rougeL_f1=0.3,
                base_perplexity=3.0,
                draws=(Draw("a", 0.2, 3.0), Draw("b", 0.3, 4.0)),
            )
        )
    return samples


def write_run(directory: Path, shift: float, seed: int, *, reference: Path | None = None, n: int = 12) -> Path:
    """A run folder whose generated answers begin with its name."""
    directory.mkdir()
    splits = ("forget", "retain", "real_authors", "world_facts", "holdout")
    results = {split: make_samples(n, shift, seed + i, directory.name) for i, split in enumerate(splits)}
    (directory / "samples.jsonl").write_text(write_samples(results))
    content: dict[str, Any] = {"suite": "tofu", "key": "k" * 32, "model": {"model": "m", "digest": "d" * 64}}
    content |= {"reference": None if reference is None else str(reference), "metrics": {}}
    content["samples_sha256"] = file_sha256(directory / "samples.jsonl")
    (directory / "results.json").write_text(json.dumps(content))
    seconds = {"likelihood forget": 3.0, "likelihood retain": 1.0, "greedy forget": 4.0}
    (directory / "timing.json").write_text(json.dumps({"seconds": seconds, "peak_memory_mib": 5.0}))
    (directory / "env.json").write_text(json.dumps({"processor": "P", "cpus": 2, "gpus": [], "packages": {"torch": "2"}}))
    return directory
