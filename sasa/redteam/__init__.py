"""Red-teaming: an attacker that is curious about what still gets through (Hong et al. 2024), and what is left of it elsewhere."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
