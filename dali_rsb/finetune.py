"""The command `dali-rsb finetune FOLDER --from SOURCE [section.key=value ...]`.

Goes on from weights on images of one's own. FOLDER holds class folders, or train/ and val/ with
class folders in each; without val/ a fifth of the images is kept for validation, the same in every
run. SOURCE is a run or a checkpoint, a file of weights (safetensors or a state dict), a folder as
timm writes it, timm:NAME.TAG, or hf:OWNER/NAME. The model, its classes, the size and normalisation
of the images and a batch that suits so many images follow from the two; any key can be set.
"""

from __future__ import annotations

from dali_rsb.config import load_config, with_values
from dali_rsb.config.arguments import ConfigParser
from dali_rsb.config.mistakes import MISSING_SOURCE
from dali_rsb.config.options import path
from dali_rsb.config.recipes import find_config
from dali_rsb.dataset.opening import check_exists
from dali_rsb.errors import UserError, run_command


def main() -> None:
    parser = ConfigParser(
        "finetune",
        __doc__,
        "FOLDER",
        "class folders, or train/ and val/ with class folders in each",
    )
    parser.add_argument("--from", dest="source", metavar="SOURCE", help="the weights to begin with")
    parser.add_argument(
        "--config", default="finetune", metavar="CONFIG", help="another recipe than finetune"
    )
    parser.add_resume()
    options = parser.parse()
    if options.source is None and options.resume is None:
        raise UserError(MISSING_SOURCE)
    # Here, as PyTorch and DALI take seconds to import: a mistake and --help are answered at once.
    folder = path(options.folder)
    check_exists(folder)
    from dali_rsb.training.finetuning import FineTuning, images_in
    from dali_rsb.training.launch import carry_out

    images = images_in(folder, options.overrides)
    recipe = with_values(load_config(find_config(options.config), options.overrides), images)
    fine_tuning = FineTuning(images, options.overrides, options.source)
    carry_out(recipe, options.resume, fine_tuning.build)


if __name__ == "__main__":
    run_command(main)
