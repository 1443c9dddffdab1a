"""How a dataset is read where more than one way is right: order, level, names and labels."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dali_rsb.dataset.classes import checked_names, read_class_names
from dali_rsb.dataset.ordering import ORDERS, ClassOrder
from dali_rsb.errors import UserError

ClassLevel: TypeAlias = Literal["top", "leaf"]
LEVELS: tuple[ClassLevel, ...] = ("top", "leaf")
ClassNames: TypeAlias = str | os.PathLike[str] | Sequence[str]


@dataclass(frozen=True)
class Reading:
    """The settings that decide which label an image has.

    Attributes:
        class_order: of class names, and of images: "plain" as ImageFolder, "natural" as timm.
        class_level: in nested folders, which one names the class: the top one as ImageFolder, or
            the leaf, the innermost, as timm. None refuses nested folders.
        classes: all class names in their order, declared; classes without images are legal then.
        label_key: key of the label in a tar sample's .json, in place of its .cls.
        whose: what `classes` are where another dataset or a checkpoint gives them, for messages;
            then they are joined by name alone, and class numbers are no positions among them.
    """

    class_order: ClassOrder = "plain"
    class_level: ClassLevel | None = None
    classes: tuple[str, ...] | None = None
    label_key: str | None = None
    whose: str | None = None

    def joined_to(self, classes: Sequence[str], whose: str) -> Reading:
        """The same for a dataset whose images get the labels of other classes, unless declared."""
        if self.classes is not None:
            return self
        return dataclasses.replace(self, classes=tuple(classes), whose=whose)

    @classmethod
    def of(
        cls,
        class_order: ClassOrder = "plain",
        class_level: ClassLevel | None = None,
        classes: ClassNames | None = None,
        label_key: str | None = None,
    ) -> Reading:
        """Check values as a user gives them.

        Args:
            classes: the names, or a text file with one in each line.

        Raises:
            UserError: a value that is none of the choices, or class names that cannot be used.
        """
        if class_order not in ORDERS:
            raise UserError(f"class_order={class_order!r}: give plain or natural")
        if class_level not in (None, *LEVELS):
            raise UserError(f"class_level={class_level!r}: give top or leaf")
        names = None
        if isinstance(classes, (str, os.PathLike)):
            names = read_class_names(Path(classes).expanduser())
        elif classes is not None:
            names = checked_names(classes, "classes")
        return cls(class_order, class_level, names, label_key)

    def stored(self) -> dict[str, Any]:
        """What a stored index depends on. Declared names do not decide what is in it."""
        values = dataclasses.asdict(self)
        del values["classes"], values["whose"]
        return values


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command that reads a dataset the options of `Reading`."""
    group = parser.add_argument_group("how the dataset is read")
    group.add_argument(
        "--class-order", choices=ORDERS, default="plain", help="as ImageFolder, or as timm"
    )
    group.add_argument(
        "--class-level", choices=LEVELS, help="which of nested folders names the class"
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="a class name in each line, in their order"
    )
    group.add_argument("--label-key", metavar="KEY", help="of the label in .json files of shards")


def reading_of_arguments(arguments: argparse.Namespace) -> Reading:
    """The `Reading` of a command; raises as `Reading.of`."""
    return Reading.of(
        arguments.class_order, arguments.class_level, arguments.classes, arguments.label_key
    )
