"""The tests' names for the package's tolerances."""

from fastconv.tolerances import ERROR_CONSTANT, winograd_tolerance  # noqa: F401
