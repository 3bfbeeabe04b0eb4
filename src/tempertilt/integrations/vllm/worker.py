"""The engine's worker, which tells the model which model each request of a batch names.

`engine_arguments(models=...)` gives it to the engine as `worker_cls`. It is the platform's own worker with a look at what is
scheduled, and two methods for `LLM.collective_rpc`: `add_model(name, options)` and `remove_model(name)`.
"""

from __future__ import annotations

import functools
from typing import Any

from tempertilt.integrations.vllm.options import model_of

WORKERS = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}
OTHERWISE = "vllm.v1.worker.gpu_worker.Worker"


def __getattr__(name: str) -> type[Any]:
    if name != "Worker":
        raise AttributeError(name)
    return _worker_class()


@functools.cache
def _worker_class() -> type[Any]:
    """The platform's worker, with what is ours before it."""
    from vllm.platforms import current_platform
    from vllm.utils.import_utils import resolve_obj_by_qualname

    base = resolve_obj_by_qualname(WORKERS.get(current_platform.device_type, OTHERWISE))
    return type("Worker", (_TellsModels, base), {"__module__": __name__, "__doc__": f"`{base.__name__}` that names models."})


class _TellsModels:
    """Put before a worker of vLLM."""

    model_runner: Any
    _scheduled: dict[str, int] = {}  # noqa: RUF012 - replaced at every step, never changed

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load it, and let it ask."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._model().follow_requests(self._requests)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """A step."""
        self._scheduled = scheduler_output.num_scheduled_tokens
        try:
            return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._scheduled = {}

    def add_model(self, name: str, options: dict[str, Any]) -> None:
        """See `tempertilt.integrations.vllm.models`."""
        self._model().add_model(name, options)

    def remove_model(self, name: str) -> None:
        """See `tempertilt.integrations.vllm.models`."""
        self._model().remove_model(name)

    def _model(self) -> Any:
        return self.get_model()  # type: ignore[attr-defined]

    def _requests(self) -> list[tuple[str | None, int]]:
        """For each request of the batch in its order, the model that it names and how many tokens it has in it."""
        if not self._scheduled:  # a pass that tries the memory out
            return []
        runner = self.model_runner
        return [
            (model_of(runner.requests[request].sampling_params.extra_args), self._scheduled[request])
            for request in runner.input_batch.req_ids
        ]
