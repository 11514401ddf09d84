"""`python -m bench <command>`; see bench/README.md."""

from __future__ import annotations

import argparse
import sys

from bench import compare, lists, model, plot, providers, readme, run


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the lists of layers and the providers")
    run.add_arguments(commands.add_parser("run", help="lists of layers against providers"))
    single = commands.add_parser("conv", help="one convolution, named as MIOpenDriver names it")
    lists.add_single_convolution(single)
    run.add_common_arguments(single)
    compare.add_arguments(commands.add_parser("compare", help="what became slower beyond noise"))
    model.add_arguments(commands.add_parser("model", help="the cost models against measured times"))
    plot.add_arguments(commands.add_parser("plot", help="pictures of a result file"))
    commands.add_parser("readme", help="write the README's tables from the committed results")
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv  # to start this command again
    if args.command == "list":
        return listing()
    if args.command == "readme":
        readme.write()
        return 0
    verbs = {
        "run": run.from_lists,
        "conv": run.single,
        "compare": compare.run,
        "model": model.run,
        "plot": plot.run,
    }
    return verbs[args.command](args)


def listing() -> int:
    for name in lists.names():
        families: dict[str, int] = {}
        for layer in lists.layers(name):
            family = lists.family_of(layer)
            families[family] = families.get(family, 0) + 1
        counts = ", ".join(f"{count} {family}" for family, count in families.items())
        print(f"{name:28} {counts:32} {lists.source(name)}")
    print(f"\nproviders: {', '.join(providers.known())}, or module:Class of your own")
    return 0


if __name__ == "__main__":
    sys.exit(main())
