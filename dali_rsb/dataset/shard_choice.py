"""Which tar files a path stands for: a folder's, one, or those that a pattern names.

Patterns are WebDataset's braces (`train-{000000..000009}.tar`, `{train,extra}-0.tar`) and the
shell's wildcards (`train-*.tar`), in the name of the file alone.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from dali_rsb.dataset.natural_order import natural_sorted
from dali_rsb.errors import UserError

ALL = "*.tar"  # what a folder stands for, where its shards are of one set
EVERY = "**.tar"  # the same files, asked for by name

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
_WILDCARDS = re.compile(r"[*?\[{]")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_NAMES = 1_000_000


@dataclass(frozen=True)
class ShardChoice:
    """Some tar files of a folder.

    Attributes:
        folder: where they lie.
        pattern: of their names.
    """

    folder: Path
    pattern: str = ALL

    def names(self) -> list[str]:
        """The tar files' names, in natural order.

        Raises:
            UserError: braces that name a shard that is not there, or too many.
        """
        present = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if self.pattern in present:  # whatever characters its name is made of
            return [self.pattern]
        found = set()
        for pattern in expand_braces(self.pattern):
            if not _WILDCARDS.search(pattern) and pattern not in present:
                raise UserError(
                    f"{self.folder / pattern} does not exist, but {self.pattern} names it: restore "
                    "the shard, or name those that are there"
                )
            found |= set(fnmatch.filter(present, pattern))
        return natural_sorted(found)

    @property
    def origin(self) -> Path:
        """The path that stands for the choice."""
        return self.folder if self.pattern == ALL else self.folder / self.pattern


def is_choice(path: Path) -> bool:
    """Whether a path is of one shard, or a pattern of shards; a folder of shards is none."""
    if path.is_dir():
        return False
    if path.exists():
        return path.name.endswith((".tar", *_COMPRESSED))
    return bool(_WILDCARDS.search(path.name)) and path.parent.is_dir()


def choose(path: Path) -> ShardChoice:
    """The shards that a folder, a shard's path or a pattern stands for."""
    return ShardChoice(path.parent, path.name) if is_choice(path) else ShardChoice(path)


def expand_braces(pattern: str) -> list[str]:
    """All names that braces stand for, `{01..10}` with the zeros of its first number.

    Raises:
        UserError: there are too many of them.
    """
    parts = _BRACES.split(pattern)
    texts, count = [[text] for text in parts], 1
    for i in range(1, len(parts), 2):
        texts[i] = _alternatives(parts[i])
        count *= len(texts[i])
        if count > _MAX_NAMES:
            raise UserError(f"{pattern} stands for over {_MAX_NAMES:,} shards: correct its braces")
    return ["".join(combination) for combination in itertools.product(*texts)]


def _alternatives(text: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",") if "," in text else ["{" + text + "}"]
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MAX_NAMES:
        raise UserError(f"{{{text}}} stands for over {_MAX_NAMES:,} shards: correct the braces")
    step = 1 if first <= last else -1
    return [f"{number:0{len(match[1])}d}" for number in range(first, last + step, step)]


def check_names(choice: ShardChoice, names: list[str]) -> None:
    """Refuse what cannot be read as one set of shards.

    Raises:
        UserError: compressed shards, or a bare folder with shards of several sets, such as those of
            training and validation.
    """
    beside = [path.name for path in choice.folder.iterdir() if not path.name.startswith(".")]
    of_choice = beside if choice.pattern == ALL else names
    compressed = natural_sorted(name for name in of_choice if name.endswith(_COMPRESSED))
    if compressed:
        path = choice.folder / compressed[0]
        raise UserError(
            f"{path.name} is compressed, and images cannot be read out of its middle; unpack it: "
            f"{_unpacking(path)}"
        )
    if choice.pattern != ALL:
        return
    sets: dict[str, str] = {}
    for name in names:
        sets.setdefault(re.sub(r"\d+", "*", name), name)
    if len(sets) > 1:
        patterns = natural_sorted(sets)
        shown = ", ".join(patterns[:3]) + (", ..." if len(sets) > 3 else "")
        raise UserError(
            f"{choice.folder} holds shards of {len(sets)} sets ({shown}), such as training and "
            f"validation: give one by its pattern, {choice.folder / patterns[0]}, or all by {EVERY}"
        )


def _unpacking(path: Path) -> str:
    tools = {".tar.gz": "gunzip", ".tar.bz2": "bunzip2", ".tar.xz": "unxz", ".tar.zst": "unzstd"}
    return f"{tools.get(''.join(path.suffixes[-2:]), 'gunzip')} {path}"
