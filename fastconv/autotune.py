"""Autotuning (work in progress: path only)."""

import os
from pathlib import Path


def cache_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastconv"
