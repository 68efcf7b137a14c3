"""Look-ahead: the embedding that a text would have with each of its candidate next tokens."""

from sasa.lookahead.cache import BorrowedCache, LookaheadCache
from sasa.lookahead.lookahead import Lookahead
from sasa.lookahead.readers import packs

__all__ = ["BorrowedCache", "Lookahead", "LookaheadCache", "packs"]
