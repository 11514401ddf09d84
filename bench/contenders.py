"""The names of contenders that something depends on. Imports nothing: reports are made also where
fastconv has not been built yet."""

PYTORCH = "pytorch"  # the yardstick: eager, same layout
COMPILED = "compile"
COPY, GEMM = "copy", "gemm"
LIMITS = (COPY, GEMM)  # what a problem is held against, and no answer to it
