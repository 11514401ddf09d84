"""`python -m fastconv.selftest` on a pretended GPU, on a single small problem; the instances in
FASTCONV_PRETEND_FAULTS, separated by commas, take the device down, those in FASTCONV_PRETEND_HANGS
never come to an end.
"""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
from pretend_gpu import pretend_gpu, take_down

from fastconv import selftest

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, pretend_gpu(patch):
        patch.setattr(torch.cuda, "is_available", lambda: True)
        small = tuple(p for p in selftest.PROBLEMS if p.name == "asymmetric")
        patch.setattr(selftest, "PROBLEMS", small)
        take_down(patch, os.environ.get("FASTCONV_PRETEND_FAULTS", "").split(","))
        hanging = os.environ.get("FASTCONV_PRETEND_HANGS", "").split(",")
        launch = selftest.launch

        def slow(instance, *args):
            if instance.name in hanging:
                time.sleep(600)
            return launch(instance, *args)

        patch.setattr(selftest, "launch", slow)
        sys.exit(selftest.main())
