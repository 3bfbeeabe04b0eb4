"""Imported when the command `lm_eval` starts (by tempertilt_lm_eval.pth): makes its model name `t3` known, loading nothing yet.

lm-evaluation-harness has no entry points for models. A failure here must not keep another program from starting.
"""

from __future__ import annotations

import contextlib

with contextlib.suppress(Exception):
    from lm_eval.api.registry import model_registry

    if "t3" not in model_registry:
        model_registry.register("t3", target="tempertilt.integrations.lm_eval:T3LM")
