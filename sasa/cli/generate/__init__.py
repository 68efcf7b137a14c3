"""`sasa generate`: completions of prompts, steered, plain, or side by side."""

from sasa.cli.generate.command import command

__all__ = ["command"]
