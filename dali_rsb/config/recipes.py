"""Configurations by name: `a3` stands for the recipe that comes with the package."""

from __future__ import annotations

from pathlib import Path

from dali_rsb.errors import UserError, suggestion

_PACKAGE = Path(__file__).parents[1]


def recipe_folder() -> Path:
    """Where the recipes lie: in the installed package, or in `configs/` of a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file that a command's CONFIG means: a path, a run folder, or the name of a recipe.

    Raises:
        UserError: it is none of these.
    """
    path = Path(name).expanduser()
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.is_file() or (path.exists() and not path.is_dir()):
        return path
    known = recipes()
    # `configs/a3.yaml`, as the README writes it, outside of a checkout.
    stem = path.stem if path.suffix == ".yaml" and str(path.parent) in (".", "configs") else name
    if stem in known:
        return known[stem]
    raise UserError(
        f"cannot read {name}: no such file or recipe{suggestion(stem, known)} "
        f"(recipes: {', '.join(known)})"
    )
