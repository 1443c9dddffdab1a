"""The command `dali-rsb train CONFIG [section.key=value ...] [--resume [PATH]]`: train a model.

CONFIG is a recipe such as a3, a YAML file, or a run folder.
"""

from __future__ import annotations

from dali_rsb.config.arguments import ConfigParser
from dali_rsb.dataset.opening import check_exists
from dali_rsb.errors import run_command


def main() -> None:
    parser = ConfigParser("train", __doc__)
    parser.add_resume()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print batches, memory and hours, and end; needs no GPU and trains nothing",
    )
    parser.add_argument(
        "--world-size", type=int, default=1, metavar="N", help="--dry-run: of so many processes"
    )
    parser.add_argument(
        "--img-per-s", type=float, metavar="RATE", help="--dry-run: a device's speed, if measured"
    )
    config, arguments = parser.read()
    # Here, as PyTorch and DALI take seconds to import: a mistake and --help are answered at once.
    if arguments.dry_run:
        from dali_rsb.training.plan import describe_plan

        print(describe_plan(config, arguments.world_size, arguments.img_per_s))
        return
    for images in filter(None, (config.data.train, config.data.val)):
        check_exists(images)
    from dali_rsb.training.assembly import build_trainer
    from dali_rsb.training.launch import carry_out

    carry_out(config, arguments.resume, build_trainer)


if __name__ == "__main__":
    run_command(main)
