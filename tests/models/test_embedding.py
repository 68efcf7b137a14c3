import pytest
import reference
import tiny
import torch
from helpers import families

from sasa import EmbeddingSpec, embed
from sasa.models.embedding import embed_ids, embed_stream, tokenize

TEXTS = ["a", "some longer text", "mid", "the longest text of them all, by far"]
SPECS = [
    {},
    {"pooling": "mean"},
    {"layer": 0},
    {"layer": 2, "pooling": "mean"},
    {"layer": (1, -1), "pooling": "mean"},
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    "family", families(["llama", "gpt2", "mistral", "gemma3", "opt", "bloom", "mamba"])
)
def test_batches_embed_as_the_reference_does(family, spec, tokenizer):
    model = tiny.model(family)
    got = embed(model, tokenizer, TEXTS, EmbeddingSpec(**spec), batch_size=3)
    assert got.dtype == torch.float32
    for row, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        want = reference.embedding(model, ids, tiny.boundary(model, **spec))
        torch.testing.assert_close(got[row], want, atol=1e-4, rtol=1e-4)


def test_pairs_pool_over_the_response_only(model, tokenizer):
    spec = EmbeddingSpec(pooling="mean", span="response")
    pairs = [("a prompt", " and its answer"), ("x", "y"), ("", "no prompt")]
    got = embed(model, tokenizer, pairs, spec)
    for row, (prompt, response) in enumerate(pairs):
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"]
        want = reference.embedding(
            model, ids, tiny.boundary(model, pooling="mean", span="response"), start
        )
        torch.testing.assert_close(got[row], want, atol=1e-4, rtol=1e-4)


def test_the_chat_template_is_what_decoding_reads(model, tokenizer):
    spec = EmbeddingSpec(template="chat", span="response")
    ids, start = tokenize(tokenizer, ("hi", "there"), spec)
    assert tokenizer.decode(ids[:start]) == "[user]hi</s>[assistant]"
    assert tokenizer.decode(ids[start:]) == "there"
    with pytest.raises(ValueError, match="needs \\(prompt, response\\) pairs"):
        embed(model, tokenizer, ["plain"], spec)


def test_long_texts_are_cut(tokenizer):
    ids, _ = tokenize(tokenizer, "abcdefgh", EmbeddingSpec(max_length=3))
    assert tokenizer.decode(ids) == "abc"
    ids, start = tokenize(
        tokenizer, ("abcdefgh", "xyz"), EmbeddingSpec(max_length=5, span="response")
    )
    assert tokenizer.decode(ids[:start]) == "gh"
    assert tokenizer.decode(ids[start:]) == "xyz"
    ids, start = tokenize(tokenizer, ("abc", "vwxyz"), EmbeddingSpec(max_length=4, span="response"))
    assert (tokenizer.decode(ids), start) == ("vwxy", 0)


def test_the_stream_holds_a_window_and_no_more(model, tokenizer):
    read = 0

    def texts():
        nonlocal read
        for i in range(100):
            read += 1
            yield f"text {i}"

    stream = embed_stream(model, tokenizer, texts(), EmbeddingSpec(), batch_size=4, window=10)
    indices, vectors = next(stream)
    assert read == 10
    assert vectors.shape == (4, 32)
    seen = list(indices)
    for indices, _ in stream:
        seen += indices
        assert read <= max(seen) // 10 * 10 + 10
    assert sorted(seen) == list(range(100))


def test_padded_tokens_a_batch_are_bounded(model, tokenizer):
    stream = embed_stream(
        model,
        tokenizer,
        ["a" * n for n in range(1, 60)],
        EmbeddingSpec(),
        batch_size=50,
        max_tokens=80,
    )
    assert all(len(i) == 1 or len(i) * (max(i) + 1) <= 80 for i, _ in stream)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "nothing to embed"),
        (["fine", ""], "text 1: a text without tokens"),
        ([("p", "")], "text 0: a text without"),
    ],
)
def test_texts_without_tokens(model, tokenizer, texts, message):
    with pytest.raises(ValueError, match=message):
        embed(model, tokenizer, texts)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"pooling": "max"}, "pooling must be one of last, mean, ema, got 'max'"),
        ({"span": "prompt"}, "span must be one of text, response"),
        ({"template": "alpaca"}, "template must be one of none, chat"),
        ({"max_length": 0}, "max_length must be >= 1"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingSpec(**spec)


def test_a_layer_that_is_not_there(model, tokenizer):
    with pytest.raises(ValueError, match=r"layer must be in \[-4, 3\] for this model, got 9"):
        embed(model, tokenizer, TEXTS, EmbeddingSpec(layer=9))


def test_the_bar_goes_to_stderr(model, tokenizer, capsys):
    embed(model, tokenizer, TEXTS, progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"pooling": "mean"},
        {"pooling": "ema", "half_life": 2.0},
        {"pooling": "mean", "span": "response"},
    ],
    ids=str,
)
def test_prefixes_embed_as_texts_that_end_there(spec, model, tokenizer):
    spec = EmbeddingSpec(**spec)
    texts = [("a prompt", " and its answer"), ("x", "y"), ("", "no prompt"), "plain"]
    found = {i: [] for i in range(len(texts))}
    for indices, vectors in embed_stream(
        model, tokenizer, texts, spec, batch_size=3, prefixes=True
    ):
        for i, vector in zip(indices, vectors, strict=True):
            found[i].append(vector)
    for i, text in enumerate(texts):
        ids, start = tokenize(tokenizer, text, spec)
        first = len(tokenizer(text[0])["input_ids"]) if isinstance(text, tuple) and text[0] else 0
        want = [
            embed_ids(model, [ids[: end + 1]], [start], spec)[0] for end in range(first, len(ids))
        ]
        torch.testing.assert_close(torch.stack(found[i]), torch.stack(want), atol=1e-4, rtol=1e-4)
