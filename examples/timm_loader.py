"""timm's `create_loader`, mixup and loss; only the import of the loader is ours.

    python examples/timm_loader.py DATA --size 32 --batch-size 64 --epochs 3

DATA holds the folders `train` and `val`.
"""

from __future__ import annotations

import argparse

import timm
import torch
from timm.data import FastCollateMixup, create_dataset
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, accuracy

from dali_rsb import create_loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4, help="CPU threads")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_set = create_dataset("", root=args.data, split="train")
    val_set = create_dataset("", root=args.data, split="validation")
    num_classes = len(train_set.reader.class_to_idx)
    train_loader = create_loader(
        train_set,
        (3, args.size, args.size),
        args.batch_size,
        is_training=True,
        auto_augment="rand-m6-mstd0.5-inc1",
        interpolation="random",
        num_aug_repeats=3,
        collate_fn=FastCollateMixup(0.1, 1.0, label_smoothing=0.0, num_classes=num_classes),
        num_workers=args.workers,
        device=device,
    )
    val_loader = create_loader(
        val_set,
        (3, args.size, args.size),
        args.batch_size,
        interpolation="bicubic",
        crop_pct=0.95,
        num_workers=args.workers,
        device=device,
    )

    model = timm.create_model(args.model, num_classes=num_classes).to(device)
    optimizer = create_optimizer_v2(model, "lamb", lr=5e-3, weight_decay=0.02)
    criterion = BinaryCrossEntropy(target_threshold=0.2)
    for epoch in range(args.epochs):
        model.train()
        train_loader.sampler.set_epoch(epoch)
        for images, targets in train_loader:
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        top1 = AverageMeter()
        with torch.inference_mode():
            for images, targets in val_loader:
                (value,) = accuracy(model(images), targets)
                top1.update(value.item(), len(images))
        print(f"epoch {epoch}: top-1 {top1.avg:.1f} %")


if __name__ == "__main__":
    main()
