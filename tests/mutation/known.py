"""Faults that once passed the tests, or that a reviewer would think of first; put in by text.

Each stands for a kind: distributed training, the values of an evaluation, what a resumed run takes
over, units, independence of draws, durability, defaults, adapters, reports.
"""

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Known:
    """A fault: in `file`, `old` (which stands there once) becomes `new`."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()  # modules, for a file that is not recorded

    def tree(self, root: Path) -> ast.Module:
        """The file's syntax with the fault in it."""
        return ast.parse(self._source(root).replace(self.old, self.new))

    def line(self, root: Path) -> int:
        """The first line that changes."""
        before, after = self.old.splitlines(), self.new.splitlines()
        same = next(
            (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after)
        )
        return self._source(root).partition(self.old)[0].count("\n") + 1 + same

    def _source(self, root: Path) -> str:
        source = (root / self.file).read_text()
        assert source.count(self.old) == 1, (self.what, source.count(self.old))
        return source


STEP, PROCESSES, METER = "training/step.py", "run/processes.py", "run/meter.py"
KNOWN = [
    Known(what, file if file.startswith("benchmarks/") else f"dali_rsb/{file}", old, new, *tests)
    for what, file, old, new, *tests in (
        (
            "gradients exchanged with the first micro-batch",
            STEP,
            "micro_batch == self._accumulation - 1",
            "micro_batch == 0",
        ),
        (
            "buffers summed, not averaged, for an evaluation",
            PROCESSES,
            "buffer.div_(self.world_size)",
            "pass",
        ),
        (
            "buffers summed in a checkpoint",
            "training/run_state.py",
            "for values in of_ranks]).mean(0)",
            "for values in of_ranks]).sum(0)",
        ),
        (
            "loss not divided by the world size",
            METER,
            "skipped_in_row = means[0], ",
            "skipped_in_row = sums.tolist()[0], ",
        ),
        (
            "rank left out of dropout's seed",
            STEP,
            "self.updates_done, self._processes.rank)",
            "self.updates_done, 0)",
        ),
        (
            "top-4 as top-5 in training",
            "evaluation/accuracy.py",
            "logits.topk(min(5, ",
            "logits.topk(min(4, ",
        ),
        (
            "top-4 as top-5 in the evaluate command",
            "evaluation/predictions.py",
            "\nTOP = 5",
            "\nTOP = 4",
        ),
        (
            "mean and std swapped in training's evaluation",
            "evaluation/validation.py",
            "self.mean, self.std)\n",
            "self.std, self.mean)\n",
        ),
        (
            "mean and std swapped where the evaluation is set up",
            "training/assembly.py",
            "config.data.mean, config.data.std)",
            "config.data.std, config.data.mean)",
        ),
        (
            "mean and std swapped in the evaluate command",
            "training/subjects.py",
            "module, data.mean, data.std, precision",
            "module, data.std, data.mean, precision",
        ),
        (
            "mean and std swapped in an update",
            STEP,
            "batch.mixed(self._mean, self._std,",
            "batch.mixed(self._std, self._mean,",
        ),
        (
            "the offset of a resumed epoch in every later one",
            "draws/samples.py",
            "first_update if number == epoch else 0",
            "first_update",
        ),
        (
            "the drop-in loader's offset in another epoch",
            "dropin/epoch_loader.py",
            "if resume_at is not None and resume_at[0] == epoch else 0",
            "if resume_at is not None else 0",
        ),
        (
            "loss scale lost at a resume",
            STEP,
            'self.scaler.load_state_dict(state["scaler"])',
            "pass",
        ),
        (
            "best accuracy lost at a resume",
            "training/run_state.py",
            'float(state["best_top1"])',
            "0.0",
        ),
        (
            "best accuracy not taken over by the trainer",
            "training/trainer.py",
            "self._best_top1 = self._progress.best_top1",
            "self._best_top1 = 0.0",
        ),
        (
            "waiting as a share, not in percent",
            METER,
            "data_wait_percent=100 * self.wait_s",
            "data_wait_percent=self.wait_s",
        ),
        (
            "the same mixing in every epoch, by the samples",
            "draws/samples.py",
            "self.mixing.draw(self.seed, spec.epoch,",
            "self.mixing.draw(self.seed, 0,",
        ),
        (
            "the same mixing in every epoch, by the policy",
            "draws/mixing.py",
            "key = np.array([seed, epoch], ",
            "key = np.array([seed, 0], ",
        ),
        (
            "the same erasing in every epoch",
            "draws/samples.py",
            "self.erasing.draw(self.seed, spec.epoch,",
            "self.erasing.draw(self.seed, 0,",
        ),
        *(
            (f"{name} draws another purpose's numbers", "draws/philox.py", f"{name} = {a}", new)
            for name, a, new in (
                ("RANDAUGMENT", 2, "RANDAUGMENT = 1"),
                ("MIXING", 3, "MIXING = 2"),
                ("VERTICAL_FLIP", 4, "VERTICAL_FLIP = 1"),
                ("ERASING", 5, "ERASING = 2"),
                ("ERASING_NOISE", 6, "ERASING_NOISE = 5"),
                ("DECODER", 7, "DECODER = 1"),
            )
        ),
        (
            "all ranks draw alike in the drop-in loader",
            "dropin/epoch_loader.py",
            "range(start * world_size + rank, end * world_size, world_size)",
            "range(start * world_size, end * world_size, world_size)",
        ),
        (
            "all ranks load alike in the drop-in loader",
            "dropin/dali_loader.py",
            "                rank=world.rank,\n",
            "                rank=0,\n",
        ),
        (
            "all ranks load alike in timm's adapter",
            "dropin/timm_loader.py",
            "            rank=world.rank,\n",
            "            rank=0,\n",
        ),
        (
            "rank of torch.distributed ignored in the drop-in loader",
            "dropin/epoch_loader.py",
            "cls(dist.get_world_size(), dist.get_rank())",
            "cls(dist.get_world_size(), 0)",
        ),
        (
            "fsync of a file left out",
            "system/atomic.py",
            "            os.fsync(file.fileno())\n        new",
            "            pass\n        new",
        ),
        (
            "fsync of a file's folder left out",
            "system/atomic.py",
            "        raise\n    _fsync_directory(target.parent)",
            "        raise\n    pass",
        ),
        (
            "fsync of a folder's files left out",
            "system/atomic.py",
            "            _fsync(Path(folder, name))",
            "            pass",
        ),
        *(
            (f"timm's adapter: {what}", "dropin/timm_loader.py", old, new)
            for what, old, new in (
                ("mixing's probability", "        mixup.mix_prob,", "        1.0,"),
                ("CutMix's share", "        mixup.switch_prob,", "        0.5,"),
                ("mixup's and CutMix's alpha", "mixup.mixup_alpha,\n", "mixup.cutmix_alpha,\n"),
                ("erasing's probability", 'given["re_prob"], given["re_mode"]', '1.0, "const"'),
                ("left to right", 'hflip=given["hflip"]', "hflip=0.5"),
                ("upside down", 'vflip=given["vflip"]', "vflip=0.0"),
                (
                    "label smoothing",
                    "mixup.num_classes, mixup.label_smoothing",
                    "mixup.num_classes",
                ),
            )
        ),
        (
            "mean for median in benchmark reports",
            "benchmarks/report.py",
            "statistics.median(runs)",
            "statistics.mean(runs)",
            ("tests/benchmarks/test_benchmarks.py",),
        ),
    )
]
