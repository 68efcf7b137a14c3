"""What writes in place of this process: workers of a Ray cluster, or vLLM's engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sasa.core.settings import BUNDLED, weighted

if TYPE_CHECKING:
    from sasa.decoding.completion import Completion
    from sasa.serving.ray import Ray
    from sasa.serving.vllm import LLM


@dataclass(frozen=True)
class RayOptions:
    """Whether the work is spread over workers, and over which."""

    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Spread the work over workers that each hold the model, one a GPU, else one a "
            "core.",
        ),
    ] = False
    address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="With --ray: auto, the cluster that this machine is in, or HOST:PORT.",
            show_default="workers here",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--ray-workers",
            min=1,
            help="With --ray: at most so many.",
            show_default="all there is room for",
        ),
    ] = None

    def connect(self, model: str | None, device: str | None, dtype: str | None) -> Ray | None:
        """Joins or starts the cluster, and returns its workers; returns None without `--ray`."""
        if not self.ray:
            if self.address is not None or self.workers is not None:
                raise ValueError("--ray-address and --ray-workers belong to --ray: give it, too")
            return None
        from sasa.serving.ray import LOCAL, Ray

        workers = Ray(model, device, dtype, self.address or LOCAL, self.workers)
        workers.connect()
        return workers


def check_engine(engine: str | None, ray: RayOptions) -> None:
    """Raises ValueError for an unknown engine, or for options that an engine does not support."""
    if engine not in (None, "vllm"):
        raise ValueError(f"--engine must be vllm, got {engine!r}")
    if engine:
        import sasa.serving.vllm  # noqa: F401  # raises ImportError that says what is missing
    if engine and ray.ray:
        raise ValueError("--ray does not go with --engine: an engine has workers of its own")


class Engine:
    """vLLM's engine with the boundaries of `--boundary`; called as `World.engine` is.

    It starts when it is first called, once all else has been checked.
    """

    def __init__(
        self, model: str | None, boundaries: list[str] | None, strict: bool, dtype: str
    ) -> None:
        import vllm

        self.name = f"vllm {vllm.__version__}"
        self._boundaries = boundaries or [BUNDLED]
        self._options: dict[str, Any] = dict(model=model, strict=strict, dtype=dtype)
        self._engine: LLM | None = None

    def __call__(self, prompts: list[str], beta: float, **settings: Any) -> list[list[Completion]]:
        from sasa.serving.vllm import LLM

        if self._engine is None:
            names = [weighted(name, "--boundary")[0] for name in self._boundaries]
            self._engine = LLM(boundary=names, **self._options)
        completions = self._engine.complete(prompts, beta, boundary=self._boundaries, **settings)
        return cast("list[list[Completion]]", completions)
