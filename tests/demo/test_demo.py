"""The page: what it does without a browser, and every part of it clicked in a real one."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import tiny
import torch
from shell import sasa as command

import sasa
from sasa.decoding.tracing import TracedCandidate, TracedStep
from sasa.demo import markup
from sasa.demo.studio import Side, Studio, Wish, columns_of
from sasa.demo.turns import in_turns

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
)
SWITCHES += ("--disable-background-networking", "--disable-component-update")
PROMPT = "The man said"


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """Two boundaries of the tiny model, by name."""
    place = tmp_path_factory.mktemp("lines")
    for number, name in enumerate(("calm", "kind")):
        tiny.boundary(model, number).save(place / name)
    return place / "calm", place / "kind"


@pytest.fixture
def studio(model, tokenizer, folders):
    return Studio(model, tokenizer, tuple(map(str, folders)), strict=False)


def test_jobs_take_turns_and_each_draws_as_if_it_were_alone():
    order, drawn = [], {}

    def job(name, count):
        def run(give_way):
            torch.manual_seed(count)
            for _ in range(count):
                drawn.setdefault(name, []).append(float(torch.rand(())))
                order.append(name)
                give_way()

        return run

    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert len(list(in_turns([job("a", 2), job("b", 4)]))) == 2 + 4 + 2
    assert order == ["a", "b", "a", "b", "b", "b"]
    for name, count in (("a", 2), ("b", 4)):
        torch.manual_seed(count)
        assert drawn[name] == [float(torch.rand(())) for _ in range(count)]
    torch.set_rng_state(before)
    torch.manual_seed(99)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("how", ["error", "close"])
def test_jobs_end_with_an_error_or_when_nobody_waits(how):
    ended = []

    def good(give_way):
        try:
            for _ in itertools.count():
                give_way()
        finally:
            ended.append("good")

    def bad(give_way):
        give_way()
        raise ValueError("no")

    jobs = in_turns([good, bad])
    if how == "error":
        with pytest.raises(ValueError, match="no"):
            list(jobs)
    else:
        next(jobs)
        jobs.close()
    assert ended == ["good"]


@pytest.mark.parametrize(
    ("options", "host", "share", "said"),
    [
        ((), "127.0.0.1", False, "on this machine alone"),
        (("--host", "0.0.0.0"), "0.0.0.0", False, "everybody who can reach this address"),
        (("--share",), "127.0.0.1", True, "everybody who can reach this address"),
    ],
)
def test_others_reach_it_only_where_that_is_asked_for(
    options, host, share, said, tiny_folder, monkeypatch
):
    class Page:
        def block_thread(self): ...

    def launch(studio, *, host, share, **_):
        print("launched with", host, share)
        return Page(), "http://there"

    monkeypatch.setattr("sasa.demo.page.launch", launch)
    done = command("demo", "-m", tiny_folder, *options)
    assert f"launched with {host} {share}" in done.stdout
    assert said in done.stdout


def test_boundaries_of_one_name_are_told_apart(model, tokenizer, folders, tmp_path):
    other = tiny.boundary(model, 5).save(tmp_path / "calm")
    studio = Studio(model, tokenizer, (str(folders[0]), str(other)), strict=False)
    assert list(studio.boundaries) == ["calm", str(other)]
    assert list(Studio(model, tokenizer, (str(other),), strict=False).boundaries) == ["calm"]


def test_both_sides_are_what_generate_writes(studio, model, tokenizer):
    wish = Wish(
        {"calm": 1.0, "kind": 0.5}, beta=3.0, top_k=9, max_new_tokens=8, seed=4, threshold=0.9
    )
    states = [(list(one.steps), list(other.steps)) for one, other, _ in studio.write(PROMPT, wish)]
    plain, steered, line = list(studio.write(PROMPT, wish))[-1]
    assert [len(states[0][0]), len(states[0][1])] == [1, 0], "a token each in turn"
    lines = [(studio.boundaries["calm"], 1.0), (studio.boundaries["kind"], 0.5)]
    settings = dict(top_k=9, top_p=0.9, temperature=1.0, max_new_tokens=8, seed=4, prior=0.2)
    (want,) = sasa.generate(model, tokenizer, PROMPT, lines, 0.0, **settings)
    assert plain.completion.tokens == want.tokens
    (want,) = sasa.generate(
        model, tokenizer, PROMPT, lines, 3.0, backtrack=sasa.Backtracking(0.9), **settings
    )
    assert steered.completion.tokens == want.tokens
    assert [step.token for step in steered.steps if step.kept] == want.tokens
    assert line is studio.boundaries["calm"]
    with pytest.raises(ValueError, match="no boundary steers"):
        next(studio.write(PROMPT, Wish({"calm": 0.0})))


def test_a_fit_is_followed_and_its_boundary_steers(studio, corpus_file):
    assert columns_of(corpus_file) == (["comment", "toxic", "score"], "comment", "toxic")
    seen = []
    boundary, file = studio.fit(
        corpus_file, "comment", "toxic", tell=lambda *told: seen.append(told)
    )
    assert seen[-1][0] == "embedding"
    assert seen[-1][1] == seen[-1][2]
    assert boundary.report["test"]["auc"] > 0.9
    assert sasa.Boundary.load(file).fingerprint == boundary.fingerprint
    (*_, (_, steered, line)) = studio.write(
        PROMPT, Wish({"mine": 1.0}, max_new_tokens=3, seed=0), {"mine": boundary}
    )
    assert line is boundary
    assert steered.completion.text
    with pytest.raises(ValueError, match="score"):
        studio.fit(corpus_file, "comment", "score", "0.7")


def test_what_a_model_writes_is_text_and_not_markup(model):
    choice = TracedCandidate(1, "<b>\n", 0.0, 1.0, 1.0, (0.5,), 0.0, 0.0)
    steps = [
        TracedStep(0, 1, "<script>&\n", 1.0, (choice,)),
        TracedStep(0, 1, "gone", 1.0, (choice,), kept=False),
    ]
    made = markup.side("<i>", Side(steps), tiny.boundary(model))
    assert "<script>" not in made
    assert "&lt;script&gt;&amp;" in made
    assert "&lt;i&gt;" in made
    assert "&lt;b&gt;↵" in made
    assert 'sasa-gone" tabindex="0"' in made
    assert "1 token, 1 taken back" in made


@pytest.fixture
def address(tiny_folder, folders, tmp_path):
    """Of the page of a tiny model, in a process of its own."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium: Debian's packages chromium and chromium-driver have it")
    pytest.importorskip("playwright")
    command = [sys.executable, "-m", "sasa", "demo", "-m", str(tiny_folder), "--no-strict"]
    command += [word for folder in folders for word in ("-b", str(folder))]
    environment = os.environ | {
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
        "TMPDIR": str(tmp_path),
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as page:
        told = ""
        for line in page.stdout:
            told += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail(told)
        assert "on this machine alone" in told
        yield found[0]
        page.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            page.wait(20)
        page.kill()


@pytest.mark.slow
def test_the_space_serves_it(tiny_folder, tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "SASA_MODEL": str(tiny_folder),
        "GRADIO_SERVER_PORT": str(port),
        "TMPDIR": str(tmp_path),
    }
    with subprocess.Popen([sys.executable, ROOT / "spaces" / "app.py"], env=environment) as app:
        try:
            for _ in range(120):
                time.sleep(0.5)
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as page,
                ):
                    assert json.load(page)["title"] == "sasa"
                    break
            else:
                pytest.fail("nothing was served")
        finally:
            app.kill()


@pytest.mark.browser
def test_every_part_of_the_page(address, corpus_file):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(address)

        def number(name, value):
            field = page.locator(f"#{name} input[type=number]")
            field.fill(str(value))
            field.press("Tab")

        def write():
            """What both sides say once they are done."""
            page.evaluate(
                "document.querySelectorAll('.sasa-text').forEach(node => node.classList.add('old'))"
            )
            page.click("#write")
            for side in ("plain", "steered"):
                expect(
                    page.locator(f"#{side} .sasa-text:not(.old) ~ .sasa-figures")
                ).to_contain_text("margin")
                expect(page.locator(f"#{side} .sasa-card").first).to_be_attached()
            return [
                page.locator(f"#{side} .sasa-text").inner_text() for side in ("plain", "steered")
            ]

        # Side by side, each token with a card of candidates when it is pointed at or clicked.
        page.fill("#prompt textarea", PROMPT)
        number("tokens", 10)
        number("seed", 3)
        number("beta", 20)
        plain, steered = write()
        assert PROMPT in plain
        assert plain != steered
        token = page.locator("#steered .sasa-token").nth(2)
        expect(token.locator(".sasa-card")).to_be_hidden()
        token.hover()
        expect(token.locator(".sasa-card")).to_be_visible()
        for head in ("before", "after", "P(safe)"):
            expect(token.locator(".sasa-card")).to_contain_text(head)
        page.mouse.move(1, 1)
        expect(token.locator(".sasa-card")).to_be_hidden()
        token.click()
        page.mouse.move(1, 1)
        expect(token.locator(".sasa-card")).to_be_visible()
        hues = page.locator("#plain .sasa-token").evaluate_all(
            "nodes => nodes.map(node => node.getAttribute('style'))"
        )
        assert len(set(hues)) > 1, "coloured by margin"

        # Sliders: beta 0 writes what the model writes; another boundary with a weight, something else.
        number("beta", 0)
        number("seed", 4)
        same, too = write()
        assert same == too
        number("beta", 20)
        number("weight-1", 2)
        number("seed", 3)
        assert write()[1] != steered

        # Backtracking: what was taken back is struck through where it stood.
        page.check("#backtrack input")
        number("threshold", 0.5)
        number("beta", 0)
        number("seed", 5)
        write()
        gone = page.locator("#steered .sasa-gone")
        assert gone.count()
        assert "line-through" in gone.first.evaluate(
            "node => getComputedStyle(node).textDecorationLine"
        )
        expect(page.locator("#steered .sasa-figures")).to_contain_text("taken back")
        assert not page.locator("#plain .sasa-gone").count()
        page.uncheck("#backtrack input")

        # Chat, errors in words, and a stop.
        page.check("#chat input")
        write()
        page.uncheck("#chat input")
        page.fill("#prompt textarea", " ")
        page.click("#write")
        expect(page.get_by_text("is empty")).to_be_visible()
        page.fill("#prompt textarea", PROMPT)
        number("tokens", 200)
        page.click("#write")
        expect(page.locator("#steered .sasa-figures")).to_contain_text("token")
        page.click("#stop")
        page.wait_for_timeout(1000)
        stopped = page.locator("#steered .sasa-token").count()
        page.wait_for_timeout(1000)
        assert page.locator("#steered .sasa-token").count() == stopped < 200

        # A text of one's own.
        page.get_by_role("tab", name="Inspect my text").click()
        page.fill("#text textarea", "what a lovely <day>")
        page.click("#inspect")
        expect(page.locator("#inspected .sasa-text")).to_contain_text(
            "lovely <day>", use_inner_text=True
        )
        letter = page.locator("#inspected .sasa-token").nth(3)
        letter.hover()
        expect(letter.locator(".sasa-card")).to_contain_text("margin")

        # A fit, whose boundary steers at once.
        page.get_by_role("tab", name="Fit a boundary").click()
        page.set_input_files("#table input[type=file]", str(corpus_file))
        expect(page.locator("#text-column input")).to_have_value("comment")
        expect(page.locator("#label-column input")).to_have_value("toxic")
        page.click("#fit")
        expect(page.locator("#fitted")).to_contain_text("steers now")
        expect(page.locator("#made")).to_contain_text(".safetensors")
        page.get_by_role("tab", name="Write").click()
        expect(page.locator("#weight-2")).to_contain_text(f"weight of {corpus_file.stem}")
        expect(page.locator("#weight-2 input[type=number]")).to_have_value("1")
        expect(page.locator("#weight-0 input[type=number]")).to_have_value("0")
        number("tokens", 5)
        number("beta", 4)
        write()
        page.get_by_role("tab", name="Fit a boundary").click()
        for more in ("'", "'" * 2, "'" * 3):
            page.click("#fit")
            expect(page.locator("#fitted")).to_contain_text(f"{corpus_file.stem}{more} steers now")
        page.click("#fit")
        expect(page.get_by_text("a window fits 4 boundaries")).to_be_visible()

        assert asked
        assert all(url.startswith((address, "data:", "blob:")) for url in asked), (
            "nothing outside is needed"
        )
        browser.close()
