"""A name -> a model, part of a model, its states and logits, and its products of few rows, fast."""
