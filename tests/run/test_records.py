"""Where a run that a tracker is told of begins."""

from pathlib import Path

import pytest

from dali_rsb.run.records import RunInfo


@pytest.mark.parametrize(
    ("updates_done", "is_epoch_open", "first_epoch"),
    [
        (0, False, 0),
        (3, False, 0),  # in the middle of an epoch, whose row is still to come
        (5, False, 1),
        (5, True, 0),  # all updates of the epoch are done, but not its evaluation
        (7, True, 1),
        (10, True, 1),
    ],
)
def test_a_run_reports_from_the_epoch_that_has_no_row_yet(updates_done, is_epoch_open, first_epoch):
    assert RunInfo(Path(), {}, 5, updates_done, is_epoch_open).first_epoch == first_epoch
