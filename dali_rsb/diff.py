"""The command `dali-rsb diff A B`: in which keys two configurations differ.

A and B are each a YAML file, a run folder or the name of a recipe. Keys that are not given count
with their defaults. Exit code: 0 if nothing differs, 1 if something does, 2 for a mistake.
"""

from __future__ import annotations

import sys

from dali_rsb.config import load_config
from dali_rsb.config.asking import differences
from dali_rsb.config.options import OptionsParser
from dali_rsb.config.recipes import find_config
from dali_rsb.errors import run_command


def main() -> None:
    parser = OptionsParser("diff", __doc__)
    parser.add_argument("first", metavar="A", help="a YAML file, a run folder or a recipe")
    parser.add_argument("second", metavar="B")
    arguments = parser.parse_args()
    names = (arguments.first, arguments.second)
    found = differences(*(load_config(find_config(name)) for name in names))
    found.pop("name", None)
    if not found:
        print("no key differs")
        return
    width = max(map(len, found))
    for key, (first, second) in found.items():
        print(f"{key:{width}}  {_show(first)}  ->  {_show(second)}")
    sys.exit(1)


def _show(value: object) -> str:
    return "none" if value is None else str(value)


if __name__ == "__main__":
    run_command(main)
