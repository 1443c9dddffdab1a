"""Two checkouts are compared by turns, and one that does not load is named."""

import pytest
from conftest import ROOT

from benchmarks import two_checkouts
from dali_rsb.errors import UserError


def test_rounds_alternate_and_shares_are_of_the_old_one(tmp_path, monkeypatch):
    asked, closed = [], []

    class Loading:
        def __init__(self, checkout, cache, data, options):
            self.name = checkout.name
            assert cache.name == f"index_{self.name}"

        def epoch(self):
            asked.append(self.name)
            speed = {"old": 100.0, "new": 50.0 + len(asked)}[self.name]
            return {"img_per_s": speed, "cpu_ms_per_image": 2.0}

        def close(self):
            closed.append(self.name)

    monkeypatch.setattr(two_checkouts, "LoadingCheckout", Loading)
    result = two_checkouts.compare(tmp_path / "old", tmp_path / "new", tmp_path / "data", {}, 3)
    assert asked == ["new", "old", "old", "new", "new", "old"]
    assert [found["new"]["img_per_s"] for found in result["rounds"]] == [51, 54, 55]
    of_speed = result["shares"]["img_per_s"]
    assert (of_speed["min"], of_speed["median"], of_speed["max"]) == (0.51, 0.54, 0.55)
    assert 0.51 <= of_speed["low_95"] <= 0.54 <= of_speed["high_95"] <= 0.55
    assert result["shares"]["cpu_ms_per_image"]["median"] == 1
    assert closed == ["old", "new"]


def test_a_checkout_is_measured_in_a_process_of_its_own(photo_folder, tmp_path):
    options = {"batch_size": 7, "size_px": 16, "num_threads": 1}
    loading = two_checkouts.LoadingCheckout(ROOT, tmp_path / "index", photo_folder, options)
    for _ in range(2):
        found = loading.epoch()
        assert found["img_per_s"] > 0
        assert found["cpu_ms_per_image"] > 0
    loading.close()
    assert any((tmp_path / "index").iterdir())
    none = options | {"batch_size": 0}
    with pytest.raises(UserError, match=r"failed \(.*batch_size=0 must be a whole number"):
        two_checkouts.LoadingCheckout(ROOT, tmp_path / "index", photo_folder, none)
