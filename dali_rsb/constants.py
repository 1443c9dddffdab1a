"""Numbers that several parts must agree on; imports nothing, so that any part may know it."""

# Mean and deviation of ImageNet's RGB channels, of values scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Images of more pixels are not decoded. It is where Pillow warns of a decompression bomb: 256 MiB
# of RGB, and half as much again as a photograph of 60 million pixels. A JPEG of 20,000 x 20,000
# pixels takes 3.2 GB and 24 s.
MAX_PIXELS = 89_478_485

# Mixing partners stand half a block apart inside blocks of this many samples: every number of
# processes finds the same pairs as long as device batches are whole blocks, and copies of one
# image, which repeated augmentation places next to each other, never meet.
PAIR_BLOCK = 8

# What a source of weights, and a model of timm, begin with where they are no files of one's own.
TIMM_PREFIX, HUB_PREFIX = "timm:", "hf:"

# Says its version where NVIDIA's driver is loaded.
NVIDIA_DRIVER = "/proc/driver/nvidia/version"
