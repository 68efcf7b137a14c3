"""Matrix products with few rows on the CPU, in float32, where a pass over K candidates spends its
time.

Reading one token is bound by reading the weights, and so should reading ten be. PyTorch's product
takes three times as long for ten rows as for one, skinny.c half as long again
(benchmarks/skinny.py). It is compiled once, by the machine's own C compiler, for the machine's own
processor. Without a compiler everything works as before, at PyTorch's speed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sasa.models.load import cache_dir

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
MAX_ROWS = 64
"""From here on PyTorch's own product is the faster one (benchmarks/skinny.py)."""

PLAIN = (Tensor, nn.Parameter)
"""Subclasses (quantised, distributed, traced) may have no memory of their own."""

_forwards: weakref.WeakKeyDictionary[
    nn.Module, list[tuple[nn.Linear, Callable[[Tensor], Tensor]]]
] = weakref.WeakKeyDictionary()


@contextmanager
def skinny_linears(model: nn.Module) -> Iterator[None]:
    """Inside, the model's `nn.Linear` layers are `skinny_linear`: 1 to 64 rows in float32 on the
    CPU go to the kernel.

    For passes without gradients. Layers of another class, or with a forward or weights of another
    kind, stay as they are. It does nothing for models on other devices, on systems other than
    Linux, or with the environment's SASA_SKINNY=0.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or kernel() is None:
        yield
        return
    if model not in _forwards:
        _forwards[model] = [
            (layer, functools.partial(_forward, layer))
            for layer in model.modules()
            if type(layer) is nn.Linear and layer.out_features % 4 == 0
        ]
    changed = [
        (layer, forward)
        for layer, forward in _forwards[model]
        if type(layer) is nn.Linear and "forward" not in layer.__dict__
    ]
    # On the instances, and by their dictionaries: nn.Module's own bookkeeping costs more than the
    # whole rest.
    for layer, forward in changed:
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer, _ in changed:
            layer.__dict__.pop("forward", None)


def forget(model: nn.Module) -> None:
    """Has a model's layers looked for again, after some have come or gone: which are fast must not
    depend on history.
    """
    _forwards.pop(model, None)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return skinny_linear(x, layer.weight, layer.bias)


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, faster for few rows, without gradients.

    Args:
        x: (…, k); weight: (n, k); bias: (n,) or None.

    Returns:
        (…, n). What the kernel is not made for goes to PyTorch.
    """
    *shape, width = x.shape
    n, k = weight.shape
    rows = math.prod(shape)
    compiled = kernel()
    if (
        compiled is None
        or not 0 < rows <= MAX_ROWS
        or n % 4
        or k != width
        or any(
            part is not None
            and (
                type(part) not in PLAIN
                or part.dtype is not torch.float32
                or not part.is_cpu
                or not part.is_contiguous()
            )
            for part in (weight, bias)
        )
        or type(x) not in PLAIN
        or x.dtype is not torch.float32
        or not x.is_cpu
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return linear(x, weight, bias)
    x = x.contiguous()
    y = x.new_empty(*shape, n)
    given = None if bias is None else bias.data_ptr()
    compiled(
        x.data_ptr(), weight.data_ptr(), given, y.data_ptr(), rows, k, n, torch.get_num_threads()
    )
    return y


@functools.cache
def kernel() -> Callable[..., None] | None:
    """skinny.c as a function, or None where it cannot be had; compiled once into sasa's cache
    folder.
    """
    if os.environ.get("SASA_SKINNY") == "0" or sys.platform != "linux":
        return None  # elsewhere PyTorch multiplies with the vendor's library, and its threads have another name
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        output = getattr(error, "stderr", "") or ""
        logger.warning(
            "no C compiler for sasa/models/skinny.c: decoding on the CPU is slower than it could be (%s %s)",
            error,
            output,
        )
        return None
    function = library.skinny_linear
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3 + [ctypes.c_int]
    function.restype = None
    return function


def _compiled() -> Path:
    """Path of the shared library, made where it does not exist.

    Each kind of processor has its own.
    """
    # gcc, for its threads are PyTorch's on Linux.
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "gcc", "cc"))))
    # The threads must be PyTorch's: a second pool would wait, spinning, on the same cores.
    threads = next((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), None)
    about = [
        SOURCE.read_text(),
        compiler,
        str(threads),
        platform.machine(),
        sysconfig.get_platform(),
        _processor(),
    ]
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    target = cache_dir() / "kernels" / f"skinny-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    tune = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, objects = Path(folder) / "skinny.so", Path(folder) / "skinny.o"
        run = functools.partial(
            subprocess.run, check=True, capture_output=True, text=True, timeout=120
        )
        run([compiler, "-O3", tune, "-fPIC", "-fopenmp", "-c", str(SOURCE), "-o", str(objects)])
        run(
            [
                compiler,
                "-shared",
                str(objects),
                "-o",
                str(made),
                str(threads) if threads else "-fopenmp",
            ]
        )
        made.replace(target)
    return target


def _processor() -> str:
    """What the processor can do: a library compiled for more than that would crash."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
