"""Names, codes and defaults of the pipelines, for those who describe their inputs without DALI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

# What is decoded of an image. "roi": the crop window alone. "full": the whole image, as a GPU's
# JPEG engine does anyway. "hybrid": of some images the window on the host, of the others the whole
# on the GPU. "shared": the whole image, once for all its copies in the batch.
DecodeMode = Literal["roi", "full", "hybrid", "shared"]

# Who decodes for a GPU pipeline: the host's CPUs, or the GPU with its JPEG engine.
Decoder = Literal["host", "gpu"]

# How images come to a pipeline, and the name of that input: names of files, which the pipeline
# reads, or encoded images, such as parts of a shard.
ImageSource = Literal["path", "encoded"]

# How windows of images that are stored as pixels come to a pipeline. "places": where they lie, for
# the `HostResize` to read. "pixels": as arrays. None: there are none.
RawInput = Literal["places", "pixels"]

# The inputs of these: which rows they are, and the windows.
IS_RAW, RAW_PLACE, PIXELS = "is_raw", "raw_place", "pixels"

# Resizes a batch of windows on the host: (images, starts, ends, interpolations), and with
# "places" these, each with one array for each sample, -> resized images.
HostResize = Callable[..., Sequence[np.ndarray]]

# Values of nvidia.dali.types.DALIInterpType; a test compares them.
INTERPOLATIONS = {"bilinear": 1, "bicubic": 2}

# Share of a batch for the GPU's JPEG engine, where it has one: DALI's own default.
HW_DECODER_LOAD = 0.65

# Colour (R, G, B) that geometric operations bring in: timm's, 255 x the ImageNet mean, rounded.
IMAGENET_FILL = (124, 116, 104)
