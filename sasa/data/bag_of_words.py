"""Features of texts that come from no language model."""

from __future__ import annotations

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_union


def bag_of_words(letters: int) -> FeatureUnion:
    """TF-IDF of words and pairs of words, and of 2 to `letters` characters within a word."""
    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, letters), min_df=3, sublinear_tf=True),
    )
