"""Hugging Face Accelerate with `DaliLoader`s, on one process or several.

    python examples/accelerate_loop.py DATA --size 32 --batch-size 64 --epochs 3
    accelerate launch --num_processes 2 examples/accelerate_loop.py DATA

DATA holds the folders `train` and `val`. The loaders go on their devices and share the epoch out by
themselves, so they are created after the `Accelerator` and need no `prepare`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from dali_rsb import DaliLoader, create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    train_loader = DaliLoader(
        args.data / "train", args.batch_size, train=True, size_px=args.size, device=device
    )
    val_loader = DaliLoader(args.data / "val", args.batch_size, size_px=args.size, device=device)
    model = create_model("resnet18", len(train_loader.dataset.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)

    for epoch in range(args.epochs):
        model.train()
        train_loader.set_epoch(epoch)
        for images, targets in train_loader:
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        model.eval()
        counts = torch.zeros(2, device=device)
        with torch.inference_mode():
            for images, targets in val_loader:
                correct = (model(images).argmax(1) == targets).sum()
                counts += torch.stack([correct, torch.tensor(len(images), device=device)])
        correct, seen = accelerator.reduce(counts, "sum").tolist()
        accelerator.print(f"epoch {epoch}: top-1 {100 * correct / seen:.1f} %")
    accelerator.end_training()


if __name__ == "__main__":
    main()
