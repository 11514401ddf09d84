"""What a result depends on besides the code: the machine, the versions and the revision."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import fastconv

ROOT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """The processor's own name, with family and model numbers where the name is vague."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def usable_cores() -> int:
    """Cores this process may run on (a container may see more than it may use)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_revision() -> str:
    """The commit, '-dirty' when tracked files differ from it; 'unknown' outside git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def describe(threads: int) -> dict:
    """Everything that a reader needs to judge or repeat a result, JSON-ready."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "fastconv": fastconv.__version__,
        "fastconv_isa": fastconv._C.cpu_isa(),
        "revision": git_revision(),
    }


def slug(machine: dict) -> str:
    """A folder name: 'amd-epyc-family-25-model-1-2-threads'."""
    text = f"{machine['cpu']} {machine['threads']} threads".lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")
