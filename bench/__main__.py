"""`python -m bench <command>`; see bench/README.md."""

from __future__ import annotations

import argparse
import sys

from bench import conv_cpu, pool_cpu, readme


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the CPU convolutions against PyTorch")
    conv_cpu.add_arguments(run)
    pool = commands.add_parser("pool", help="the CPU poolings against PyTorch")
    pool_cpu.add_arguments(pool)
    commands.add_parser("readme", help="write the README's tables from the committed results")
    args = parser.parse_args(argv)
    if args.command == "readme":
        readme.write()
        return 0
    return pool_cpu.run(args) if args.command == "pool" else conv_cpu.run(args)


if __name__ == "__main__":
    sys.exit(main())
