"""What tuning found, stored in the user's cache: one file for each kind of machine, dataset and
augmentation."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.system.atomic import atomic_file
from dali_rsb.system.files import MissingFileError, UnreadableFileError, read_json
from dali_rsb.system.user_cache import user_cache

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_NAMES = {field.name for field in fields(LoaderSettings)}


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        settings: values by name, of those that were searched.
        date: day of the measurement, such as 2026-05-01.
        img_per_s, default_img_per_s: loader alone, with these settings and with the defaults.
    """

    settings: Mapping[str, Any]
    date: str
    img_per_s: float
    default_img_per_s: float


def load_tuned(key: Mapping[str, Any]) -> Tuned | None:
    """What is stored for a key, None if nothing is; a file that cannot be read counts as nothing.

    Args:
        key: the machine, the dataset and the augmentation, as JSON values.
    """
    try:
        path = _file_of(key)
    except RuntimeError:  # this user has no home directory
        return None
    try:
        stored = read_json(path, "tune again")
        if stored["key"] != _as_json(key) or not stored["settings"].keys() <= _NAMES:
            return None
        return Tuned(
            stored["settings"], stored["date"], stored["img_per_s"], stored["default_img_per_s"]
        )
    except MissingFileError:
        return None
    except (UnreadableFileError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "reason", f"lacks what tuning stores ({error})")
        logger.warning("%s %s and is not used: tune again", path, reason)
        return None


def store_tuned(key: Mapping[str, Any], tuned: Tuned) -> Path:
    """Store a result in place of an earlier one, whole or not at all; return its file.

    Raises:
        UserError: the user's cache cannot be written.
    """
    try:
        path = _file_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": _as_json(key), **asdict(tuned)}, indent=2)
        with atomic_file(path) as file:
            file.write(f"{text}\n".encode())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot store the result in the user's cache ({reason}): set XDG_CACHE_HOME to the "
            "absolute path of a folder that you can write"
        ) from error
    return path


def _as_json(key: Mapping[str, Any]) -> Any:
    """The key as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(key))


def _file_of(key: Mapping[str, Any]) -> Path:
    text = json.dumps([FORMAT_VERSION, key], sort_keys=True)
    name = hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
    return user_cache() / "tuned" / f"{name}.json"
