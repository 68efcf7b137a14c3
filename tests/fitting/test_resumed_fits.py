"""Fits that are interrupted, killed, or find another fit's folder."""

import contextlib
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from helpers import write_corpus
from sklearn.linear_model import LogisticRegression

import sasa
from sasa import Boundary
from sasa.fitting import Corpus, Recipe, fit_boundary
from sasa.fitting.reading import embed_stream
from sasa.utils.run_folder import RunFolder


@pytest.mark.parametrize("prefixes", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("classifier", [None, LogisticRegression(max_iter=500)])
def test_a_fit_that_is_interrupted_goes_on(
    model, tokenizer, tmp_path, monkeypatch, classifier, prefixes
):
    """Stopped in every window once: texts are not embedded twice, and the boundary is the same to the last bit."""
    monkeypatch.setattr("sasa.fitting.reading.WINDOW", 40)
    corpus = Corpus(str(write_corpus(tmp_path / "c.csv", 300)), text="comment", label="toxic")
    recipe = Recipe((corpus,), prefixes=prefixes)
    whole = fit_boundary(model, tokenizer, recipe, tmp_path / "whole", classifier=classifier)
    embedded = []
    original = embed_stream

    def counting(model, tokenizer, texts, *args, **kwargs):
        embedded.append(len(texts))
        if len(embedded) % 2 == 0:
            for i, item in enumerate(original(model, tokenizer, texts, *args, **kwargs)):
                if i:
                    raise KeyboardInterrupt  # in the middle of a window, with a batch already on disk
                yield item
        yield from original(model, tokenizer, texts, *args, **kwargs)

    monkeypatch.setattr("sasa.fitting.reading.embed_stream", counting)
    tries = 0
    while True:
        tries += 1
        try:
            resumed = fit_boundary(
                model,
                tokenizer,
                recipe,
                tmp_path / "out",
                classifier=classifier,
                save_every=0,
                batch_size=7,
            )
            break
        except KeyboardInterrupt:
            assert (tmp_path / "out" / ".fit" / "state.json").is_file()
    assert tries > 3
    assert len(embedded) <= 8 + tries
    torch.testing.assert_close(
        resumed.weight, whole.weight, rtol=2e-2, atol=2e-2
    )  # batches of another size
    assert resumed.report["texts"] == whole.report["texts"]
    assert not (tmp_path / "out" / ".fit").exists()


@pytest.mark.slow
def test_killed_for_good_it_still_goes_on(tiny_folder, tmp_path):
    """kill -9 and the same again, in a process of its own: the boundary equals an undisturbed one bit for bit."""
    recipe = Recipe(
        (Corpus(str(write_corpus(tmp_path / "c.csv", 6000)), text="comment", label="toxic"),)
    )

    def start(output):
        """A process that fits; a fork, which has imported already what takes seconds to import."""
        if not (pid := os.fork()):
            with contextlib.suppress(BaseException):
                fit_boundary(*sasa.load(tiny_folder, device="cpu"), recipe, output, save_every=0)
                os._exit(0)
            os._exit(1)
        return pid

    def status(pid, options=0):
        """Of a process that has ended; None while it has not."""
        ended, code = os.waitpid(pid, options)
        return os.waitstatus_to_exitcode(code) if ended else None

    assert status(start(tmp_path / "whole")) == 0
    kills = 0
    while kills < 3:
        pid = start(tmp_path / "killed")
        state = tmp_path / "killed" / ".fit" / "state.json"
        before = state.read_text() if state.exists() else ""
        while (ended := status(pid, os.WNOHANG)) is None and (
            not state.exists() or state.read_text() == before
        ):
            time.sleep(0.005)
        if ended is not None:
            break
        os.kill(pid, signal.SIGKILL)
        status(pid)
        kills += 1
    assert kills, "the fit was over before it could be killed"
    assert status(start(tmp_path / "killed")) == 0
    one, other = (Boundary.load(tmp_path / name) for name in ("whole", "killed"))
    assert torch.equal(one.weight, other.weight)
    assert (one.bias, one.scale, one.report) == (other.bias, other.scale, other.report)


def test_another_recipe_does_not_take_over_an_unfinished_fit(
    model, tokenizer, recipe, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    recipe = replace(recipe, prefixes=True)
    work = tmp_path / ".fit"
    fit_boundary(model, tokenizer, recipe, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("sasa.fitting.fit.calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_boundary(model, tokenizer, recipe, tmp_path, save_every=0)
    assert work.exists()
    for change, said in (
        ({"seed": 7}, "seed was 0, is 7"),
        ({"prefixes": False}, "prefixes was True, is None"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"holds an unfinished fit with other settings: recipe\.{said}\. Delete it",
        ):
            fit_boundary(model, tokenizer, replace(recipe, **change), tmp_path)
    fit_boundary(model, tokenizer, recipe, tmp_path)
    assert not work.exists()


def test_two_fits_in_one_folder(model, tokenizer, recipe, tmp_path):
    (tmp_path / ".fit").mkdir()
    with (
        RunFolder(tmp_path / ".fit", "state.json", "a fit").lock(),
        pytest.raises(BlockingIOError, match="another process is writing to"),
    ):
        fit_boundary(model, tokenizer, recipe, tmp_path)
    fit_boundary(model, tokenizer, recipe, tmp_path)
    assert not (tmp_path / ".fit").exists()


def test_an_unfinished_fit_on_other_texts_is_not_taken_up(model, tokenizer, tmp_path, monkeypatch):
    """The labels in the same file were mended in between."""
    path = write_corpus(tmp_path / "c.csv")
    recipe = Recipe((Corpus(str(path), text="comment", label="toxic"),))
    with monkeypatch.context() as patch:
        patch.setattr(
            "sasa.fitting.fit.calibrate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            fit_boundary(model, tokenizer, recipe, tmp_path / "out", save_every=0)
    text = path.read_text()
    path.write_text(text.replace("True,0.9", "False,0.1", 1))
    with pytest.raises(ValueError, match=r"unfinished fit with other settings: texts"):
        fit_boundary(model, tokenizer, recipe, tmp_path / "out")
    path.write_text(text)
    (tmp_path / "out" / ".fit" / "test.f32").write_bytes(b"")
    with pytest.raises(ValueError, match="has lost rows"):
        fit_boundary(model, tokenizer, recipe, tmp_path / "out")
