import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import sasa
import sasa.core.boundary as module
from sasa import Boundary, EmbeddingSpec
from sasa.core.model_info import ModelInfo

INFO = ModelInfo("org/Some-Model", "llama", 4, 3, 260)


def make(**changes):
    values = dict(
        weight=torch.tensor([1.0, -2.0, 0.5, 0.0]), bias=0.25, embedding=EmbeddingSpec(), model=INFO
    )
    return Boundary(**(values | changes))


floats = st.floats(-1e6, 1e6, width=32)


@given(
    weight=st.lists(floats, min_size=4, max_size=4).filter(any),
    bias=floats,
    scale=st.floats(1e-3, 1e3),
    layer=st.integers(-4, 3),
    pooling=st.sampled_from(["last", "mean"]),
    attribute=st.text(min_size=1),
)
def test_what_is_saved_is_loaded(tmp_path_factory, weight, bias, scale, layer, pooling, attribute):
    saved = make(
        weight=torch.tensor(weight),
        bias=bias,
        scale=scale,
        embedding=EmbeddingSpec(layer=layer, pooling=pooling),
        attribute=attribute,
        report={"n": 3, "who": "é"},
    )
    loaded = Boundary.load(saved.save(tmp_path_factory.mktemp("b")))
    assert torch.equal(loaded.weight, saved.weight)
    for name in ("bias", "embedding", "model", "scale", "shift", "attribute", "report"):
        assert getattr(loaded, name) == getattr(saved, name)


def test_margin_is_float32_of_any_dtype_and_shape():
    hidden = torch.randn(2, 3, 4)
    want = hidden @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.25
    torch.testing.assert_close(make().margin(hidden), want)
    half = make().margin(hidden.bfloat16())
    assert half.dtype == torch.float32
    assert half.shape == (2, 3)


def test_log_odds_keep_the_order():
    margins = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(
        make(scale=2.0, shift=-1.0).log_odds(margins), torch.tensor([-3.0, -1.0, 3.0])
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(4)}, "finite, non-zero"),
        ({"weight": torch.full((4,), torch.nan)}, "finite, non-zero"),
        ({"weight": torch.ones(5)}, "weight has 5 entries, hidden_size is 4"),
        ({"scale": -1.0}, "scale must be > 0"),
    ],
)
def test_impossible_boundaries(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_damaged_and_foreign_files_say_what_they_are(tmp_path):
    good = make().save(tmp_path / "good")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(good.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged or not a boundary"):
        Boundary.load(torn)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(3)}, foreign)
    with pytest.raises(ValueError, match="not a sasa boundary"):
        Boundary.load(foreign)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="damaged or not a boundary"):
        Boundary.load(tmp_path / "text.safetensors")
    content = good.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["sasa"]) | {"format": 99}
    save_file({"weight": torch.ones(4)}, tmp_path / "new.safetensors", {"sasa": json.dumps(about)})
    with pytest.raises(ValueError, match="another format"):
        Boundary.load(tmp_path / "new.safetensors")


def test_unknown_names_say_what_there_is():
    with pytest.raises(
        FileNotFoundError, match=r"no boundary 'toxicityy': .*toxicity-smollm2-135m-instruct"
    ):
        Boundary.load("toxicityy")
    with pytest.raises(FileNotFoundError, match="no boundary at 'nobody/nothing'"):
        Boundary.load("nobody/nothing")


def test_bundled_is_found_by_attribute_and_refused_for_another_model(model):
    with pytest.raises(
        ValueError,
        match="Give model=, or one of: toxicity-gemma-3-270m, toxicity-smollm2-135m-instruct",
    ):
        Boundary.load("toxicity")
    with pytest.raises(
        FileNotFoundError, match=r"no bundled 'toxicity' boundary for this model.*sasa fit"
    ):
        Boundary.load("toxicity", model=model)
    assert Boundary.load("toxicity-smollm2-135m-instruct").attribute == "toxicity"


def test_check_names_every_field_that_differs(model):
    boundary = tiny.boundary(model)
    other = tiny.model("qwen3", vocab_size=300)
    with pytest.raises(
        ValueError,
        match=r"model_type: fitted on 'llama', this model has 'qwen3'.*vocab_size: fitted on 260",
    ):
        boundary.check(other)


def test_another_id_needs_strict_false(tmp_path):
    model = tiny.model("llama")
    path = tiny.boundary(model).save(tmp_path)
    named = replace(tiny.boundary(model), model=replace(ModelInfo.of(model), id="org/original"))
    path = named.save(tmp_path)
    model.config._name_or_path = "somewhere/ORIGINAL/"
    assert (
        Boundary.load(path, model=model).model.id == "org/original"
    )  # the last part counts, in any case
    model.config._name_or_path = "me/fine-tuned"
    with pytest.raises(ValueError, match=r"id: fitted on 'org/original'.*strict=False"):
        Boundary.load(path, model=model)
    Boundary.load(path, model=model, strict=False).check(model)
    more = tiny.model(
        "llama", vocab_size=tiny.VOCABULARY + 1
    )  # a fine-tune with a token of its own
    more.config._name_or_path = "somewhere/original"
    with pytest.raises(ValueError, match="vocab_size: fitted on 260, this model has 261"):
        Boundary.load(path, model=more)
    Boundary.load(path, model=more, strict=False).check(more)


def test_fingerprints_tell_apart_what_measures_differently(tmp_path):
    boundary = make()
    others = [
        make(weight=boundary.weight * 2),
        make(bias=boundary.bias + 1e-6),
        make(scale=boundary.scale * 1.5),
        make(shift=boundary.shift + 0.5),
        make(embedding=replace(boundary.embedding, layer=1)),
    ]
    assert len({one.fingerprint for one in (boundary, *others)}) == 6
    boundary.save(tmp_path)
    assert (
        Boundary.load(tmp_path).fingerprint
        == boundary.fingerprint
        == make(report={"auc": 0.5}).fingerprint
    )


def test_score_and_trace_agree(model, tokenizer):
    boundary = tiny.boundary(model, pooling="mean")
    text = "hello there"
    tokens, margins = boundary.trace(model, tokenizer, text)
    assert "".join(tokens) == text
    torch.testing.assert_close(
        margins[-1], boundary.score(model, tokenizer, [text])[0], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        margins[4], boundary.score(model, tokenizer, ["hello"])[0], atol=1e-4, rtol=1e-4
    )


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = make().save(tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        make(bias=9.0).save(tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_text_is_judged_to_its_end(model, tokenizer):
    """The limit on length is the fit's: what stands behind it counts when a text is scored."""
    short, long = tiny.boundary(model, max_length=4), tiny.boundary(model)
    text = "a rather longer text"
    assert short.score(model, tokenizer, [text]) == long.score(model, tokenizer, [text])
    assert len(short.trace(model, tokenizer, text)[0]) == len(text)


@pytest.mark.parametrize("name", ["me/toxicity-qwen2.5-0.5b", "me.too/v1.0"])
def test_names_with_dots_are_looked_up_on_the_hub(monkeypatch, tmp_path, name):
    """Against a stand-in for the Hub's client."""
    import huggingface_hub

    file = make().save(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, _: {name: str(file)}[repo])
    assert torch.equal(Boundary.load(name).weight, make().weight)
    with pytest.raises(FileNotFoundError, match="not a file"):
        Boundary.load("me/lost.safetensors")


def test_the_pieces_of_a_text_are_the_text(model, tokenizer):
    """Of a character that is several tokens, the last one has it."""
    boundary = tiny.boundary(model, span="response", pooling="mean")
    for text in ("I love you \U0001f600 so", "\U0001f600", "caf\u00e9 \ufffd!", "\ufffd"):
        tokens, margins = boundary.trace(model, tokenizer, text)
        assert "".join(tokens) == text
        assert len(tokens) == len(margins) == len(text.encode())
        assert "".join(boundary.trace(model, tokenizer, ("\u00e9", text))[0]) == text
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        boundary.score(model, tokenizer, ["fine", "\ud83d"])


def test_the_hub_gets_file_and_card(monkeypatch):
    """Against a stand-in for the Hub's client: nothing else here can take an upload."""
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **kwargs):
            calls.append(("create", repo_id, kwargs))

        def upload_folder(self, repo_id, folder_path):
            calls.append(("files", sorted(p.name for p in Path(folder_path).iterdir())))
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    boundary = Boundary.load("toxicity-smollm2-135m-instruct")
    assert boundary.push_to_hub("me/mine", private=True, token="t") == "address"
    assert calls[0] == ("token", "t")
    assert calls[1] == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert calls[2] == ("files", ["README.md", "boundary.safetensors"])


def test_several_layers_are_one_vector(model, tokenizer, tmp_path):
    """One layer's states behind the other's, in files, scores and errors; a list of one is that one."""
    boundary = tiny.boundary(model, layer=(1, -1))
    assert len(boundary.weight) == 64
    boundary.save(tmp_path)
    again = Boundary.load(tmp_path, model=model)
    assert again.embedding == boundary.embedding
    assert again.embedding.layers == (1, -1)
    states = [
        sasa.embed(model, tokenizer, ["abc"], EmbeddingSpec(layer=layer)) for layer in (1, -1)
    ]
    torch.testing.assert_close(
        boundary.score(model, tokenizer, ["abc"]), boundary.margin(torch.cat(states, 1))
    )
    assert EmbeddingSpec(layer=[2]) == EmbeddingSpec(layer=2)
    with pytest.raises(ValueError, match="weight has 64 entries, hidden_size is 32"):
        replace(boundary, embedding=EmbeddingSpec())
    for bad in (dict(max_length=9.5), dict(special_tokens="no")):
        with pytest.raises(
            ValueError, match="max_length must be an integer and special_tokens True or False"
        ):
            EmbeddingSpec(**bad)
    with pytest.raises(ValueError, match="layer must be an integer or several, got True"):
        EmbeddingSpec(layer=True)
    with pytest.raises(ValueError, match="layer must be an integer or several, got"):
        EmbeddingSpec(layer=())
    with pytest.raises(ValueError, match="layer must be an integer or several, got"):
        EmbeddingSpec(layer=("a", 1))
