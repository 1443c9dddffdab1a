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
    test: str  # that is expected to notice it

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
TWO_RANKS = "training/test_two_ranks.py::test_two_ranks_equal_one_process"
ORACLE = "training/test_update_oracle.py::test_updates_equal_timms[1]"
RESUMED = "training/test_run_state.py::test_a_run_goes_on_where_the_checkpoint_stands"
EVALUATED = "evaluation/test_evaluate.py::test_a_run_alone_is_evaluated_on_its_own_images"
EPOCHS = "draws/test_samples.py::test_mixing_and_erasing_change_with_the_epoch"
STREAMS = "draws/test_samples.py::test_each_purpose_has_the_numbers_that_it_always_had"
POSITIONS = "dropin/test_create_loader.py::test_processes_draw_at_positions_of_their_own"
GIVEN = "dropin/test_create_loader.py::test_settings_are_those_that_were_given"
ON_DISK = (
    "system/test_files.py::test_content_is_on_the_disk_before_the_name_and_the_name_at_the_end"
)
KNOWN = [
    Known(what, file if file.startswith("benchmarks/") else f"dali_rsb/{file}", old, new, test)
    for what, file, old, new, test in (
        (
            "gradients exchanged with the first micro-batch",
            STEP,
            "micro_batch == self._accumulation - 1",
            "micro_batch == 0",
            TWO_RANKS,
        ),
        (
            "buffers summed, not averaged, for an evaluation",
            PROCESSES,
            "buffer.div_(self.world_size)",
            "pass",
            TWO_RANKS,
        ),
        (
            "buffers summed in a checkpoint",
            "training/run_state.py",
            "for values in of_ranks]).mean(0)",
            "for values in of_ranks]).sum(0)",
            "training/test_run_state.py::test_statistics_of_the_ranks_are_averaged_in_a_checkpoint",
        ),
        (
            "loss not divided by the world size",
            METER,
            "skipped_in_row = means[0], ",
            "skipped_in_row = sums.tolist()[0], ",
            TWO_RANKS,
        ),
        (
            "rank left out of dropout's seed",
            STEP,
            "self.updates_done, self._processes.rank)",
            "self.updates_done, 0)",
            TWO_RANKS,
        ),
        (
            "top-4 as top-5 in training",
            "evaluation/accuracy.py",
            "logits.topk(min(5, ",
            "logits.topk(min(4, ",
            "evaluation/test_accuracy.py::test_hits_losses_and_images_are_those_counted_by_hand",
        ),
        (
            "top-4 as top-5 in the evaluate command",
            "evaluation/predictions.py",
            "\nTOP = 5",
            "\nTOP = 4",
            EVALUATED,
        ),
        (
            "mean and std swapped in training's evaluation",
            "evaluation/validation.py",
            "self.mean, self.std)\n",
            "self.std, self.mean)\n",
            "evaluation/test_accuracy.py::test_images_are_normalised_as_the_run_says",
        ),
        (
            "mean and std swapped where the evaluation is set up",
            "training/assembly.py",
            "config.data.mean, config.data.std)",
            "config.data.std, config.data.mean)",
            ORACLE,
        ),
        (
            "mean and std swapped in the evaluate command",
            "training/subjects.py",
            "module, data.mean, data.std, precision",
            "module, data.std, data.mean, precision",
            EVALUATED,
        ),
        (
            "mean and std swapped in an update",
            STEP,
            "batch.mixed(self._mean, self._std,",
            "batch.mixed(self._std, self._mean,",
            ORACLE,
        ),
        (
            "the offset of a resumed epoch in every later one",
            "draws/samples.py",
            "first_update if number == epoch else 0",
            "first_update",
            "draws/test_samples.py::test_a_stream_enters_its_first_epoch_alone_at_an_update",
        ),
        (
            "the drop-in loader's offset in another epoch",
            "dropin/epoch_loader.py",
            "if resume_at is not None and resume_at[0] == epoch else 0",
            "if resume_at is not None else 0",
            "dropin/test_dali_loader.py::test_another_epoch_than_the_resumed_one_is_whole",
        ),
        (
            "loss scale lost at a resume",
            STEP,
            'self.scaler.load_state_dict(state["scaler"])',
            "pass",
            RESUMED,
        ),
        (
            "best accuracy lost at a resume",
            "training/run_state.py",
            'float(state["best_top1"])',
            "0.0",
            RESUMED,
        ),
        (
            "best accuracy not taken over by the trainer",
            "training/trainer.py",
            "self._best_top1 = self._progress.best_top1",
            "self._best_top1 = 0.0",
            "training/test_resumed_best.py::test_a_worse_epoch_leaves_the_best_checkpoint",
        ),
        (
            "waiting as a share, not in percent",
            METER,
            "data_wait_percent=100 * self.wait_s",
            "data_wait_percent=self.wait_s",
            "run/test_meter.py::test_an_interval_and_its_epoch",
        ),
        (
            "the same mixing in every epoch, by the samples",
            "draws/samples.py",
            "self.mixing.draw(self.seed, spec.epoch,",
            "self.mixing.draw(self.seed, 0,",
            EPOCHS,
        ),
        (
            "the same mixing in every epoch, by the policy",
            "draws/mixing.py",
            "key = np.array([seed, epoch], ",
            "key = np.array([seed, 0], ",
            "draws/test_samples.py::test_lambda_is_that_of_the_groups_own_generator[3]",
        ),
        (
            "the same erasing in every epoch",
            "draws/samples.py",
            "self.erasing.draw(self.seed, spec.epoch,",
            "self.erasing.draw(self.seed, 0,",
            EPOCHS,
        ),
        *(
            (
                f"{name} draws another purpose's numbers",
                "draws/philox.py",
                f"{name} = {a}",
                new,
                STREAMS,
            )
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
            POSITIONS,
        ),
        (
            "all ranks load alike in the drop-in loader",
            "dropin/dali_loader.py",
            "                rank=world.rank,\n",
            "                rank=0,\n",
            "dropin/test_dali_loader.py::test_processes_share_the_epoch_as_with_a_distributed_sampler[2]",
        ),
        (
            "all ranks load alike in timm's adapter",
            "dropin/timm_loader.py",
            "            rank=world.rank,\n",
            "            rank=0,\n",
            "dropin/test_create_loader.py::test_processes_get_the_indices_that_timm_gives_them[arguments0]",
        ),
        (
            "rank of torch.distributed ignored in the drop-in loader",
            "dropin/epoch_loader.py",
            "cls(dist.get_world_size(), dist.get_rank())",
            "cls(dist.get_world_size(), 0)",
            POSITIONS,
        ),
        (
            "fsync of a file left out",
            "system/atomic.py",
            "            os.fsync(file.fileno())\n        new",
            "            pass\n        new",
            ON_DISK,
        ),
        (
            "fsync of a file's folder left out",
            "system/atomic.py",
            "        raise\n    _fsync_directory(target.parent)",
            "        raise\n    pass",
            ON_DISK,
        ),
        (
            "fsync of a folder's files left out",
            "system/atomic.py",
            "            _fsync(Path(folder, name))",
            "            pass",
            ON_DISK,
        ),
        *(
            (f"timm's adapter: {what}", "dropin/timm_loader.py", old, new, GIVEN)
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
            "benchmarks/test_benchmarks.py::test_summaries_and_pairwise_ratios",
        ),
    )
]
