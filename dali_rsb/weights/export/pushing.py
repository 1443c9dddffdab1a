"""Pushes a hub folder, by huggingface_hub and the token that it knows."""

from __future__ import annotations

from pathlib import Path

from dali_rsb.errors import UserError


def check_push(repository: str) -> None:
    """Refuse, before anything is computed, what could not be pushed.

    Raises:
        UserError: it is no name of a repository, or huggingface_hub knows no token.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(
            f"--push {repository!r:.80} is no repository of the hub; write USER/NAME"
        ) from error
    if huggingface_hub.get_token() is None:
        raise UserError("--push needs a token of the hub; run: hf auth login, or set HF_TOKEN")


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Create the repository if need be, and upload the folder as one commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached, or refuses. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="dali_rsb")
    try:
        created = api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=created.repo_id, folder_path=folder))
    # The library raises its own errors and those of its HTTP client, which changes with versions.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{folder} is complete, but pushing it to {repository} failed ({lines[0][:100]}); try "
            f"again by: hf upload {repository} {folder}"
        ) from error
