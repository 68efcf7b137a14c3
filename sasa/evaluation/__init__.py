"""Benchmarks of detoxification: toxicity and fluency on RTP, BOLD and AttaQ, with intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
