"""Look-ahead: the embedding that a text would have with each of its candidate next tokens."""

from sasa.decoding.lookahead.cache import BorrowedCache, LookaheadCache
from sasa.decoding.lookahead.lookahead import Lookahead
from sasa.decoding.lookahead.packing import packs

__all__ = ["BorrowedCache", "Lookahead", "LookaheadCache", "packs"]
