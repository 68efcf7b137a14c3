"""Boundaries on the Hub, with their cards. `Boundary.load("owner/name")` fetches one."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from sasa.core.boundary import Boundary
from sasa.core.shipped import FILE_NAME
from sasa.fitting.card import card
from sasa.utils.files import write_atomically

BESIDE = "recipe.toml", "margins.png"
"""The files that a fit writes beside a boundary and its card."""


def push_to_hub(
    boundary: Boundary,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Uploads a boundary and its card to a Hub model repository, which is created if there is none.

    Args:
        folder: of the fit: its recipe and its plot are uploaded, too.

    Returns:
        the address of the upload.

    Raises:
        ValueError: `repo_id` is not OWNER/NAME.
        OSError: the Hub cannot be reached, or refuses the upload; the message says why.
    """
    from huggingface_hub import HfApi

    check_repository(repo_id)
    beside = [
        Path(folder) / name
        for name in BESIDE
        if folder is not None and (Path(folder) / name).is_file()
    ]
    with tempfile.TemporaryDirectory() as upload:
        boundary.save(upload)
        for file in beside:
            shutil.copy(file, upload)
        if "test" in boundary.report:
            plotted = any(file.suffix == ".png" for file in beside)
            write_atomically(Path(upload) / "README.md", card(boundary, plotted, repo_id))
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=upload))
        except Exception as error:
            raise OSError(f"cannot upload to {repo_id!r}; the Hub says: {error}") from error


def pull_from_hub(repo_id: str, folder: str | Path, *, token: str | None = None) -> Path:
    """Downloads a boundary with its recipe, plot and card into a folder for `Boundary.load`.

    Returns:
        the folder.

    Raises:
        ValueError: `repo_id` is not OWNER/NAME, or its file is no boundary.
        FileNotFoundError: there is no boundary of that name.
        FileExistsError: the folder holds another boundary.
    """
    from huggingface_hub import snapshot_download

    check_repository(repo_id)
    folder = Path(folder)
    if (folder / FILE_NAME).exists():
        raise FileExistsError(f"{folder} holds a boundary already: choose another folder")
    try:
        patterns = [FILE_NAME, "README.md", *BESIDE]
        snapshot = Path(snapshot_download(repo_id, allow_patterns=patterns, token=token))
    except Exception as error:
        raise FileNotFoundError(f"no boundary at {repo_id!r}; the Hub says: {error}") from error
    if not (snapshot / FILE_NAME).is_file():
        raise FileNotFoundError(f"the repository {repo_id!r} holds no {FILE_NAME}")
    Boundary.load(snapshot)  # raises for a damaged file before anything is written
    for name in (*BESIDE, "README.md", FILE_NAME):
        if (snapshot / name).is_file():
            write_atomically(folder / name, (snapshot / name).read_bytes())
    return folder


def check_repository(repo_id: str) -> None:
    """Raises ValueError if a name is not OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"a repository of the Hub is OWNER/NAME, got {repo_id!r}")
