"""lm-evaluation-harness: `python -m tempertilt.integrations.lm_eval --model t3 --model_args adapter=DIR --tasks ...`.

The command takes every argument of `lm_eval` and knows one model more. In a program, importing this module registers the model.
"""

from __future__ import annotations

import sys
from typing import Any

from tempertilt.errors import MissingExtraError, TemperTiltError
from tempertilt.models.t3 import load_unlearned

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MissingExtraError("lm-eval", "lm-eval", "the model t3 of lm-evaluation-harness") from error


@register_model("t3")
class T3LM(HFLM):  # type: ignore[misc]
    """An unlearned model for lm-evaluation-harness. It is the harness's `hf` model, loaded with an adapter.

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


def main() -> int:
    """Run the command of the harness on `sys.argv`; exit status 2, and one line, for an adapter or base that can't be loaded."""
    try:
        cli_evaluate()
    except TemperTiltError as error:
        print(f"lm_eval: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
