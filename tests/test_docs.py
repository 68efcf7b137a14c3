"""What README and documentation show is so: Python is executed, command lines are ones that exist, links lead somewhere."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import typer
from shell import sasa as command

import sasa
from sasa.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<how>[^>]*) -->\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def name(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


def blocks(page):
    """(what is said of it, kind, code) of each block of a page."""
    for found in FENCE.finditer(page.read_text()):
        yield found["how"] or "", found["kind"], found["code"]


def commands(code):
    """The words of each command line of `sasa`, without what a shell makes of the rest of the line."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["sasa"]:
            yield words[
                1 : next((i for i, word in enumerate(words) if word in ("&", "|", ">", "&&")), None)
            ]


def runs(how, kind):
    """Whether a block is executed; one of Python may say that it is not, and why."""
    return how == "run" if kind == "sh" else kind == "python" and not how.startswith("not run")


EXECUTED = [page for page in PAGES if any(runs(how, kind) for how, kind, _ in blocks(page))]


@pytest.mark.model
@pytest.mark.parametrize("page", EXECUTED, ids=name)
def test_what_a_page_shows_runs(page, real, tmp_path, monkeypatch):
    """In one folder and one namespace, block after block; a block may say that it is not run, and why."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sasa, "load", lambda *_, **__: real)  # once for all pages
    names = {"__name__": "page"}
    for how, kind, code in blocks(page):
        if not runs(how, kind):
            continue
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(code, f"{name(page)}.md", "exec"), names)
        else:
            for words in commands(code):
                assert command(*words).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_are_ones_that_the_program_takes(page):
    for _, kind, code in blocks(page):
        for words in commands(code) if kind == "sh" else ():
            names = parse(words)
            assert names == words[: len(names)]


def parse(words):
    """Parses a command line as the program does, without running it; returns the names of its commands."""
    at, rest = typer.main.get_command(app), [word for word in words if word != "…"]
    context, names = None, []
    while True:
        context = at.make_context(at.name or "sasa", list(rest), parent=context)
        if not hasattr(at, "resolve_command"):
            return names
        rest = [*context._protected_args, *context.args]
        name, at, rest = at.resolve_command(context, rest)
        names.append(name)


def test_a_wrong_command_line_is_found():
    with pytest.raises(Exception, match="nothing"):
        parse(["generate", "My neighbour is", "--nothing"])
    with pytest.raises(Exception, match="'nope'"):
        parse(["bench", "nope"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_readme_fits_on_a_screen_and_a_half():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120


@pytest.mark.model
def test_completions_in_readme_are_those_of_its_command(real):
    """What one prompt becomes, at three strengths; another machine's arithmetic may write something else from there on."""
    text = (ROOT / "README.md").read_text()
    ((prompt, tokens, seed),) = re.findall(
        r'sasa generate "(.*?)" -n (\d+) --seed (\d+) --beta 0', text
    )
    rows = re.findall(r"^\| (\d+), [\w ]+ \| (.*) \|$", text, re.MULTILINE)
    assert [int(beta) for beta, _ in rows] == [0, 4, 40]
    for beta, shown in rows:
        (made,) = sasa.generate(
            *real, prompt, beta=float(beta), seed=int(seed), max_new_tokens=int(tokens)
        )
        assert " ".join(made.text.split())[:12] == shown[:12]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    pytest.importorskip("mkdocstrings")
    settings = config.load_config(
        str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")
    )
    build(settings)  # strict: a warning is an error
    text = (tmp_path / "site" / "api" / "generation" / "index.html").read_text()
    assert "num_return_sequences" in text
    assert (tmp_path / "site" / "pictures" / "margin.png").is_file()
