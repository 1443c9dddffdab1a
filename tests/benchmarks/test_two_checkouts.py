"""Two checkouts are compared by turns, and one that does not load is named."""

import pytest
from conftest import ROOT

from benchmarks import two_checkouts
from dali_rsb.errors import UserError


def test_rounds_alternate_and_shares_are_of_the_old_one(tmp_path, monkeypatch):
    asked = []

    def measure(checkout, cache, data, options):
        asked.append(checkout.name)
        speed = {"old": 100.0, "new": 50.0 + len(asked)}[checkout.name]
        return {"img_per_s": speed, "cpu_ms_per_image": 2.0}

    monkeypatch.setattr(two_checkouts, "measure", measure)
    result = two_checkouts.compare(tmp_path / "old", tmp_path / "new", tmp_path / "data", {}, 3)
    assert asked == ["new", "old", "old", "new", "new", "old"]
    assert [found["new"]["img_per_s"] for found in result["rounds"]] == [51, 54, 55]
    assert result["shares"]["img_per_s"] == {"median": 0.54, "min": 0.51, "max": 0.55}
    assert result["shares"]["cpu_ms_per_image"]["median"] == 1


def test_a_checkout_is_measured_in_a_process_of_its_own(photo_folder, tmp_path):
    options = {"batch_size": 7, "size_px": 16, "num_threads": 1, "epochs": 1}
    found = two_checkouts.measure(ROOT, tmp_path / "index", photo_folder, options)
    assert found["img_per_s"] > 0
    assert found["cpu_ms_per_image"] > 0
    assert any((tmp_path / "index").iterdir())
    with pytest.raises(UserError, match=r"failed \(.*batch_size=0 must be a whole number"):
        two_checkouts.measure(ROOT, tmp_path / "index", photo_folder, options | {"batch_size": 0})
