"""Groups of options: a command's dataclass is its fields on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import click
import pytest
import typer
from typer.testing import CliRunner

from sasa.cli.groups import expand, given
from sasa.core.settings import option


@dataclass(frozen=True)
class Library:
    """Settings of a library, which knows nothing of typer."""

    steps: int = field(default=3, metadata=option("Updates.", "--steps", "-n", least=1))
    rate: float | None = field(default=None, metadata=option("Of learning.", shown="by size"))
    chat: bool = field(default=False, metadata=option("A template."))
    hidden: int = 7


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    where: Annotated[str, typer.Option(help="A place.")]
    steps: Annotated[int, typer.Option("--other-steps")] = 5


def invoke(command, *words):
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return CliRunner().invoke(app, [str(word) for word in words])


def names(command):
    app = typer.Typer(add_completion=False)
    app.command()(command)
    flags = [parameter.opts[0] for parameter in typer.main.get_command(app).params]
    return [flag for flag in flags if flag != "--help"]


@pytest.fixture
def taken():
    return []


@pytest.fixture
def command(taken):
    @expand("library", seed="steps")
    @expand("options")
    def command(
        *,
        options: Options,
        library: Library,
        seed: Annotated[int, typer.Option("--seed")] = 0,
    ) -> None:
        taken.append((options, library, seed))

    return command


def test_fields_are_options_with_the_defaults_of_the_dataclass(command, taken):
    assert invoke(command, "--where", "x").exit_code == 0
    assert taken == [(Options("x"), Library(), 0)]


def test_what_is_given_is_one_value_again(command, taken):
    words = ["--where", "x", "-n", 4, "--rate", 0.5, "--chat", "--other-steps", 6, "--seed", 1]
    assert invoke(command, *words).exit_code == 0
    assert taken == [(Options("x", steps=6), Library(steps=4, rate=0.5, chat=True), 1)]


def test_options_stand_where_their_group_does_unless_they_are_placed(command):
    want = ["--where", "--other-steps", "--rate", "--chat", "--steps", "--seed"]
    assert names(command) == want


def test_ranges_and_required_fields_are_usage_errors(command, taken):
    assert "--where" in click.unstyle(invoke(command).output)
    assert invoke(command, "--where", "x", "-n", 0).exit_code == 2
    assert not taken


def test_a_default_value_of_a_group_has_the_options_defaults(taken):
    @expand("library")
    def command(*, library: Library = Library(steps=9)) -> None:
        taken.append(library)

    assert invoke(command).exit_code == 0
    assert taken == [Library(steps=9)]


def test_what_is_given_leaves_out_what_is_none():
    assert given(Library(chat=True)) == {"steps": 3, "chat": True, "hidden": 7}
