"""Makes docs/augmented.jpg: training images of the DALI graph above Pillow's with the same draws.

python docs/augmented_picture.py FOLDER (class folders of photographs)
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dali_rsb.checks.parity.comparison import Comparison
from dali_rsb.dataset import open_index

COLUMNS, SIZE_PX, EDGE_PX, GAIN = 8, 224, 120, 20


def main() -> None:
    index = open_index(Path(sys.argv[1]))
    comparison = Comparison(index, np.arange(len(index)), SIZE_PX, device_id=None)
    pairs = list(comparison.train_pairs())[:COLUMNS]
    rows = [np.concatenate([pair[0] for pair in pairs], axis=1)]
    rows.append(np.concatenate([pair[1] for pair in pairs], axis=1))
    difference = np.abs(rows[0].astype(int) - rows[1]) * GAIN
    rows.append(np.minimum(difference, 255).astype(np.uint8))
    picture = Image.fromarray(np.concatenate(rows))
    picture = picture.resize((COLUMNS * EDGE_PX, 3 * EDGE_PX), Image.Resampling.LANCZOS)
    picture.save(Path(__file__).with_name("augmented.jpg"), quality=88)


if __name__ == "__main__":
    main()
