"""The house: what ARCHITECTURE.md says of the rooms is so, and the rule needs no model."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sasa

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sasa"
PLAN = (ROOT / "ARCHITECTURE.md").read_text()
FACE = {("boundary", "margins"), ("boundary", "hub")}
"""Methods of `Boundary` that call the public functions of the same name, when they are called."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name.removesuffix(".__init__") for name in FILES} - {"__init__"}


def arrows() -> set[tuple[str, str]]:
    """Who imports whom, late imports and names of the public face included; not what only a type checker sees."""
    found, public = set(), {f"sasa.{name}" for name in sasa.__all__}
    for name, tree in FILES.items():
        importer = name.removesuffix(".__init__")
        if importer in ("__init__", "__main__"):
            continue
        checked = [
            n
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for n in ast.walk(node)
        ]
        for node in ast.walk(tree):
            if node in checked:
                continue
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sasa":
                module = (node.module or "").removeprefix("sasa").removeprefix(".")
                for alias in node.names:
                    inner = f"{module}.{alias.name}".removeprefix(".")
                    found.add((importer, inner if inner in MODULES else module))
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in public:
                found.add((importer, sasa._HOMES[node.attr]))
    return {(a, b) for a, b in found if b and a != b}


def room(module: str) -> str:
    return module.split(".")[0]


def floors() -> dict[str, int]:
    """From the list in ARCHITECTURE.md: each room's floor, the rule's being the first."""
    (block,) = re.findall(r"```rooms\n(.*?)```", PLAN, re.DOTALL)
    return {
        name: floor
        for floor, line in enumerate(block.strip().splitlines())
        for name in re.findall(r"[a-z_]+", line.split("  ")[0])
    }


def test_every_room_stands_in_the_plan_and_the_plan_has_no_other():
    assert set(floors()) == {room(module) for module in MODULES} - {"__main__"}
    named = set(re.findall(r"`sasa/([\w/.]+)`", PLAN))
    missing = {name for name in named if not (PACKAGE / name).exists()}
    assert not missing, "ARCHITECTURE.md names what is not there"
    files = {
        path.relative_to(PACKAGE).as_posix()
        for name in ("models", "lookahead")
        for path in (PACKAGE / name).glob("*.py")
    }
    files |= {path.name for path in PACKAGE.glob("*.py")}
    unnamed = {file for file in files if not file.startswith("__") and not file.endswith("__init__.py")} - named
    assert not unnamed, "ARCHITECTURE.md leaves these out"


def test_nobody_imports_from_a_floor_above():
    at = floors()
    wrong = {(a, b) for a, b in arrows() - FACE if at[room(a)] < at[room(b)]}
    assert not wrong


def test_no_circle():
    """A file imports none that, by whatever way, imports it."""
    after: dict[str, set[str]] = {}
    for a, b in arrows() - FACE:
        after.setdefault(a, set()).add(b)
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for other in sorted(after.get(module, ())):
                walk(other, (*way, module))
            done.add(module)

    for module in sorted(after):
        walk(module, ())


RULE = """
import sys
for name in ("transformers", "tokenizers", "sklearn", "huggingface_hub", "rich", "typer"):
    sys.modules[name] = None  # an import of it fails
import torch
from sasa import Backtracking, Boundary, EmbeddingSpec
from sasa.backtracking import Watch
from sasa.boundary import ModelInfo
from sasa.candidates import Race, noise, select
from sasa.values import Steering

torch.manual_seed(0)
info = ModelInfo("any", "engine", 4, 2, 9)
boundary = Boundary(torch.ones(4), 0.0, EmbeddingSpec(), info)
steering = Steering.of(boundary, 2.0, "log_sigmoid")
scores, texts, extended = torch.randn(2, 9), torch.randn(2, 4), torch.randn(2, 9, 4)
race = Race.among(select(scores, 6, 0.9), scores, noise(scores), steering.bound)
rows = torch.arange(2)
while len(rows):
    ids = race.take(1, rows)
    ahead = extended[rows[:, None], ids]
    margins = steering.margins([texts[rows]], [ahead], ids == 8)
    race.value(steering.beta * steering.values(margins), rows)
    rows = rows[:0] if race.over() else race.open().nonzero()[:, 0]
watch = Watch(Backtracking(threshold=0.5), [boundary], 2, 5, [8])
watch.record(torch.arange(2), race.winner, torch.randn(2, 1), torch.ones(2), torch.zeros(2, dtype=torch.bool))
print(race.winner.tolist())
"""


def test_the_rule_needs_torch_and_safetensors_alone():
    """Scores, noise and margins become a token, and a step is recorded, without a model's library."""
    done = subprocess.run([sys.executable, "-c", RULE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(eval(done.stdout)) == 2


def test_files_are_imported_when_they_are_named():
    """`import sasa` alone imports none of them."""
    code = "import sys, sasa; print('transformers' in sys.modules, sasa.boundary.FILE_NAME, hasattr(sasa, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "boundary.safetensors", "False"], done.stderr


COMMANDS = ("generate", "fit", "tune", "train repulse", "redteam run", "audit", "selectivity", "inspect", "bench rtp")
HEAVY = ("torch", "transformers", "numpy", "scipy", "sklearn", "pandas", "datasets", "matplotlib", "gradio")


@pytest.mark.parametrize("words", ["--version", "--help", "nothing", *(f"{c} --nothing" for c in COMMANDS)])
def test_a_command_line_imports_nothing_heavy_before_it_is_needed(words):
    code = f"""import sys; sys.argv = ["sasa", *{words.split()}]
from sasa.cli import main
try: main()
finally: print("heavy:", [name for name in {HEAVY} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "heavy: []" in done.stdout, done.stdout + done.stderr
    assert done.returncode == (0 if words in ("--version", "--help") else 2), done.stderr


def test_the_bundled_boundaries_are_listed_without_torch():
    code = """import sys; sys.argv = ["sasa", "classifiers"]
from sasa.cli import main
try: main()
finally: print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "toxicity" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")


def test_the_list_of_commands_says_what_their_own_help_says():
    from sasa.cli import COMMANDS, _imported

    for name, about in COMMANDS.items():
        command = _imported(name)
        assert " ".join(command.help.split()).startswith(about.removesuffix(".")), name


@pytest.mark.parametrize("package", ["sasa", "sasa.evaluation", "sasa.redteam", "sasa.training"])
def test_what_is_imported_late_is_there(package):
    """No module goes by the name of what is imported late: once imported, it would stand in its place."""
    face = importlib.import_module(package)
    assert set(face.__all__) == set(face._HOMES)
    for name, home in face._HOMES.items():
        assert getattr(face, name) is getattr(importlib.import_module(f"{package}.{home}"), name)
        assert importlib.util.find_spec(f"{package}.{name}") is None
    assert not hasattr(face, "nothing")
    assert not hasattr(face, "a.b")


def test_what_goes_by_name_is_made_by_name():
    from sasa.evaluation import methods, scorers, settings
    from sasa.settings import VALUES
    from sasa.values import FUNCTIONS

    assert list(settings.METHODS) == list(methods.MAKERS)
    assert list(settings.SCORER_NAMES) == list(scorers.SCORERS)
    assert list(VALUES) == list(FUNCTIONS)


def test_the_public_names():
    assert set(sasa.__all__) == set(sasa._HOMES)
    assert all(getattr(sasa, name) is not None for name in sasa.__all__)
