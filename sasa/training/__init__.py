"""Training: what a boundary, a reward, or preferences can teach a model for good."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
