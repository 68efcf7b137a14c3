"""Fits, benchmarks and completions by many workers, on this machine or a cluster: Ray's actors, each with the model.

What is done is cut into shards that do not depend on how many workers there are, and the results are put together in the
shards' order: float64 sums in a fixed order, completions in the order of the prompts. A worker that dies costs its shard,
which another one does again.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sasa.data.tables import local

T = TypeVar("T")
R = TypeVar("R")
LOCAL = "local"
RETRIES = 5
"""How often a worker may die, and a shard be tried anew: one that kills whoever reads it must not go on for ever."""
AHEAD = 4
"""Shards for each worker that are read, or done and waiting for one before them: memory must not grow with the texts."""


@dataclass
class Ray:
    """A `Spread` over the workers of a cluster, which are started when first there is work, and keep the model until
    `close`, or until this object goes.

    Args:
        model, device, dtype: for `sasa.load`, in each worker; a local folder must be there on each machine.
        address: `local` starts workers on this machine; `auto` takes the cluster that this machine is part of; HOST:PORT.
        workers: None for one a GPU, or where there is none one a core.

    Raises:
        ImportError: Ray is not installed. ConnectionError: there is no such cluster. ValueError: more workers than can be
        placed, or what the work itself raises.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    address: str = LOCAL
    workers: int | None = None
    _actors: list[Any] = field(default_factory=list, init=False, repr=False)

    def __call__(self, task: Callable[[Any, Any, T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Spread`; the task, the items and the results must be of a kind that can be pickled."""
        left = iter(items)
        nothing = object()
        shard = next(left, nothing)
        if shard is nothing:
            return
        actors = self._started()
        import ray

        task_there = ray.put(task)
        # A worker that has no place in the cluster yet gets no shard: the others do not wait for it.
        running: dict[Any, tuple[int | None, Any]] = {
            worker.ready.remote(): (None, worker) for worker in actors
        }
        idle: list[Any] = []
        done: dict[int, Any] = {}
        sent = given = 0
        while shard is not nothing or given < sent:
            while shard is not nothing and idle and sent < given + AHEAD * len(actors):
                worker = idle.pop()
                running[worker.do.remote(task_there, shard)] = sent, worker
                sent, shard = sent + 1, next(left, nothing)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            number, worker = running.pop(ready)
            idle.append(worker)
            if number is not None:
                done[number] = ready
            while given in done:
                found = ray.get(done.pop(given))
                if isinstance(found, Failed):
                    raise found.error
                yield found
                given += 1

    def _started(self) -> list[Any]:
        """The workers."""
        self.connect()
        import ray

        if not self._actors:
            count, each = self._places()
            kind = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **each)(Worker)
            device = self.device and self.device.partition(":")[0]
            self._actors = [kind.remote(self._model(), device, self.dtype) for _ in range(count)]
        return self._actors

    def close(self) -> None:
        """Lets the workers go: the places that they take are free again, and more work starts new ones."""
        import ray

        while self._actors:
            ray.kill(self._actors.pop())

    def connect(self) -> None:
        """Joins the cluster, or starts one here; does nothing where that is done."""
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "spreading work needs Ray: pip install 'sasa-decoding[ray]'"
            ) from error
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
        return (
            str(local(self.model).resolve())
            if self.model is not None and local(self.model).exists()
            else self.model
        )

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

    def __init__(self, *model: str | None) -> None:
        import torch

        if cores := os.environ.get("OMP_NUM_THREADS"):  # Ray says how many are this worker's
            torch.set_num_threads(int(cores))
        self.wanted = model
        self.model: Any = None
        self.tokenizer: Any = None

    def ready(self) -> None:
        """Answers as soon as it has a place and no work."""

    def do(self, task: Callable[[Any, Any, Any], Any], item: Any) -> Any:
        """What the task makes of an item."""
        from sasa.models.load import load

        try:
            if self.model is None:
                self.model, self.tokenizer = load(*self.wanted)
            return task(self.model, self.tokenizer, item)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            return Failed(error)
