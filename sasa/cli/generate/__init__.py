"""`sasa generate`: completions of prompts, steered, plain, or side by side."""

from sasa.cli.generate.run import command

__all__ = ["command"]
