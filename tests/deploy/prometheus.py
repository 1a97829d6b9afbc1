"""Prometheus' own programs, where they are: Debian's package `prometheus`."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Where there is none a test is skipped, but fails in CI."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(f"no {name} here, which CI must have: apt-get install -y prometheus")
    if path is None:
        pytest.skip(f"no {name} here: apt-get install -y prometheus")
    return path
