"""Fetching from the Hugging Face hub: one clear error, and no waiting where there is no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from mmpeft.zoo.request import fetch_error


@contextmanager
def fetching(source: str) -> Iterator[None]:
    """Make every error of fetching within the block the ValueError that ``source`` could not be fetched.

    Where the hub's host has no address, libraries take files from their caches alone: otherwise they would try each
    file six times, for half a minute, before they say so.
    """
    offline = not (Path(source.partition("/")[2]).exists() or _has_address())
    try:
        with _offline() if offline else nullcontext():
            yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "download" not in str(error):  # open_clip's, where it fetched nothing
            raise
        if offline and any(word in str(error) for word in ("connect", "offline", "Hub")):
            raise fetch_error(source, OSError("there is no network, and no copy in the cache")) from error
        raise fetch_error(source, error) from error


def _has_address() -> bool:
    """Whether the hub's host can be resolved; a proxy would do that for us."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
