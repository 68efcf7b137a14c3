"""Evaluation harnesses of others: lm-evaluation-harness and Inspect AI."""
