"""Asks the Hugging Face hub only where it can be reached; else its cache answers at once."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0


@contextmanager
def cache_where_out_of_reach() -> Iterator[None]:
    """Let the hub's client look into its cache alone where there is no way to the hub.

    By itself it tries each file six times, with a line for each: a minute and a half for one model.
    """
    try:
        from huggingface_hub import constants
    except ImportError:  # whoever needs it says so
        yield
        return
    before = constants.HF_HUB_OFFLINE
    if not before and not is_within_reach(constants.ENDPOINT):
        logger.warning("%s is out of reach: looking into the cache alone", constants.ENDPOINT)
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_within_reach(url: str) -> bool:
    """Whether a server takes connections, or a proxy stands between, which alone could tell."""
    if urllib.request.getproxies():
        return True
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((parts.hostname or "", port), _TIMEOUT_S):
            return True
    except OSError:
        return False
