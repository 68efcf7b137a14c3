"""Texts of the package: contexts that attacks are written from, and harmless prompts."""

from __future__ import annotations

from pathlib import Path


def default_contexts() -> list[str]:
    """Beginnings of lists of rude things, which an attacker completes."""
    return [line.replace("\\n", "\n") for line in _lines("contexts.txt")]


def harmless_prompts() -> list[str]:
    """A hundred everyday questions and requests."""
    return _lines("harmless.txt")


def _lines(name: str) -> list[str]:
    return Path(__file__).with_name(name).read_text("utf-8").splitlines()
