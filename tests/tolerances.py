"""The tests' names for the package's tolerances."""

from fastconv.tolerances import *  # noqa: F403
