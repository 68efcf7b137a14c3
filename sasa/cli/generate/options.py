"""Options of `sasa generate`: how completions are sampled, and when they go back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sasa.core.settings import MAX_RESETS, THRESHOLD, check_truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sasa.core.backtracking import Backtracking


@dataclass(frozen=True)
class SamplingOptions:
    """How completions are sampled."""

    top_k: Annotated[
        int | None,
        typer.Option(
            help="At most the k likeliest tokens; 0: no limit.", show_default="the model's, else 20"
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="The likeliest tokens of this total probability.",
            show_default="the model's, else 0.9",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1 sharper, above 1 flatter.", show_default="the model's, else 1"),
    ] = None
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Take the best token each time and draw none; --temperature does nothing.",
        ),
    ] = False
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens a completion, at most.")
    ] = 50
    num_return_sequences: Annotated[int, typer.Option(min=1, help="Completions a prompt.")] = 1
    seed: Annotated[int | None, typer.Option(help="For the same completions again.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts through the model's chat template.")
    ] = False

    def check(self) -> None:
        """Raises ValueError for values outside their ranges."""
        if self.greedy and self.num_return_sequences > 1:
            raise ValueError(
                "--greedy has one completion a prompt: leave --num-return-sequences out"
            )
        check_truncation(self.top_k, self.top_p)
        if self.temperature is not None and self.temperature <= 0 and not self.greedy:
            raise ValueError(
                f"--temperature must be > 0, got {self.temperature:g}; the best token each time is "
                "--greedy"
            )

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `sasa.generate`, without the seed."""
        return {
            "chat": self.chat,
            "batch_size": self.batch_size,
            "do_sample": not self.greedy,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "num_return_sequences": self.num_return_sequences,
        }


@dataclass(frozen=True)
class BacktrackOptions:
    """Whether and when a completion is written anew from where it went wrong."""

    backtrack: Annotated[
        bool,
        typer.Option(
            "--backtrack",
            help="A completion that goes wrong goes back and is written anew from there.",
        ),
    ] = False
    threshold: Annotated[
        float | None,
        typer.Option(
            help="P(unsafe), in (0, 1), from which it goes back.", show_default=f"{THRESHOLD:g}"
        ),
    ] = None
    max_resets: Annotated[
        int | None,
        typer.Option(
            min=1, help="How often one completion may go back.", show_default=f"{MAX_RESETS}"
        ),
    ] = None
    refusal: Annotated[
        str | None,
        typer.Option(
            help="Said in place of a completion that is still unsafe then.",
            show_default="its safest try",
        ),
    ] = None
    reset_token: Annotated[
        str | None,
        typer.Option(
            help="With --backtrack: [RESET], of a model trained to write it; what is before it is dropped, too. "
            "--boundary none leaves it to the model alone."
        ),
    ] = None
    reset_bias: Annotated[
        float | None,
        typer.Option(
            help="Added to the logit of [RESET]: above 0 safer, below 0 faster.", show_default="0"
        ),
    ] = None

    def check(self, has_boundary: bool) -> None:
        """Raises ValueError for options that need others, or a boundary."""
        options = {
            "--threshold": self.threshold,
            "--max-resets": self.max_resets,
            "--refusal": self.refusal,
            "--reset-token": self.reset_token,
            "--reset-bias": self.reset_bias,
        }
        names = [name for name, value in options.items() if value is not None]
        if names and not self.backtrack:
            raise ValueError(f"{' and '.join(names)} belong to --backtrack: give it, too")
        if self.reset_bias is not None and self.reset_token is None:
            raise ValueError("--reset-bias belongs to --reset-token: give it, too")
        judged_by_boundary = (
            self.reset_token is None or self.threshold is not None or self.refusal is not None
        )
        if self.backtrack and not has_boundary and judged_by_boundary:
            raise ValueError(
                "with --boundary none there is no threshold and no refusal: --backtrack needs a "
                "--reset-token"
            )

    def rule(self) -> Backtracking | None:
        """When a completion goes back, so far as no tokenizer is needed to say so."""
        from sasa.core.backtracking import Backtracking

        if not self.backtrack:
            return None
        return Backtracking(
            threshold=THRESHOLD if self.threshold is None else self.threshold,
            max_resets=MAX_RESETS if self.max_resets is None else self.max_resets,
        )

    def with_reset_token(
        self, rule: Backtracking | None, tokenizer: PreTrainedTokenizerBase, has_boundary: bool
    ) -> Backtracking | None:
        """The same rule with the model's own `--reset-token`, if there is one."""
        from sasa.core.backtracking import reset_token_id

        if rule is None or self.reset_token is None:
            return rule
        return replace(
            rule,
            threshold=rule.threshold if has_boundary else None,
            reset_token_id=reset_token_id(tokenizer, self.reset_token),
            reset_bias=self.reset_bias or 0.0,
        )
