"""Numbers that several parts must agree on; imports nothing, so that any part may know it."""

# Mean and deviation of ImageNet's RGB channels, of values scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Mixing partners stand half a block apart inside blocks of this many samples: every number of
# processes finds the same pairs as long as device batches are whole blocks, and copies of one
# image, which repeated augmentation places next to each other, never meet.
PAIR_BLOCK = 8
