"""Runs the CUDA kernels on the CPU: see scheduler.h for how, `tests/emulated.py` for the way in."""
