"""EleutherAI's lm-evaluation-harness with SASA: the cost of steering in usefulness, on any task.

    python -m sasa.evaluation.integrations.lm_eval run --model sasa --model_args beta=1 --tasks gsm8k
    python -m sasa.evaluation.integrations.lm_eval run --model sasa --model_args beta=0 --tasks gsm8k

This is the harness's own command line with one more model. Generating tasks are steered;
log-likelihood tasks ask for the probability of given texts, which SASA does not change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError("the adapter needs EleutherAI's harness: pip install lm_eval") from error

from sasa.core.boundary import Boundary
from sasa.core.settings import BETA, PRIOR, VALUE
from sasa.decoding.decoder import SASADecoder
from sasa.models.load import load


@register_model("sasa")
class SASALM(HFLM):  # type: ignore[misc]
    """A model of transformers that is steered by SASA.

    Args:
        pretrained: as in `sasa.load`; None for the embedded default.
        boundary: a bundled attribute, a file, a folder or a Hub id.
        beta, value, prior: strength, >= 0, what a margin is worth, and the share of unsafe text;
            beta 0 is the model on its own.
        top_k, top_p: what is looked at where the task decodes greedily; see `SASADecoder`.
        device, dtype: as in `sasa.load`.
        kwargs: as for the harness's own `hf` model, such as batch_size.

    Raises:
        ValueError, OSError: as `sasa.load`, `Boundary.load` and `SASADecoder` do.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        boundary: str = "toxicity",
        beta: float = BETA,
        value: str = VALUE,
        prior: float = PRIOR,
        top_k: int | None = None,
        top_p: float | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        # The harness passes "cuda:0" and "auto" by default.
        if (device or "").startswith("cuda") and not torch.cuda.is_available():
            device = None
        model, tokenizer = load(pretrained, device, None if dtype == "auto" else dtype)
        line = Boundary.load(boundary, model=model)
        self.decoder = SASADecoder(line, float(beta), top_k, top_p, value=value, prior=float(prior))
        super().__init__(pretrained=model, tokenizer=tokenizer, **kwargs)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        return super()._model_generate(
            context, max_length, stop, custom_generate=self.decoder, **generation_kwargs
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
