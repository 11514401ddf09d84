"""Benchmarks and the demo. Nothing here is installed with the package."""
