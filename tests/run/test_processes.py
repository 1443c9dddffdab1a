"""Which device a process takes, and that all take the same kind."""

import socket
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore

from dali_rsb.errors import UserError
from dali_rsb.run import processes


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """The file of NVIDIA's driver, which is not there yet."""
    monkeypatch.setattr(processes, "NVIDIA_DRIVER", str(tmp_path / "version"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "version"


def test_auto_is_the_cpu_where_there_is_no_driver(driver):
    assert processes._device("auto", 0, 1) == torch.device("cpu")
    with pytest.raises(UserError, match=r"set run\.device=cpu"):
        processes._device("cuda", 0, 1)


def test_a_driver_without_a_gpu_is_no_reason_to_train_on_a_cpu(driver, monkeypatch):
    driver.touch()
    with pytest.raises(UserError, match="doctor, which says why, or set"):
        processes._device("auto", 0, 1)
    assert processes._device("cpu", 0, 1) == torch.device("cpu")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert processes._device("auto", 0, 1) == torch.device("cpu")


@pytest.mark.parametrize(("first", "other"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_processes_that_find_different_devices_name_the_machine(first, other):
    store = HashStore()
    processes._agree(first, store, 0)
    processes._agree(first, store, 1)
    with pytest.raises(UserError, match=f"{other} for process 2 on {socket.gethostname()}"):
        processes._agree(other, store, 2)


def test_a_first_process_that_cannot_be_reached_is_one_line(monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        port = str(nobody.getsockname()[1])
        for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(UserError, match=rf"no connection .* at 127\.0\.0\.1:{port}") as caught:
            processes._connection(timedelta(seconds=1))
    assert len(str(caught.value).splitlines()) == 1
