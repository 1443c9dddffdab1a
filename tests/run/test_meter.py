"""Loss, speed and waiting of an interval and an epoch, by a clock that the test moves."""

import pytest
import torch

from dali_rsb.loader.batch import Batch
from dali_rsb.run import meter as meter_module
from dali_rsb.run.meter import Meter, WaitTimer
from dali_rsb.run.processes import Processes

CPU = Processes(torch.device("cpu"))
BATCH = Batch(torch.zeros(4, 1, 1, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), 4)


@pytest.fixture
def clock(monkeypatch):
    """Seconds as a list of one; what is measured takes as long as the test says."""
    now_s = [100.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: now_s[0])
    return now_s


def _slow(clock, *waits_s):
    for wait_s in waits_s:
        clock[0] += wait_s
        yield BATCH


def _train(meter, clock, waits_s, losses, step_s):
    batches = meter.timed(_slow(clock, *waits_s))
    for loss, _ in zip(losses, batches, strict=True):
        clock[0] += step_s
        meter.add(torch.tensor(loss), torch.tensor(0.0))


def test_an_interval_and_its_epoch(clock):
    meter = Meter(CPU, images_per_update=30)
    clock[0] += 50  # before the first update: of no interval
    meter.restart()
    _train(meter, clock, (0.5, 1.5), (2.0, 4.0), step_s=4.0)
    interval = meter.read()
    assert interval.data_wait_percent == pytest.approx(20.0)  # 2 of 10 seconds
    assert interval.img_per_s == pytest.approx(6.0)  # 60 images
    assert (interval.loss, interval.updates, interval.skipped) == (3.0, 2, 0)
    _train(meter, clock, (7.0,), (9.0,), step_s=3.0)
    interval = meter.read()
    assert interval.data_wait_percent == pytest.approx(70.0)
    assert interval.img_per_s == pytest.approx(3.0)
    assert (interval.loss, interval.updates) == (9.0, 1)
    epoch = meter.read_epoch()
    assert epoch.data_wait_percent == pytest.approx(45.0)  # 9 of 20 seconds
    assert epoch.img_per_s == pytest.approx(4.5)
    assert (epoch.loss, epoch.updates) == (5.0, 3)
    meter.restart_epoch()
    _train(meter, clock, (1.0,), (1.0,), step_s=1.0)
    meter.read()
    assert meter.read_epoch().updates == 1


def test_what_a_checkpoint_holds_goes_on(clock):
    meter = Meter(CPU, images_per_update=30)
    _train(meter, clock, (1.0, 1.0), (2.0, 4.0), step_s=1.0)
    meter.read()
    _train(meter, clock, (3.0,), (9.0,), step_s=1.0)
    state, sums = meter.state_dict(), [meter.partial_sums()]
    clock[0] += 1000  # the time between two sessions counts for none
    resumed = Meter(CPU, images_per_update=30)
    resumed.load_state_dict(state, sums)
    _train(resumed, clock, (1.0,), (1.0,), step_s=3.0)
    interval = resumed.read()
    assert (interval.loss, interval.updates, interval.finite) == (5.0, 2, 2)
    assert interval.data_wait_percent == pytest.approx(50.0)  # 4 of 8 seconds
    epoch = resumed.read_epoch()
    assert (epoch.loss, epoch.updates) == (4.0, 4)
    assert epoch.data_wait_percent == pytest.approx(50.0)
    assert epoch.img_per_s == pytest.approx(10.0)  # 120 images in 12 seconds


def test_two_ranks_have_the_mean_of_the_losses_and_the_sum_of_the_images(clock):
    class Pair(Processes):
        """The other rank saw losses three times as high, and as many images replaced."""

        def sum(self, tensor):
            return tensor + tensor * torch.tensor([3.0, 1.0, 1.0, 1.0])

    meter = Meter(Pair(CPU.device, world_size=2), images_per_update=30)
    replaced = Batch(BATCH.images, BATCH.labels, 4, replaced=3)
    next(meter.timed(iter([replaced])))
    clock[0] += 1
    meter.add(torch.tensor(2.0), torch.tensor(0.0))
    interval = meter.read()
    assert (interval.loss, interval.updates, interval.replaced) == (4.0, 1, 6)


def test_other_numbers_of_ranks_share_the_sums_out():
    meter = Meter(CPU, images_per_update=30)
    meter.add(torch.tensor(1.0), torch.tensor(0.0))
    state = meter.state_dict()
    sums = [torch.tensor([loss, 0.0, 0.0, 2.0]) for loss in (2.0, 6.0)]
    one = Meter(CPU, images_per_update=30)
    one.load_state_dict(state, sums)
    assert one.read().loss == 4.0
    second = Meter(Processes(CPU.device, rank=1, world_size=2), images_per_update=30)
    second.load_state_dict(state, sums)
    assert second.partial_sums().tolist() == [6.0, 0.0, 0.0, 2.0]


class _Event:
    """A CUDA event by the test's clock; where nothing was recorded it cannot be read, as there."""

    def __init__(self, clock, enable_timing):
        assert enable_timing
        self._clock, self._at_s, self._is_read = clock, None, False

    def record(self):
        self._at_s = self._clock[0]

    def synchronize(self):
        self._is_read = True

    def elapsed_time(self, end):
        assert end._is_read, "the device may not have come there yet"
        return 1000 * (end._at_s - self._at_s)


def test_a_gpus_waiting_is_read_from_its_own_events(clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: _Event(clock, enable_timing))
    timer = WaitTimer(torch.device("cuda"))
    for wait_s in (0.25, 0.5):
        with timer:
            clock[0] += wait_s
        clock[0] += 10  # of training
    assert timer.read() == pytest.approx(0.75)
    assert timer.read() == 0
    with timer:
        clock[0] += 2
    assert timer.read() == pytest.approx(2)
