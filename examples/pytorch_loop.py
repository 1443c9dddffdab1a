"""A plain PyTorch loop: `DaliLoader` where a `DataLoader` over an `ImageFolder` would stand.

    python examples/pytorch_loop.py DATA --size 32 --batch-size 64 --epochs 3

DATA holds the folders `train` and `val`. Classes are drawn equally often, however many images they
have. Interrupted and started again, the run goes on with the batch after the last one saved.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import WeightedRandomSampler

from dali_rsb import DaliLoader, create_model, open_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, default=Path("pytorch_loop.pt"))
    parser.add_argument("--save-every", type=int, default=100, help="batches between checkpoints")
    args = parser.parse_args()

    val_loader = DaliLoader(args.data / "val", args.batch_size, size_px=args.size)
    index = open_index(args.data / "train")
    train_loader = DaliLoader(
        index,
        args.batch_size,
        train=True,
        size_px=args.size,
        randaugment="rand-m6-mstd0.5-inc1",
        sampler=class_balanced(index.labels),
    )
    device = train_loader.device
    model = create_model("resnet18", index.num_classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first_epoch = 0
    if args.checkpoint.exists():
        checkpoint = torch.load(args.checkpoint, map_location=device)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        train_loader.load_state_dict(checkpoint["loader"])
        first_epoch = checkpoint["loader"]["epoch"]

    for epoch in range(first_epoch, args.epochs):
        model.train()
        train_loader.set_epoch(epoch)
        for step, (images, targets) in enumerate(train_loader, start=1):
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % args.save_every == 0:
                save(args.checkpoint, model, optimizer, train_loader)
        save(args.checkpoint, model, optimizer, train_loader)
        print(f"epoch {epoch}: top-1 {100 * accuracy(model, val_loader):.1f} %")


def class_balanced(targets: np.ndarray) -> WeightedRandomSampler:
    """Draw each class equally often, one epoch's worth of images."""
    weights = (1 / np.bincount(targets))[targets]
    return WeightedRandomSampler(weights.tolist(), len(targets))


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DaliLoader) -> float:
    model.eval()
    correct = sum(int((model(images).argmax(1) == targets).sum()) for images, targets in loader)
    return correct / len(loader.dataset)


def save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, loader: DaliLoader
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
    }
    torch.save(state, path)


if __name__ == "__main__":
    main()
