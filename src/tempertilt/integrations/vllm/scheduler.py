"""The engine's scheduler, which keeps what is remembered of one model's requests from those of another.

What the engine's cache holds of a token depends on the model that the request names, from the first token on. Blocks of the cache
are found by the tokens before them and a salt. So the model's name goes into the salt of every request, in the engine's core,
whichever way the request came in.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from tempertilt.integrations.vllm.options import model_of


def make_scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """The scheduler that the engine would have made, with the model's name in the keys of its cache."""
    if vllm_config.scheduler_config.async_scheduling:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Scheduler
    else:
        from vllm.v1.core.sched.scheduler import Scheduler
    return _by_model(Scheduler)(vllm_config, *args, **kwargs)


@functools.cache
def _by_model(base: type[Any]) -> type[Any]:
    return type(base.__name__, (_ByModel, base), {"__module__": __name__})


class _ByModel:
    """Put before a scheduler of vLLM."""

    def add_request(self, request: Any) -> None:
        """Take a request up."""
        salt_by_model(request)
        super().add_request(request)  # type: ignore[misc]


def salt_by_model(request: Any) -> None:
    """Put the model that a request names into its salt, and compute the keys of its blocks anew."""
    params = request.sampling_params
    request.cache_salt = json.dumps([model_of(params and params.extra_args), request.cache_salt])
    request.block_hashes.clear()
    request.update_block_hashes()
