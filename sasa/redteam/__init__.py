"""Red-teaming: a curiosity-driven attacker (Hong et al. 2024), reports, exports and replays."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
