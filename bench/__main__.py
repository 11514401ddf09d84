"""`python -m bench <command>`; see bench/README.md."""

from __future__ import annotations

import argparse
import sys

from bench import conv_cpu


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the CPU convolutions against PyTorch")
    conv_cpu.add_arguments(run)
    args = parser.parse_args(argv)
    return conv_cpu.run(args)


if __name__ == "__main__":
    sys.exit(main())
