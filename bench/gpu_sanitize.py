"""`python -m bench.gpu_sanitize TOOL`: one tool of compute-sanitizer over `tests/gpu/sanitized.py`.

Where the sanitizer itself cannot work (some virtual machines hide what it needs) the stage is
limited, not failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from bench.gpu_machine import ROOT, find_sanitizer
from bench.gpu_stages import RC_LIMITED

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_ERRORS = 66
SHARE_OF_LIMIT = 0.5  # of the stage's time; the rest is start-up, which the tools slow down
UNUSABLE = ("Device not supported", "Failed to initialize", "insufficient permissions")


def verdict(text: str, code: int) -> tuple[int, str]:
    """(exit code, summary) from what the tool printed."""
    ran = re.search(r"^sanitized: (.*)$", text, re.MULTILINE)
    counted = re.search(r"SUMMARY: (?:\d+ hazards? displayed \()?(\d+) errors?", text)
    said = f"{counted[1]} errors" if counted else "no summary"
    said += f", {ran[1]}" if ran else ", did not come to an end"
    if any(word in text for word in UNUSABLE) and ran is None:
        return RC_LIMITED, f"the tool does not work on this machine ({said})"
    clean = code == 0 and ran is not None and counted is not None and counted[1] == "0"
    return (0 if clean else 1), said


def passed_on(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, int]:
    """What it says, also printed line by line: where it hangs, the log ends with the instance."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return "".join(lines), process.wait()


def main(argv: list[str]) -> int:
    tool = find_sanitizer()
    if tool is None or argv[0] not in TOOLS:
        print("summary: compute-sanitizer was not found" if tool is None else f"not {TOOLS}")
        return RC_LIMITED if tool is None else 2
    seconds = float(os.environ.get("FASTCONV_STAGE_SECONDS", "60")) * SHARE_OF_LIMIT
    script = ROOT / "tests" / "gpu" / "sanitized.py"
    command = [tool, "--tool", argv[0], "--error-exitcode", str(FOUND_ERRORS)]
    command += [sys.executable, str(script), "--seconds", f"{seconds:.0f}"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    text, ended = passed_on(command, environment)
    code, said = verdict(text, ended)
    print(f"summary: {said}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
