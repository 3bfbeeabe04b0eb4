"""What a folder of `t3 finetune` holds for its readers: a card, and a picture of the loss."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

CARD, CURVE = "README.md", "loss.svg"
WIDTH, HEIGHT, MARGIN = 640, 320, 56


def finetuned_card(base: str, peft_adapter: str | None, losses: Sequence[float], report: dict[str, Any]) -> str:
    """The README.md: what was trained, how to load it, the loss, and every option.

    Args:
        base, peft_adapter: names of the model that was trained.
        losses: by epoch, nats a token.
        report: its `config` and its number of `records`.
    """
    options = "\n".join(f"| {name} | `{value}` |" for name, value in sorted(report["config"].items()))
    epochs = "\n".join(f"| {number} | {loss:.4f} |" for number, loss in enumerate(losses, start=1))
    before = f" with the PEFT adapter `{peft_adapter}` merged into it first" if peft_adapter else ""
    return f"""---
base_model: {json.dumps(base, ensure_ascii=False)}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
---

# LoRA adapter of {base}

Made by `t3 finetune`: LoRA on the upper layers of `{base}`{before}, trained on {report["records"]} records.

## Use

{_use_after_merging(base, peft_adapter) if peft_adapter else _use(base)}

Its tokenizer and chat template are beside it.

## Loss

![loss by step]({CURVE})

| epoch | mean loss, nats a token |
|---|---|
{epochs}

## Options

| option | value |
|---|---|
{options}
"""


def _use(base: str) -> str:
    return f"""```sh
t3 generate --model {shlex.quote(base)} --peft-adapter THIS_DIRECTORY --prompt "..."
```

or `PeftModel.from_pretrained(model, "THIS_DIRECTORY")` on the same model."""


def _use_after_merging(base: str, peft_adapter: str) -> str:
    return f"""It is for `{base}` with the other adapter merged into it, not for `{base}` itself. With that as `model`:

```python
model = PeftModel.from_pretrained(model, {json.dumps(peft_adapter, ensure_ascii=False)}).merge_and_unload()
model = PeftModel.from_pretrained(model, "THIS_DIRECTORY")
```"""


def loss_curve(losses: Sequence[float]) -> str:
    """An SVG picture of the loss by step."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    top, steps = max([*finite, 1e-6]), max(1, len(losses) - 1)
    places = (
        (MARGIN + (WIDTH - 2 * MARGIN) * step / steps, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * loss / top)
        for step, loss in enumerate(losses)
        if math.isfinite(loss)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    left, right, base = MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN
    texts = [
        (left - 8, MARGIN + 4, "end", f"{top:.3g}"),
        (left - 8, base + 4, "end", "0"),
        (left, base + 20, "middle", "1"),
        (right, base + 20, "middle", str(len(losses))),
        (WIDTH / 2, base + 36, "middle", "step"),
        (left, MARGIN - 16, "start", "loss, nats a token"),
    ]
    labels = "".join(f'<text x="{x:g}" y="{y:g}" text-anchor="{end}">{text}</text>' for x, y, end, text in texts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="#fff"/><path d="M{left} {MARGIN}V{base}H{right}" fill="none" stroke="#888"/>'
        f'{labels}<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="1.5"/></svg>\n'
    )
