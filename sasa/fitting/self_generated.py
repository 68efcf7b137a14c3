"""The model's own text in a fit: how it goes wrong itself, beside how people do.

While a model writes, a boundary is asked about texts that no person has written. So the model goes on from the
openings of the texts that a fit has, a judge that has learnt from their scores says which completions are unsafe, and
each prefix counts with what became of it: the label of the whole (Yang & Klein 2021, section 3; Mudgal et al. 2024,
section 3.2, who learn from a model's own samples as well).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa.core.candidates import select
from sasa.core.embedding_spec import Text
from sasa.core.values import reweight
from sasa.data.corpus import Corpus, Example
from sasa.decoding.sampling import random_state, seed_of
from sasa.fitting.discriminant import GaussianStatistics
from sasa.models.embedding import embed_stream, pad, tokenize_prompt
from sasa.models.heads import token_ids
from sasa.utils.jsonl import append, keep_lines, whole_lines
from sasa.utils.parallel import Spread, here
from sasa.utils.progress import progress_bar

if TYPE_CHECKING:
    from sasa.fitting.fit import Recipe

T = TypeVar("T")

UNSAFE_OPENINGS, OTHER_OPENINGS = 700, 500
COMPLETIONS = 2
UNSAFE_TIMES = 3
"""How often so many completions are drawn of an unsafe opening: that is where most of what is unsafe comes from."""
TOP_K, TOP_P = 50, 0.9
"""As text is decoded, more or less: what only the whole vocabulary has is never asked about."""
TOKENS = {"none": 20, "chat": 40}
MAX_OPENING = 128
"""Tokens; longer openings are left out."""
WORDS = 32
"""At most so many words of a text that is no response are its opening, and no more than half of it."""
JUDGED = 50_000
"""Texts that the judge learns from, at most."""
GROUPS = 50_000
"""Groups of texts that openings are drawn from, at most."""
BATCH = 20
READ = 1024
"""Texts whose statistics are made together."""
FEWEST = 20
"""Completions of either class without which own text says nothing."""


def middle(corpus: Corpus) -> float:
    """The score that parts safe from unsafe: the middle of the grey zone, where there is one."""
    return (corpus.unsafe_from + (corpus.safe_below or corpus.unsafe_from)) / 2


def bag_of_words(letters: int) -> FeatureUnion:
    """TF-IDF of words and pairs of words, and of up to so many letters within a word."""
    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, letters), min_df=3, sublinear_tf=True),
    )


class Judge:
    """How unsafe a text is by its words and letters, learnt by ridge regression from texts with scores.

    It has seen no hidden state, and knows a text only when it is whole: a boundary that learns from it cannot learn
    the boundary's own mistakes.
    """

    def __init__(self, texts: Sequence[str], scores: Sequence[float]) -> None:
        self._model = make_pipeline(bag_of_words(letters=5), Ridge(alpha=1.0))
        try:
            self._model.fit(texts, scores)
        except ValueError as error:  # of a vocabulary that is empty
            raise ValueError(
                f"own needs texts that have words in common, with spaces between them, for its judge to learn from, and in "
                f"{len(texts)} texts it found none: give more texts, or fit without the model's own text (own = 0)"
            ) from error

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Above 0 is unsafe, float64 (N,)."""
        return (
            np.asarray(self._model.predict(list(texts)), np.float64) if len(texts) else np.zeros(0)
        )


class Share(dict[str, T]):
    """At most so many of the keys that are offered, a random share of them; which ones is for the seed and all the keys
    to say, not for their order. So a corpus of any size takes no more memory than that.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed, self._below = most, seed, 1 << 32

    def takes(self, key: str) -> bool:
        return seed_of(self._seed, key) < self._below

    def __setitem__(self, key: str, value: T) -> None:
        if not self.takes(key):
            return
        super().__setitem__(key, value)
        while len(self) > self._most:
            self._below //= 2
            for other in [other for other in self if not self.takes(other)]:
                del self[other]


@dataclass(frozen=True)
class Opening:
    """What a group of texts begins with, how unsafe that is itself, where its source says so, and the worst of the
    group; scores are above 0 where unsafe.
    """

    text: str = ""
    own: float | None = None
    worst: float = -1.0

    @property
    def unsafe(self) -> bool:
        return (self.worst if self.own is None else self.own) >= 0

    def and_of(self, example: Example, middle: float) -> Opening:
        """The same with one more text of the group."""
        group, text = example.group, example.text
        if not isinstance(text, str):
            own, begins = example.prompt_score, text[0]
        elif group != text:
            own, begins = None, group
        else:  # the group's prompt, or all there is of it
            words = text.split()
            half = " ".join(words[: min(WORDS, len(words) // 2)]) or text[: len(text) // 2].strip()
            own, begins = example.score, half
        return Opening(
            # A prompt of other texts is an opening as it is; else half of a text is.
            max(self.text, begins, key=len),
            self.own if own is None else own - middle,
            max(self.worst, example.score - middle),
        )


@dataclass(frozen=True)
class Sources:
    """What own text is made from: openings to go on from, unsafe ones several times, and a judge that has learnt from texts
    and their scores, less `middle`. An opening is as unsafe as it is itself, where its source says; else as the worst of its
    texts.

    Of both, only what is there to be fitted on; `held_out` texts, which the judge has not seen, with their labels say how
    good it is.
    """

    openings: list[str]
    texts: list[str]
    scores: list[float]
    held_out: list[tuple[str, int]]
    judge: Judge

    @classmethod
    def of(cls, recipe: Recipe) -> Sources:
        """What a recipe's corpora hold.

        Raises:
            ValueError: no openings, or nothing for the judge to learn from.
        """
        found = Share[Opening](GROUPS, recipe.seed)
        texts, held_out = Share[float](JUDGED, recipe.seed), Share[int](JUDGED, recipe.seed)
        for corpus in recipe.corpora:
            for example in corpus.examples(recipe.seed):
                said = example.text if isinstance(example.text, str) else example.text[1]
                if recipe.part(example.group) == "fit":
                    texts[said] = example.score - middle(corpus)
                    found[example.group] = found.get(example.group, Opening()).and_of(
                        example, middle(corpus)
                    )
                elif (label := corpus.label_of(example.score)) is not None:
                    held_out[said] = label
        draw = random.Random(recipe.seed)
        openings: list[str] = []
        for unsafe, most, times in (
            (True, UNSAFE_OPENINGS, UNSAFE_TIMES),
            (False, OTHER_OPENINGS, 1),
        ):
            those = [
                opening.text
                for opening in found.values()
                if opening.text and opening.unsafe == unsafe
            ]
            openings += draw.sample(those, min(most, len(those))) * times
        if not openings:
            raise ValueError(
                "own needs openings for the model to go on from, and the texts are too short to have any: give longer ones, or "
                "fit without the model's own text (own = 0)"
            )
        unseen = [(said, label) for said, label in held_out.items() if said not in texts]
        learnt, scores = list(texts), list(texts.values())
        return cls(openings, learnt, scores, unseen, Judge(learnt, scores))

    def judge_auc(self) -> float | None:
        """How well the judge tells held-out texts apart; None where there are not both."""
        unsafe = [1 - label for _, label in self.held_out]
        if len(set(unsafe)) < 2:
            return None
        return float(roc_auc_score(unsafe, self.judge([said for said, _ in self.held_out])))


def own_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    sources: Sources,
    file: Path,
    *,
    spread: Spread | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[GaussianStatistics, dict[str, Any]]:
    """Statistics of what the model writes, each prefix labelled with what the judge says of the whole.

    Args:
        recipe: its embedding gives the vectors. sources: of its corpora.
        file: JSON lines of what has been written; what an earlier call wrote there is not written again.
        spread: where it is written and read; here where None.

    Returns:
        the statistics, and figures for the report: `openings`, `completions`, how many are `unsafe`, and
        `judge_auc`, of the judge on texts held out, or None.

    Raises:
        ValueError: the completions of one class are too few to learn from.
    """
    by = spread or here(model, tokenizer)
    written = write(model, tokenizer, sources.openings, recipe, file, spread=by, progress=progress)
    texts: list[Text] = [
        (opening, text) for opening, said in written for text in said if text.strip()
    ]
    unsafe = sources.judge([text[1] for text in texts]) >= 0
    if min(int(unsafe.sum()), int((~unsafe).sum())) < FEWEST:
        raise ValueError(
            f"of {len(texts)} completions that the model wrote itself the judge finds {int(unsafe.sum())} unsafe: too few "
            f"of one class to learn from. Fit without its own text (own = 0); what is read already is kept"
        )
    statistics = GaussianStatistics.empty(
        model.config.get_text_config().hidden_size * len(recipe.embedding.layers)
    )
    with progress_bar("own text", progress) as bar:
        task = bar.add_task("reading own text", total=len(texts))
        labelled = list(zip(texts, (1 - unsafe.astype(int)).tolist(), strict=True))
        windows = [labelled[i : i + READ] for i in range(0, len(labelled), READ)]
        for window, found in zip(
            windows, by(partial(_read, recipe, batch_size), windows), strict=True
        ):
            statistics.merge(found)
            bar.advance(task, len(window))
    return statistics, {
        "openings": len({opening for opening, _ in written}),
        "completions": len(texts),
        "unsafe": int(unsafe.sum()),
        "judge_auc": sources.judge_auc(),
    }


def _read(
    recipe: Recipe,
    batch_size: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    window: list[tuple[Text, int]],
) -> GaussianStatistics:
    """Statistics of some texts with their labels."""
    found = GaussianStatistics.empty(
        model.config.get_text_config().hidden_size * len(recipe.embedding.layers)
    )
    labels = np.array([label for _, label in window])
    stream = embed_stream(
        *(model, tokenizer, [text for text, _ in window], recipe.embedding),
        batch_size=batch_size,
        prefixes=recipe.prefixes,
    )
    for indices, vectors in stream:
        found.partial_fit(vectors.cpu().numpy(), labels[indices])
    return found


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    openings: Sequence[str],
    recipe: Recipe,
    file: Path,
    *,
    spread: Spread | None = None,
    progress: bool = False,
) -> list[tuple[str, list[str]]]:
    """Completions of each opening, drawn from the model as it is, of at most `TOKENS` tokens each.

    They are appended to a file as they come, so that a fit that was stopped goes on where it was.
    """
    prompts = [
        (opening, tokenize_prompt(tokenizer, opening, recipe.embedding)) for opening in openings
    ]
    prompts = [(opening, ids) for opening, ids in prompts if len(ids) <= MAX_OPENING]
    prompts.sort(key=lambda prompt: len(prompt[1]))  # little padding
    lines = whole_lines(file) if file.is_file() else []
    found: list[tuple[str, list[str]]] = [
        (opening, said) for opening, said in map(json.loads, lines)
    ]
    same = sum(
        1
        for _ in takewhile(lambda pair: pair[0][0] == pair[1][0], zip(found, prompts, strict=False))
    )
    keep = same // BATCH * BATCH  # of these openings, and whole batches, for each has a seed
    del lines[keep:], found[keep:]
    if file.is_file():
        keep_lines(file, lines)
    with progress_bar("own text", progress) as bar:
        task = bar.add_task("writing own text", total=len(prompts), completed=len(found))
        parts = [
            (first, prompts[first : first + BATCH])
            for first in range(len(found), len(prompts), BATCH)
        ]
        for rows in (spread or here(model, tokenizer))(partial(_written, recipe), parts):
            append(file, rows)
            found += rows
            bar.advance(task, len(rows))
    return found


def _written(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: tuple[int, list[Any]],
) -> list[tuple[str, list[str]]]:
    """Completions of a batch of openings, with their token ids, of which the first is opening number so and so."""
    first, prompts = part
    length = TOKENS[recipe.embedding.template]
    tokens = _sample(model, [ids for _, ids in prompts], length, seed_of(recipe.seed, first))
    said = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [
        (opening, said[i * COMPLETIONS : (i + 1) * COMPLETIONS])
        for i, (opening, _) in enumerate(prompts)
    ]


def _sample(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int
) -> Tensor:
    """Completions (P * COMPLETIONS, T), drawn as `TOP_K` and `TOP_P` say."""
    ids, mask = pad(prompts, "left", model.device)
    ends = token_ids(model, "eos_token_id", None)
    with random_state(seed, model.device):
        found: Tensor = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            logits_processor=[_truncated],
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=max_new_tokens,
            num_return_sequences=COMPLETIONS,
            pad_token_id=ends[0] if ends else None,
        )
    return found[:, ids.shape[1] :]


def _truncated(ids: Tensor, scores: Tensor) -> Tensor:
    """What transformers' own truncation leaves; that sorts the vocabulary, a fifth of the time where it is large."""
    kept = select(scores, TOP_K, TOP_P)
    return reweight(scores, kept, torch.zeros(kept.ids.shape, device=scores.device))
