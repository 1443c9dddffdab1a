"""The samples of one tar shard: which members belong together, and the label of each image.

A sample is KEY.jpg (or another image) and KEY.cls, or KEY.json whose `label_key` is the label; the
names are equal but for their last suffix. WebDataset itself ends a key at the name's first dot:
`v1.2.jpg` is its sample `v1` with a field `2.jpg`. Names without further dots are read alike.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dali_rsb.dataset.image_names import extension_of, is_image_name
from dali_rsb.dataset.label_texts import short
from dali_rsb.errors import UserError

_MAX_LABEL_BYTES = 1000  # of a .cls file: a class number or name
_MAX_JSON_BYTES = 10_000_000
# First bytes of compressed files, the suffix of such files, and what unpacks them.
_COMPRESSIONS = (
    (b"\x1f\x8b", "gz", "gunzip"),
    (b"BZh", "bz2", "bunzip2"),
    (b"\xfd7zXZ", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zst", "unzstd --rm"),
)
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class TarImage:
    """An image in a tar file: name, place and size in bytes, and its label as text."""

    name: str
    offset: int
    size: int
    label: str


@dataclass
class TarListing:
    """What a shard holds.

    Attributes:
        images: those with a label.
        left_out: number of the other members by reason; labels that were used do not count.
        dotted: images whose key holds a dot, for which WebDataset has another key.
    """

    images: list[TarImage] = field(default_factory=list)
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    dotted: int = 0


@dataclass
class _Members:
    images: dict[str, TarImage] = field(default_factory=dict)  # by key; without a label yet
    labels: dict[str, str] = field(default_factory=dict)  # by key
    texts: collections.Counter[str] = field(default_factory=collections.Counter)
    first_json: tuple[int, int] | None = None


def list_samples(path: Path, label_key: str | None) -> TarListing:
    """Find the images of a shard.

    Args:
        label_key: key of the label in .json members, which then take the place of .cls.

    Raises:
        UserError: it is no uncompressed tar file, or is not whole, an image has no label, a label
            cannot be read, or two members stand for the same part of a sample.
    """
    try:
        with path.open("rb") as file:
            _check_not_compressed(path, file.read(8))
            file.seek(0)

            def read(offset: int, size: int) -> bytes:
                return os.pread(file.fileno(), size, offset)

            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = _collect(tar, path, label_key, read)
                _check_end(path, tar.offset, read)
            return _pair(members, path, label_key, read)
    # Numbers and chains of headers in a damaged file end in a ValueError or RecursionError.
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar file ({error}); restore or remove it"
        ) from error


def _check_not_compressed(path: Path, head: bytes) -> None:
    for magic, suffix, program in _COMPRESSIONS:
        if head.startswith(magic):
            name = f"{path.name}.{suffix}"
            raise UserError(
                f"{path.name} is compressed ({suffix}); unpack it: cd {path.parent} && "
                f"mv {path.name} {name} && {program} {name}"
            )


def _check_end(path: Path, end: int, read: Callable[[int, int], bytes]) -> None:
    """Refuse a file whose members end without the zeros of a tar file's end, or with more behind.

    Python's reader takes a damaged header, or a file that is cut short, for the end.

    Args:
        end: where it has stopped, in bytes.
    """
    position, part = end, read(end, _BLOCK_BYTES)
    if len(part) == _BLOCK_BYTES and not any(part):
        while part and not any(part):
            position += len(part)
            part = read(position, 1 << 20)
        if not part:
            return
        raise UserError(
            f"{path} holds more behind its end at byte {end}, such as a second tar file: split it, "
            "or write the shard again"
        )
    raise UserError(
        f"{path} is {'damaged' if part else 'cut short'} at byte {end}, and what follows cannot be "
        "read: restore or remove it"
    )


def _collect(
    tar: tarfile.TarFile, path: Path, label_key: str | None, read: Callable[[int, int], bytes]
) -> _Members:
    found = _Members()
    label_suffix = ".cls" if label_key is None else ".json"
    for member in tar:
        name = member.name.rpartition("/")[2]
        if member.islnk() or member.issym():
            found.texts["links"] += 1
        if not member.isreg():
            continue
        suffix = extension_of(name)
        if name.startswith("."):
            found.texts["hidden"] += 1
            continue
        key = member.name[: len(member.name) - len(suffix)]
        place = (member.offset_data, member.size)
        if suffix == label_suffix:
            if key in found.labels:
                raise _twice(member.name, path)
            found.labels[key] = _label(*place, member.name, path, label_key, read)
        elif is_image_name(name):
            other = found.images.get(key)
            if other is not None and other.name == member.name:
                raise _twice(member.name, path)
            if other is not None:
                raise UserError(
                    f"{other.name} and {member.name} in {path} are two images of one sample: leave "
                    "one of them out of the shard, or rename one with a label of its own"
                )
            found.images[key] = TarImage(member.name, *place, "")
        else:
            found.texts[suffix or "no extension"] += 1
            if suffix == ".json" and found.first_json is None:
                found.first_json = place
    return found


def _pair(
    members: _Members, path: Path, label_key: str | None, read: Callable[[int, int], bytes]
) -> TarListing:
    listing, used = TarListing(), set()
    for key, image in members.images.items():
        base = first_dot_key(key)
        if key in members.labels:
            used.add(key)
            listing.images.append(dataclasses.replace(image, label=members.labels[key]))
            listing.dotted += base != key
        elif base != key and base in members.labels and base in members.images:
            listing.left_out["further images of a sample"] += 1
        else:
            raise UserError(_without_label(image.name, members, path, label_key, read))
    listing.left_out.update(members.texts)
    listing.left_out["labels without an image"] += len(members.labels.keys() - used)
    listing.left_out = +listing.left_out
    return listing


def first_dot_key(key: str) -> str:
    """A key as WebDataset would have it: up to the first dot of the name."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _twice(name: str, path: Path) -> UserError:
    return UserError(
        f"{name} stands twice in {path}: give each sample of a shard a key of its own, and write "
        "the shard again"
    )


def _without_label(
    name: str,
    members: _Members,
    path: Path,
    label_key: str | None,
    read: Callable[[int, int], bytes],
) -> str:
    if label_key is not None:
        return f"{name} in {path} has no label: with label_key, a sample is KEY.jpg and KEY.json"
    text = f"{name} in {path} has no label: a sample is KEY.jpg (or .png, ...) and KEY.cls"
    if members.first_json is not None:
        offset, size = members.first_json
        keys = _json_keys(read(offset, min(size, _MAX_JSON_BYTES)))
        return f"{text}; for labels in KEY.json set data.label_key or label_key={keys}"
    if not members.labels:
        return (
            f"{name} in {path.name} has no label: a sample is KEY.jpg and KEY.cls; images of one "
            f"class become a folder: cd {path.parent} && mkdir {path.stem} && tar -xf {path.name} "
            f"-C {path.stem}"
        )
    return text


def _json_keys(data: bytes) -> str:
    """The keys that may be a label's, for a message."""
    try:
        content = json.loads(data)
        keys = [key for key, value in content.items() if _is_label(value)]
    except (ValueError, AttributeError, RecursionError):
        keys = []
    return " or ".join(key if len(key) <= 30 else key[:27] + "..." for key in keys[:3]) or "KEY"


def _is_label(value: object) -> bool:
    """Whether a value of a JSON file may be a label: a whole number or a text."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _label(
    offset: int,
    size: int,
    name: str,
    path: Path,
    label_key: str | None,
    read: Callable[[int, int], bytes],
) -> str:
    if label_key is not None:
        return _json_label(read(offset, min(size, _MAX_JSON_BYTES)), name, path, label_key)
    text = read(offset, min(size, _MAX_LABEL_BYTES + 1))
    label = text.decode("utf-8", "replace").strip()
    if len(text) > _MAX_LABEL_BYTES or not label.isprintable() or not label:
        raise UserError(
            f"{name} in {path} holds no label, but {'more than a line' if label else 'nothing'}: a "
            ".cls file holds a class number or name"
        )
    return label


def _json_label(data: bytes, name: str, path: Path, label_key: str) -> str:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} in {path} is no JSON: write the shard again") from error
    if not isinstance(content, dict) or label_key not in content:
        raise UserError(
            f"{name} in {path} has no {label_key!r}: set data.label_key or "
            f"label_key={_json_keys(data)}"
        )
    value = content[label_key]
    label = str(value).strip() if _is_label(value) else ""
    if not label or len(label) > _MAX_LABEL_BYTES or not label.isprintable():
        raise UserError(
            f"{name} in {path} has {short(json.dumps(value))} as {label_key!r}, no class number or "
            "name: write whole numbers or names, or set another data.label_key or label_key"
        )
    return label
