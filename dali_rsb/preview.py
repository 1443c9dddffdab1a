"""The command `dali-rsb preview CONFIG [section.key=value ...]`: what a run would train on.

Writes the page preview.html: the first images as they come out of augmentation and mixing, with
their labels; one photograph under every operation of RandAugment beside Pillow's; the distribution
of the crops; and what is off, such as blank images, empty classes and labels out of range. Beside
it grid.png, operations.png and preview.json. On a CPU, before any run.

    dali-rsb preview a3 data.train=/imagenet/train
"""

from __future__ import annotations

from pathlib import Path

from dali_rsb.config.arguments import ConfigParser
from dali_rsb.config.options import add_output
from dali_rsb.errors import UserError, run_command
from dali_rsb.pictures.past import upcoming
from dali_rsb.pictures.preview_folder import PAGE, make_preview, write_preview
from dali_rsb.run.console import console_messages

_MAX = 4096


def main() -> None:
    parser = ConfigParser("preview", __doc__)
    add_output(parser, "FOLDER", "of the page; default: preview-NAME, by the run's name")
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="images of the grid (64)"
    )
    parser.add_argument(
        "--look-at",
        type=int,
        default=512,
        metavar="N",
        help="stored images, spread over all, that are decoded to look for blank ones (512)",
    )
    parser.add_argument(
        "--photograph", metavar="FILE", help="of the operations; default: the grid's first"
    )
    config, options = parser.read()
    for name in ("images", "look_at"):
        if not 1 <= getattr(options, name) <= _MAX:
            raise UserError(f"--{name.replace('_', '-')}: give a number from 1 to {_MAX}")
    target = options.output or Path(f"preview-{config.name}")
    with console_messages():
        past = upcoming(config, options.images)
        preview = make_preview(past, options.images, options.look_at, options.photograph)
        write_preview(past, preview, target)
    for oddity in preview.oddities:
        print(f"off: {oddity.text}")
    found = len(preview.oddities) or "nothing"
    print(f"{len(preview.rows)} images in {target / PAGE}; {found} off")


if __name__ == "__main__":
    run_command(main)
