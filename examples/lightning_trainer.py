"""A PyTorch Lightning `Trainer` fed by `DaliLoader`s.

    python examples/lightning_trainer.py DATA --size 32 --batch-size 64 --epochs 3

DATA holds the folders `train` and `val`. Lightning sets the epoch of the loader's sampler.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn

from dali_rsb import DaliLoader, create_model


class Classifier(lightning.LightningModule):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = create_model("resnet18", num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, targets = batch
        return nn.functional.cross_entropy(self.model(images), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        images, targets = batch
        top1 = (self.model(images).argmax(1) == targets).float().mean()
        self.log("top1", top1, prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    train_loader = DaliLoader(args.data / "train", args.batch_size, train=True, size_px=args.size)
    val_loader = DaliLoader(args.data / "val", args.batch_size, size_px=args.size)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator=train_loader.device.type,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(len(train_loader.dataset.classes)), train_loader, val_loader)
    print(f"top-1 {100 * trainer.callback_metrics['top1'].item():.1f} %")


if __name__ == "__main__":
    main()
