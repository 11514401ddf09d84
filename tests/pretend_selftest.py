"""`python -m fastconv.selftest` on a pretended GPU, on a single small problem; the instances in
FASTCONV_PRETEND_FAULTS, separated by commas, take the device down.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch
from pretend_gpu import pretend_gpu, take_down

from fastconv import selftest

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, pretend_gpu(patch):
        patch.setattr(torch.cuda, "is_available", lambda: True)
        small = tuple(p for p in selftest.PROBLEMS if p.name == "asymmetric")
        patch.setattr(selftest, "PROBLEMS", small)
        take_down(patch, os.environ["FASTCONV_PRETEND_FAULTS"].split(","))
        sys.exit(selftest.main())
