"""Self-disciplined autoregressive sampling: a model that moderates its own language as it writes.

The public names are listed in `__init__.pyi` and imported when they are first used. So the rule (`sasa.core`), which
needs no model, serves any engine, and the command line starts before torch is there.
"""

from importlib.metadata import version

import lazy_loader

PACKAGES = (
    "core",
    "data",
    "decoding",
    "evaluation",
    "fitting",
    "models",
    "redteam",
    "serving",
    "training",
    "utils",
)

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in PACKAGES]
__version__ = version("sasa-decoding")
