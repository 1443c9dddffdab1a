"""What can be made again is kept where the user's environment says."""

from pathlib import Path

import pytest

from dali_rsb.system.user_cache import user_cache


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("/scratch/me", "/scratch/me/dali_rsb"),
        ("", "/home/me/.cache/dali_rsb"),
        ("relative", "/home/me/.cache/dali_rsb"),
    ],
)
def test_the_users_cache_follows_xdg_cache_home(monkeypatch, given, found):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert user_cache() == Path(found)


def test_without_xdg_cache_home_it_is_below_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == Path("/home/me/.cache/dali_rsb")
