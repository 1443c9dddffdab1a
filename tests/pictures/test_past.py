"""Which session and configuration an update is replayed by, from files alone."""

import numpy as np
import pytest
import recorded_training as recorded
import torch

from dali_rsb.config import load_config
from dali_rsb.errors import UserError
from dali_rsb.pictures.past import numbered, open_past, past_of
from dali_rsb.pictures.replaying import Replayer
from dali_rsb.run.folder import RunFolders, config_text
from dali_rsb.run.sessions import Session, digest_of, record_end, record_start


@pytest.fixture
def folder(tmp_path):
    """Makes a run folder of sessions: (seed, position of the first update, updates an epoch)."""
    source = recorded.write_config(tmp_path / "source.yaml", tmp_path / "images")

    def make(*sessions, **facts):
        folders = RunFolders("x", tmp_path / "run")
        for number, (seed, first, per_epoch) in enumerate(sessions):
            config = load_config(source, [f"run.seed={seed}"]).model_dump(mode="json")
            resume = tmp_path / "run/last.pt" if number else None
            folders.open(resume, config)
            digest = digest_of(config_text(config))
            plain = {"world_size": 2, "device": "cpu", "global_batch": 32, "batch_per_device": 8}
            session = Session(
                **plain | facts,
                updates_per_epoch=per_epoch,
                config_digest=digest,
                first=first,
                started_s=100.0 + number,
            )
            record_start(tmp_path / "run", session)
        return tmp_path / "run"

    return make


def test_each_session_has_its_own_configuration_and_counts_its_own_updates(folder):
    made = folder((1, (0, 0), 8), (2, (1, 0), 8), (2, (1, 4), 8), (3, (3, 0), 4))
    pasts = open_past(made)
    names = ["config-1.yaml", "config-2.yaml", "config-2.yaml", "config.yaml"]
    assert [past.config_name for past in pasts] == names
    assert [past.config.run.seed for past in pasts] == [1, 2, 2, 3]
    for update, number, position in (
        *((8, 0, (0, 7)), (9, 1, (1, 0)), (12, 1, (1, 3))),
        *((13, 3, (3, 0)), (32, 3, (7, 3))),
    ):
        past, found = past_of(pasts, update)
        assert (pasts.index(past), found) == (number, position)
        assert numbered(past, found) == update
    assert past_of(pasts, 7, epoch=3) == (pasts[2], (2, 6))
    with pytest.raises(UserError, match="8 epochs of 4 updates, 32 in all"):
        past_of(pasts, 200)


def test_a_configuration_that_was_edited_is_refused(folder):
    made = folder((1, (0, 0), 8))
    text = (made / "config.yaml").read_text()
    (made / "config.yaml").write_text(text.replace("seed: 1", "seed: 7"))
    with pytest.raises(UserError, match=r"none of its config\*\.yaml is that of the session from"):
        open_past(made)
    (made / "config-1.yaml").write_text(text)
    (past,) = open_past(made)
    assert past.config.run.seed == 1


def test_overrides_may_move_the_images_alone(folder):
    made = folder((1, (0, 0), 8))
    (past,) = open_past(made, overrides=["data.train=/elsewhere"])
    assert past.config == load_config(made / "config.yaml", ["data.train=/elsewhere"])
    with pytest.raises(UserError, match=r"mixing\.mixup=0: a run is replayed as it was"):
        open_past(made, overrides=["mixing.mixup=0"])


def test_a_run_on_a_gpu_is_replayed_in_its_precision_by_the_kernels_definition(folder, tmp_path):
    recorded.write_images(tmp_path / "images")
    facts = {"device": "cuda", "dtype": "float16"}
    made = folder((1, (0, 0), 8), (1, (0, 0), 8), **facts, by_kernels=True)
    record_end(made, (1, 0))
    by_kernels = Replayer(open_past(made)[1], allow_changes=True)
    assert by_kernels.samples.transform.randaugment_layers == 0
    replayed = next(iter(by_kernels.batches((0, 0))))
    assert replayed.mixed.images.dtype == torch.float16
    # The pipeline's RandAugment is that of the kernels, but for the rounding of warps.
    made = folder((1, (0, 0), 8), **facts)
    by_pipeline = Replayer(open_past(made)[-1], allow_changes=True)
    assert by_pipeline.samples.transform.randaugment_layers == 2
    other = next(iter(by_pipeline.batches((0, 0))))
    difference = np.abs(replayed.batch.images.numpy().astype(int) - other.batch.images.numpy())
    assert 0 < difference.mean() < 1
    # Stage by stage: without any layer both are the same.
    first = [r.before_layer(b, 0) for r, b in ((by_kernels, replayed), (by_pipeline, other))]
    assert torch.equal(*first)
    assert not torch.equal(first[0], replayed.batch.images)
    for replayer in (by_kernels, by_pipeline):
        replayer.close()
