"""How much toxicity goes away, what it costs in fluency, and how sure that is: RTP, BOLD and AttaQ."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
