"""The house: what ARCHITECTURE.md says of the rooms is so, and the rule needs no model."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sasa

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sasa"
PLAN = (ROOT / "ARCHITECTURE.md").read_text()
PUBLIC = {f"sasa.{name}": getattr(sasa, name) for name in sasa.__all__}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name.removesuffix(".__init__") for name in FILES} - {"__init__"}


def home(name: str) -> str:
    """The module of a name in `sasa.__all__`, from the stub that lists them."""
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return node.module or name
    raise AssertionError(name)


def imports() -> set[tuple[str, str]]:
    """(importer, imported) within the package: late imports, imports for type checking and uses of `sasa.name` included."""
    pairs = set()
    for name, tree in FILES.items():
        importer = name.removesuffix(".__init__")
        if importer in ("__init__", "__main__"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sasa":
                module = (node.module or "").removeprefix("sasa").removeprefix(".")
                for alias in node.names:
                    inner = f"{module}.{alias.name}".removeprefix(".")
                    pairs.add((importer, inner if inner in MODULES else module or home(alias.name)))
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in PUBLIC:
                pairs.add((importer, home(node.attr)))
    return {(a, b) for a, b in pairs if a != b}


def package(module: str) -> str:
    return module.split(".")[0]


def layers() -> dict[str, int]:
    """The list in ARCHITECTURE.md: each package and its layer, the lowest being 0."""
    (block,) = re.findall(r"```layers\n(.*?)```", PLAN, re.DOTALL)
    return {
        name: layer
        for layer, line in enumerate(block.strip().splitlines())
        for name in line.split("  ")[0].split()
    }


def test_the_plan_names_every_package_and_no_other():
    assert set(layers()) == {package(module) for module in MODULES} - {"__main__"}
    named = set(re.findall(r"`sasa/([\w/.]+)`", PLAN))
    missing = {name for name in named if not (PACKAGE / name).exists()}
    assert not missing, "ARCHITECTURE.md names what is not there"


def test_the_tree_has_every_file_and_no_other():
    (block,) = re.findall(r"```tree\nsasa/\n(.*?)```", PLAN, re.DOTALL)
    files, folders = set(), []
    for line in block.splitlines():
        indent, name = line[: -len(line.lstrip())], line.split()[0]
        folders = folders[: len(indent) // 2 - 1]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.add("".join([*folders, name]))
    assert files == {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent == PACKAGE
    }


def test_no_file_imports_from_a_layer_above_its_own():
    at = layers()
    wrong = {(a, b) for a, b in imports() if at[package(a)] < at[package(b)]}
    assert not wrong


def graph(pairs: set[tuple[str, str]]) -> dict[str, set[str]]:
    after: dict[str, set[str]] = {}
    for a, b in pairs:
        after.setdefault(a, set()).add(b)
        after.setdefault(b, set())
    return after


def test_no_files_and_no_packages_import_each_other_in_a_circle():
    for pairs in (
        imports(),
        {(package(a), package(b)) for a, b in imports() if package(a) != package(b)},
    ):
        list(
            TopologicalSorter(graph(pairs)).static_order()
        )  # raises CycleError, which names the circle


def test_the_house_stays_small():
    """Few packages and short chains of imports between them, short files, functions and classes."""
    units = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert len(units) <= 18
    after = graph({(package(a), package(b)) for a, b in imports() if package(a) != package(b)})
    depth: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        depth[name] = 1 + max((depth[other] for other in after[name]), default=0)
    assert max(depth.values()) <= 11
    long = {}
    for name, tree in FILES.items():
        long[name] = len((PACKAGE / f"{name.replace('.', '/')}.py").read_text().splitlines()) / 400
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                long[f"{name}:{node.name}"] = lines / 80
            elif isinstance(node, ast.ClassDef):
                long[f"{name}:{node.name}"] = (node.end_lineno - node.lineno + 1) / 300
    assert not {name for name, share in long.items() if share > 1}


RULE = """
import sys
for name in ("transformers", "tokenizers", "sklearn", "huggingface_hub", "rich", "typer"):
    sys.modules[name] = None  # an import of it fails
import torch
from sasa import Backtracking, Boundary, EmbeddingSpec
from sasa.core.backtracking import Watch
from sasa.core.model_info import ModelInfo
from sasa.core.candidates import Race, noise, select
from sasa.core.values import Steering

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


def test_packages_are_imported_when_they_are_named():
    """`import sasa` alone imports none of them."""
    code = "import sys, sasa; print('transformers' in sys.modules, sasa.core.__name__, hasattr(sasa, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "sasa.core", "False"], done.stderr


COMMANDS = (
    "generate",
    "fit",
    "tune",
    "train repulse",
    "redteam run",
    "audit",
    "selectivity",
    "inspect",
    "bench rtp",
)
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "datasets",
    "matplotlib",
    "gradio",
)


@pytest.mark.parametrize(
    "words", ["--version", "--help", "nothing", *(f"{c} --nothing" for c in COMMANDS)]
)
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


@pytest.mark.parametrize("name", ["sasa", "sasa.evaluation", "sasa.redteam", "sasa.training"])
def test_public_names_are_imported_when_they_are_used(name):
    package = importlib.import_module(name)
    assert package.__all__
    for public in package.__all__:
        assert not inspect.ismodule(getattr(package, public)), public
        assert public in dir(package)
    assert not hasattr(package, "nothing")
    assert not hasattr(package, "a.b")


def test_values_have_a_function_each():
    from sasa.core.settings import VALUES
    from sasa.core.values import FUNCTIONS

    assert list(VALUES) == list(FUNCTIONS)


@pytest.mark.parametrize("kind", ["METHODS", "SCORERS"])
def test_every_registered_name_resolves_to_something_callable(kind):
    from sasa.evaluation import registry

    entries = getattr(registry, kind)
    for name, entry in entries.items():
        assert entry.help, name
        assert callable(entry.resolve()), name
        inspect.signature(entry.resolve()).bind(*([entry.argument] if entry.argument else []))


def test_the_public_names():
    names = "Backtracking Boundary Completion EmbeddingSpec SASADecoder SASALogitsProcessor SASAOutput embed generate"
    names += " load pull_from_hub push_to_hub score trace"
    assert sorted(sasa.__all__) == names.split()


def test_what_was_imported_from_sasa_boundary_still_is():
    from sasa.boundary import Boundary, EmbeddingSpec, ModelInfo
    from sasa.core import boundary, embedding_spec, model_info

    assert Boundary is boundary.Boundary is sasa.Boundary
    assert EmbeddingSpec is embedding_spec.EmbeddingSpec
    assert ModelInfo is model_info.ModelInfo
