"""Whether a model can read candidates side by side."""

from __future__ import annotations

import logging
import weakref

import torch
from transformers import PreTrainedModel

from sasa.decoding.lookahead.readers import PackedReader, RereadingReader
from sasa.decoding.lookahead.texts import Texts

logger = logging.getLogger(__name__)

_packs: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def packs(model: PreTrainedModel) -> bool:
    """Whether a model reads candidates side by side exactly as it reads them one by one.

    This is measured, not looked up: a few tokens are read both ways, once per model, and the states
    are compared. If they differ (no key-value cache, attention that takes no 4-D mask, ALiBi from a
    2-D one), every candidate re-reads its text: the result is the same, slower, and logged once.
    """
    if model not in _packs:
        why = _disagreement(model)
        _packs[model] = why is None
        if why:
            logger.warning(
                "%s cannot look ahead at candidates side by side (%s): each one re-reads its text, which is exact but slow",
                type(model).__name__,
                why,
            )
    return _packs[model]


@torch.no_grad()
def _disagreement(model: PreTrainedModel) -> str | None:
    """Why a model does not read candidates side by side; None if it does."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        model.config.get_text_config().vocab_size, (2, 11), generator=generator
    ).to(model.device)
    mask = torch.ones(2, 7, dtype=torch.long, device=model.device)
    mask[1, :3] = 0  # a left-padded row
    texts, candidates = Texts(mask), tokens[:, 8:]
    try:
        reader = PackedReader(model, (-1,))
        texts.append(tokens[:, :6])
        reader.read(texts, 6, candidates)  # the candidates of an earlier step must leave no trace
        texts.append(tokens[:, 6:7])
        _, side = reader.read(texts, 1, candidates)
    except torch.OutOfMemoryError:
        raise
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        IndexError,
        NotImplementedError,
        KeyError,
    ) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    _, alone = RereadingReader(model, (-1,)).read(texts, 0, candidates)
    gap = (side.last - alone.last).norm(dim=-1) / alone.last.norm(dim=-1).clamp(min=1e-12)
    gap = gap.nan_to_num(torch.inf)
    if torch.finfo(model.dtype).eps < 1e-6:
        differs, tolerance = float(gap.max()), 1e-3
    else:  # in half precision a mixture of experts may send one token elsewhere over a rounding error
        differs, tolerance = float(gap.median(1).values.max()), 5e-2
    return None if differs <= tolerance else f"its states differ by {differs:.1%}"
