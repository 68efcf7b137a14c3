"""What our engines are started with, and what of vLLM they rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import vllm
from torch import Tensor

from sasa.core.boundary import Boundary
from sasa.serving.requests import Wanted

VERSIONS = ("0.32.",)
"""vLLM's versions that this was tested with."""
CLASS = "Sasa"
"""What our model classes are called: this and vLLM's own name."""
KEY = "sasa"
"""Where our settings stand in vLLM's `additional_config`."""
HOME = "sasa.serving.vllm"
RELIES_ON: dict[str, tuple[str, ...]] = {
    "vllm.v1.engine.input_processor:InputProcessor": ("_build_logits_processors_params_validator",),
    "vllm.v1.core.sched.scheduler:Scheduler": ("_update_after_schedule", "update_from_output"),
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler": (),
    "vllm.v1.worker.gpu.model_states.default:DefaultModelState": ("custom_sampler", "add_request"),
    "vllm.v1.worker.gpu.sample.sampler:Sampler": (
        "add_request",
        "apply_staged_writes",
        "apply_sampling_params",
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        "_calc_spec_decode_metadata",
        "_input_fits_in_drafter",
    ),
    "vllm.v1.sample.sampler:Sampler": ("apply_logits_processors",),
}
"""Names of vLLM that its documentation promises nothing about."""


def supported() -> bool:
    """Whether vLLM's version is one that this was tested with."""
    return vllm.__version__.startswith(VERSIONS)


def check_vllm() -> None:
    """Raises ImportError where vLLM is another one than this was written for, with what it lacks."""
    if not supported():
        raise ImportError(
            f"vLLM {vllm.__version__} is not supported, but {', '.join(v + '*' for v in VERSIONS)} is"
        )
    for home, names in RELIES_ON.items():
        module, name = home.split(":")
        kind = getattr(__import__(module, fromlist=[name]), name, None)
        if missing := [
            each for each in ("__init__", *names) if not callable(getattr(kind, each, None))
        ]:
            raise ImportError(
                f"vLLM {vllm.__version__}: {home} has no {', '.join(missing)}, which sasa relies on"
            )


@dataclass(frozen=True)
class Served:
    """What an engine was started with.

    Attributes:
        boundaries: the file of each that requests may name.
        defaults: what holds for requests that ask for nothing, as `sasa_*` without the prefix.
        fingerprints: of the boundaries, in the order of their layers: vLLM keeps compiled models by its configuration, and
            another boundary in the same file may need other layers.
    """

    boundaries: dict[str, str]
    defaults: dict[str, Any]
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, config: Any) -> Served | None:
        """From vLLM's configuration; None where it is not our engine."""
        found = (config.additional_config or {}).get(KEY)
        return None if found is None else cls(**found)

    def load(self) -> dict[str, Boundary]:
        """Its boundaries; that they fit the model was checked when the engine was started."""
        found = {name: Boundary.load(file) for name, file in self.boundaries.items()}
        if changed := [
            name for name, one in found.items() if one.fingerprint != self.fingerprints[name]
        ]:
            raise ValueError(
                f"boundary {', '.join(changed)} has changed since the engine was started"
            )
        return found

    def wanted(self, params: Any) -> Wanted:
        return Wanted.parse(params.extra_args or {}, self.defaults, tuple(self.boundaries))


def of_first_rank(values: Tensor) -> Tensor:
    """Values as the first of several tensor-parallel ranks has them: all must read the same candidate next, and sums of
    theirs may differ in the last bit.
    """
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    return values if group.world_size == 1 else group.broadcast(values, 0)


class Counting:
    """What vLLM's workers can be asked besides (`worker_extension_cls`)."""

    def sasa_counts(self: Any) -> dict[str, int]:
        """Engine steps and candidates read since the engine was started."""
        runner = self.model_runner
        return dict(getattr(runner.sampler, "counts", None) or runner.rejection_sampler.counts)
