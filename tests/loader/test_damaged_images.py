"""No bytes of an image end the process, spoil another image or lose one."""

import threading
import time

import numpy as np
import pytest
from damage import in_child

from dali_rsb.kernels import resize_numba
from dali_rsb.loader import cpu_resize


def test_images_that_the_decoder_refuses_make_their_batch_fail_and_nothing_else():
    assert in_child("refused_by_decoder.py", "1") == "survived\n"


def test_a_resize_that_fails_waits_for_its_threads(monkeypatch):
    # DALI frees the images when the resize is left.
    still_reading = threading.Semaphore(0)

    def resize_some(addresses, shapes, *others):
        if others[-2] == 0:
            raise ValueError("the first piece")
        time.sleep(0.1)
        still_reading.release()

    monkeypatch.setattr(resize_numba, "resize_numba", resize_some)
    num_threads, size_px = 2, 96
    images = [np.zeros((2, 2, 3), np.uint8)] * 64  # eight pieces
    start, end = np.zeros(2, np.float32), np.ones(2, np.float32)
    resize = cpu_resize.CpuResize(size_px, num_threads)
    with pytest.raises(ValueError, match="the first piece"):
        resize(images, [start] * 64, [end] * 64, [np.int32(1)] * 64)
    assert all(still_reading.acquire(blocking=False) for _ in range(7))


def test_a_folder_of_damaged_images_is_loaded_without_them(tmp_path):
    assert in_child("damaged_folder.py", tmp_path, "1", "2", "quick").endswith("survived\n")


def test_a_jpeg_cut_in_its_header_is_one_bad_image(tmp_path):
    assert in_child("damaged_folder.py", tmp_path, "cut", "211").endswith("survived\n")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_folders_of_damaged_images(tmp_path):
    output = in_child("damaged_folder.py", tmp_path, "0", "199", "quick", timeout_s=7000)
    assert output.endswith("survived\n")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_jpeg_cut_at_every_byte_of_its_header(tmp_path):
    output = in_child("damaged_folder.py", tmp_path, "cut", "1", timeout_s=7000)
    assert output.endswith("survived\n")
