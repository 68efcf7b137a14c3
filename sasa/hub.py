"""Boundaries on the Hub, with their cards. `Boundary.load("owner/name")` fetches one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sasa.boundary import Boundary
from sasa.files import write_atomically
from sasa.fitting.card import card


def push_to_hub(boundary: Boundary, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Uploads a boundary and its card to a Hub model repository, made where there is none.

    Returns:
        the address of the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        boundary.save(folder)
        if "test" in boundary.report:
            write_atomically(Path(folder) / "README.md", card(boundary))
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
