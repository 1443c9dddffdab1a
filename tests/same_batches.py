"""That a pack is read as the folder it was made of: what tests of all kinds of packs ask."""

import torch

from dali_rsb import DaliLoader


def equal_batches(ours, theirs):
    """Whether two epochs, lists of (images, labels), are equal to the bit, and not empty."""
    assert len(ours) == len(theirs) > 0
    return all(
        torch.equal(a, b)
        for batch, other in zip(ours, theirs, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


def goes_on_in(pack, folder, batch_size, num_before, **training):
    """Whether an epoch that was begun on the folder ends in the pack as in the folder."""
    theirs = list(DaliLoader(folder, batch_size, **training))
    before = DaliLoader(folder, batch_size, **training)
    batches = iter(before)
    for _ in range(num_before):
        next(batches)
    after = DaliLoader(pack, batch_size, **training)
    after.load_state_dict(before.state_dict())
    return equal_batches(list(after), theirs[num_before:])


def evaluates_as(pack, folder):
    """Whether the images of an evaluation are equal."""
    options = {"size_px": 24, "device": "cpu", "num_threads": 1, "on_bad_image": "substitute"}
    ours, theirs = (list(DaliLoader(root, 9, **options)) for root in (pack, folder))
    return equal_batches(ours, theirs)
