"""A name -> a model (load), part of a model (parts, heads), and its products of few rows, fast (skinny)."""
