"""What comes out of a run, on the hub of Hugging Face."""

from __future__ import annotations

from typing import Any

from .checkpoints import PATTERN

PRIVATE = [f"{PATTERN}/*", f".{PATTERN}/*", "cache/*", "validation/*", "*.part"]
"""What stays here: the way there, and the data."""


def check(options: Any) -> None:
    """Make the place, so that what is in the way is said before anything takes long.

    Raises:
        ValueError: nobody is logged in, no such owner, no network.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(_name(options), exist_ok=True)
    except Exception as error:  # whatever the network, the hub or a missing login raises
        raise ValueError(
            f"--push_to_hub: {_name(options)} cannot be made ({error}); log in with hf auth login, or leave it out"
        ) from error


def push(options: Any) -> str:
    """Upload the output but for checkpoints and cache; its address."""
    from huggingface_hub import HfApi

    place = HfApi().upload_folder(folder_path=options.output, repo_id=_name(options), ignore_patterns=PRIVATE)
    return str(place)


def _name(options: Any) -> str:
    return str(options.hub_model_id or options.output.resolve().name)
