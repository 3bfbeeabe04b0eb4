"""lm-evaluation-harness: `lm_eval --model t3 --model_args pretrained=BASE,adapter=DIR --tasks ...`.

The package registers the name when the command `lm_eval` starts (see `register`); in a program, import this module first.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from tempertilt.models.t3 import load_unlearned


@register_model("t3")
class T3LM(HFLM):  # type: ignore[misc]
    """An unlearned model for lm-evaluation-harness, whose `hf` model it is but for loading.

    Args:
        adapter: directory or hub id of the adapter.
        pretrained: base model; by default the one that the adapter names.
        peft_adapter: PEFT adapter of the base; by default the adapter's own.
        temperature, guidance_scale: of the tilt, instead of the adapter's.
        device, dtype, trust_remote_code: as in `tempertilt.load_base`.
        kwargs: the other arguments of the harness's `hf` model (batch_size, max_length, ...).
    """

    def __init__(
        self,
        adapter: str,
        pretrained: str | None = None,
        peft_adapter: str | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
        device: str | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        model, tokenizer = load_unlearned(
            adapter,
            pretrained,
            peft_adapter=peft_adapter,
            device=device or "auto",
            dtype=dtype,
            trust_remote_code=bool(trust_remote_code),
        )
        if temperature is not None:
            model.temperature = float(temperature)
        if guidance_scale is not None:
            model.guidance_scale = float(guidance_scale)
        super().__init__(pretrained=model, tokenizer=tokenizer, **kwargs)
