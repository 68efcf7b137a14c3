"""What is built installs, and works where the repository is not."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution, and the wheel that is built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def test_nothing_is_missing(built):
    source, wheel = built
    inside = set(zipfile.ZipFile(wheel).namelist())
    code = {
        f"sasa/{file.relative_to(ROOT / 'sasa').as_posix()}" for file in (ROOT / "sasa").rglob("*")
    }
    wanted = {name for name in code if Path(name).suffix in (".py", ".c", ".css", ".toml", ".txt")}
    assert wanted <= inside, wanted - inside
    assert {
        f"sasa/_classifiers/{f.parent.name}/boundary.safetensors"
        for f in (ROOT / "classifiers").glob("*/*.toml")
    } <= inside
    with tarfile.open(source) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    for name in (
        "README.md",
        "Makefile",
        "mkdocs.yml",
        "docs/tutorial.md",
        "tests/tiny.py",
        "hub/custom_generate/generate.py",
    ):
        assert name in names


@pytest.mark.model
def test_the_wheel_alone_runs_readme(built, real, tmp_path):
    """Installed into an empty folder, with only what it depends on beside it."""
    _, wheel = built
    place = tmp_path / "installed"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(place),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(place)}
    python = "\n".join(
        re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    )
    told = "import sys\nfrom sasa.core.shipped import bundled\n"
    told += "assert sasa.__file__.startswith(sys.argv[1]), sasa.__file__\nassert bundled()\n"
    options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", python + told, str(place)], **options)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "sasa", "generate", "My neighbour is", "-n", "5", "--seed", "1"],
        **options,
    )
    assert "P(safe)" in done.stdout, done.stderr
