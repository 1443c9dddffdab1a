"""The command `python -m dali_rsb.parity DATA`: how far the pixels are from Pillow's and timm's.

Compares every stage of the DALI graphs with Pillow on images of a class-folder dataset. Prints a
table and writes parity.json and parity.png, a picture of the worst cases. The exit code is 0 if
every stage is within its limits, 1 if not, 2 for a mistake.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dali_rsb.checks.parity.comparison import WARPS, Comparison
from dali_rsb.checks.parity.report import write_report
from dali_rsb.config.options import OptionsParser
from dali_rsb.dataset import DatasetIndex, open_index
from dali_rsb.dataset.reading import add_reading_arguments, reading_of_arguments
from dali_rsb.draws.randaugment import OPERATIONS
from dali_rsb.errors import UserError, run_command
from dali_rsb.run.console import console_messages
from dali_rsb.system.names import printable

logger = logging.getLogger("dali_rsb.parity")  # not __name__, which is __main__ here


def choose_images(index: DatasetIndex, num_images: int) -> np.ndarray:
    """Up to `num_images` images spread evenly over a dataset, without those Pillow cannot decode.

    Raises:
        UserError: none is left.
    """
    count = min(num_images, len(index))
    chosen = np.linspace(0, len(index) - 1, count).round().astype(np.int64)
    good = [image for image in chosen.tolist() if _is_decodable(index, image)]
    if not good:
        raise UserError(f"Pillow can decode none of {count} images of {index.origin}: restore them")
    return np.array(good)


def _is_decodable(index: DatasetIndex, image: int) -> bool:
    try:
        with index.open(image) as file:
            Image.open(file).convert("RGB")
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        logger.warning(
            "%s is left out, Pillow cannot decode it: %s", printable(index.name(image)), error
        )
        return False
    return True


def _device_id(name: str) -> int | None:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return None
    if not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return torch.cuda.current_device()


def main() -> None:
    parser = OptionsParser("parity", __doc__)
    parser.add_argument("data", type=Path, help="folder of class folders or shards, or list")
    parser.add_argument("--num-images", type=int, default=64, metavar="N")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto")
    parser.add_argument("--output", type=Path, default=Path("parity"), metavar="FOLDER")
    add_reading_arguments(parser)
    arguments = parser.parse_args()
    if arguments.num_images < 1 or arguments.size < 8:
        raise UserError("--num-images must be at least 1 and --size at least 8")
    device_id = _device_id(arguments.device)
    with console_messages():
        index = open_index(arguments.data, reading=reading_of_arguments(arguments))
        images = choose_images(index, arguments.num_images)
        comparison = Comparison(index, images, arguments.size, device_id)
        total = len(OPERATIONS) + len(WARPS) + 6
        show = sys.stderr.isatty()
        stages = list(tqdm(comparison.stages(), "stages", total, leave=False, disable=not show))
    facts = {
        "data": str(arguments.data),
        "num_images": len(images),
        "size_px": arguments.size,
        "device": "cpu" if device_id is None else torch.cuda.get_device_name(device_id),
    }
    print(write_report(stages, arguments.output, facts))
    if any(stage.verdict == "off" for stage in stages):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
