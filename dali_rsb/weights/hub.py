"""Weights from timm and the Hugging Face hub: downloaded or cached by them, or in a folder."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from dali_rsb.constants import HUB_PREFIX, TIMM_PREFIX
from dali_rsb.errors import UserError
from dali_rsb.run.checkpoint import read_saved
from dali_rsb.system.files import read_json
from dali_rsb.weights.description import architecture_name, described
from dali_rsb.weights.hub_reach import cache_where_out_of_reach
from dali_rsb.weights.state_dicts import (
    SAFETENSORS,
    StateDict,
    checked_finite,
    of_saved,
    read_safetensors,
)
from dali_rsb.weights.weights import Weights, num_outputs

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def from_timm(source: str) -> Weights:
    """The pretrained weights that timm names.

    Args:
        source: timm:NAME.TAG, or timm:NAME for timm's default tag.

    Raises:
        UserError: timm is missing or knows no such weights, or they cannot be had.
    """
    timm = _timm(source)
    name = source.removeprefix(TIMM_PREFIX)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), cutoff=0.0)
        raise UserError(f"{source}: timm has no such model; the nearest are {', '.join(nearest)}")
    if not timm.models.is_model_pretrained(name):
        known = timm.list_pretrained(f"{architecture}.*")
        what = f"give {TIMM_PREFIX}{', '.join(known[:5])}" if known else "give another model"
        raise UserError(f"{source}: timm has no such weights; {what}")
    return _loaded_by_timm(name, source)


def from_hub(source: str) -> Weights:
    """The weights of a repository on the hub, in the form that timm writes.

    Args:
        source: hf:OWNER/NAME, perhaps with @REVISION.

    Raises:
        UserError: huggingface_hub is missing, or the files cannot be had or read.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"{source} needs huggingface_hub ({error}); pip install huggingface_hub"
        ) from error
    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    try:
        with cache_where_out_of_reach():
            config = hf_hub_download(repository, CONFIG_FILE, revision=revision or None)
            for name in WEIGHT_FILES:
                try:
                    hf_hub_download(repository, name, revision=revision or None)
                    break
                except LocalEntryNotFoundError:  # perhaps the other one is in the cache
                    if name == WEIGHT_FILES[-1]:
                        raise
                except EntryNotFoundError:
                    continue
    except Exception as error:  # of the network, the hub, or its client
        raise UserError(_why_not(source, error)) from error
    return from_folder(Path(config).parent, source)


def is_model_folder(path: Path) -> bool:
    """Is this a folder as timm's `save_for_hf` and the hub lay them out?"""
    return (path / CONFIG_FILE).is_file()


def from_folder(folder: Path, source: str) -> Weights:
    """The weights in a folder with config.json and model.safetensors or pytorch_model.bin.

    Raises:
        UserError: a file is missing or damaged, or not as timm writes it.
    """
    config = read_config(folder)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{source} has no {' or '.join(WEIGHT_FILES)} beside {CONFIG_FILE}")
    if path.suffix == SAFETENSORS:
        found = read_safetensors(path)
    else:
        found = of_saved(read_saved(path), path, ema=True)
    weights = described(found.tensors, source, config)
    assert weights.architecture is not None
    if not weights.architecture.startswith(TIMM_PREFIX):
        return weights
    # Files of some models have names of their authors; timm translates them.
    return _loaded_by_timm(f"local-dir:{folder}", source, config)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        UserError: it cannot be read or holds no mapping.
    """
    config = read_json(folder / CONFIG_FILE, "copy or download it again")
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG_FILE} holds no mapping; copy or download it again")
    return config


def of_state_dict(found: StateDict, source: str) -> Weights:
    """Weights of a single file with whatever it says of itself."""
    config = found.config or _of_timm_run(found)
    if config:
        return described(found.tensors, source, config, found.kind)
    name = found.architecture
    return Weights(found.tensors, source, name and architecture_name(name), kind=found.kind)


def _of_timm_run(found: StateDict) -> dict[str, Any]:
    """What timm's train.py and validate.py would take for the images; empty where it is unknown."""
    if found.timm_arguments is None or found.architecture is None:
        return {}
    try:
        import timm
        from timm.data import resolve_data_config
    except ImportError:
        return {}
    if not timm.is_model(found.architecture):
        return {}
    cfg = timm.get_pretrained_cfg(found.architecture)
    resolved = resolve_data_config(
        dict(found.timm_arguments), pretrained_cfg={} if cfg is None else cfg.to_dict()
    )
    return {
        "architecture": found.architecture,
        "num_classes": num_outputs(found.tensors),
        "pretrained_cfg": resolved,
    }


def _loaded_by_timm(name: str, source: str, config: dict[str, Any] | None = None) -> Weights:
    timm = _timm(source)
    try:
        with cache_where_out_of_reach():
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, the hub's client, the file or the model
        raise UserError(_why_not(source, error)) from error
    if config is None:
        cfg = dict(model.pretrained_cfg)
        names = ("architecture", "num_classes")
        config = {"pretrained_cfg": cfg, **{key: cfg[key] for key in names}}
    return described(checked_finite(model.state_dict(), source), source, config)


def _timm(source: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{source} needs timm ({error}); run: pip install timm") from error
    return timm


def _why_not(source: str, error: Exception) -> str:
    """One line on what a download or timm has raised."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"LocalEntryNotFoundError", "ConnectionError", "URLError", "TransportError"}:
        return (
            f"{source} is not in the cache and cannot be downloaded, as the hub is out of reach; "
            "connect, or download its config.json and model.safetensors elsewhere and give their "
            "folder"
        )
    if kinds & {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"}:
        return f"{source}: the hub has no such repository, or not for you; check its name and login"
    reason = " ".join(str(error).split())[:120]
    return f"{source} cannot be loaded ({type(error).__name__}: {reason}); give other weights"
