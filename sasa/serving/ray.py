"""Fits, benchmarks and completions by many workers, on this machine or a cluster: Ray Data's actors, each with the model.

What is done is cut into shards that do not depend on how many workers there are, and the results are put together in the
shards' order: float64 sums in a fixed order, completions in the order of the prompts. A worker that dies costs its shard,
which another one does again.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sasa.tables import local

T = TypeVar("T")
R = TypeVar("R")
LOCAL = "local"
RETRIES = 5
"""How often a worker may die, and a shard be tried anew: one that kills whoever reads it must not go on for ever."""


@dataclass(frozen=True)
class Ray:
    """A `Spread` over the workers of a cluster.

    Args:
        model, device, dtype: for `sasa.load`, in each worker; a local folder must be there on each machine.
        address: `local` starts workers on this machine; `auto` takes the cluster that this machine is part of; HOST:PORT.
        workers: None for one a GPU, or where there is none one a core.
        progress: Ray's own bars.

    Raises:
        ImportError: Ray is not installed. ConnectionError: there is no such cluster. ValueError: more workers than can be
        placed, or what the work itself raises.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    address: str = LOCAL
    workers: int | None = None
    progress: bool = False

    def __call__(self, task: Callable[[Any, Any, T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Spread`; the task and its results must be of a kind that can be pickled."""
        shards = [{"item": pickle.dumps(item)} for item in items]
        if not shards:
            return
        self.connect()
        import ray.data

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = self.progress
        context.print_on_execution_start = False
        count, each = self._places()
        data = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            Worker,
            fn_constructor_args=(task, self._model(), self.device and self.device.partition(":")[0], self.dtype),
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(count, len(shards))),
            **each,
        )
        for row in data.iter_rows():
            found = pickle.loads(row["result"])
            if isinstance(found, Failed):
                raise found.error
            yield found

    def connect(self) -> None:
        """Joins the cluster, or starts one here; does nothing where that is done."""
        try:
            import ray
        except ImportError as error:
            raise ImportError("spreading work needs Ray: pip install 'sasa-decoding[ray]'") from error
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = dict(logging_level=logging.ERROR, log_to_driver=False)
        if self.address == LOCAL:
            ray.init(address="local", include_dashboard=False, **quiet)
            return
        try:
            if self.address != "auto":  # Ray itself would wait for minutes, and end the process
                host, _, port = self.address.rpartition("//")[2].rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=self.address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at {self.address!r}: {error}") from error

    def _model(self) -> str | None:
        """Workers have a working directory of their own."""
        return str(local(self.model).resolve()) if self.model is not None and local(self.model).exists() else self.model

    def _places(self) -> tuple[int, dict[str, Any]]:
        """How many workers, and what each takes of a machine."""
        import ray

        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        on_gpu = gpus > 0 and not (self.device or "").startswith("cpu")
        most = gpus if on_gpu else cores
        if self.workers is not None and not 1 <= self.workers <= most:
            raise ValueError(
                f"workers must be between 1 and {most}, one a {'GPU' if on_gpu else 'core'} of the cluster, got {self.workers}"
            )
        each: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
        return self.workers or most, each


@dataclass(frozen=True)
class Failed:
    """In place of a result: what a user can mend, which Ray would wrap up, and try again."""

    error: Exception


class Worker:
    """An actor: it loads the model once, and works through shards."""

    def __init__(self, task: Callable[[Any, Any, Any], Any], *model: str | None) -> None:
        import torch

        if cores := os.environ.get("OMP_NUM_THREADS"):  # Ray says how many are this worker's
            torch.set_num_threads(int(cores))
        self.task: Any = task
        self.model: Any = model
        self.loaded: tuple[Any, Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._found(pickle.loads(item))) for item in batch["item"]]}

    def _found(self, item: Any) -> Any:
        import sasa

        try:
            if self.loaded is None:
                self.loaded = sasa.load(*self.model)
            return self.task(*self.loaded, item)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            return Failed(error)
