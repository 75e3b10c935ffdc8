"""`omnidiff` (or `python -m omnidiff_lite`): one command for each thing a user does."""

from __future__ import annotations

import argparse
import sys

from omnidiff_lite import __version__
# Imported for the commands they register, in the order of the help.
from omnidiff_lite import cli_use, cli_parts, cli_ablate, cli_plan  # noqa: F401
from omnidiff_lite.cli_registry import COMMANDS


def command_line() -> argparse.ArgumentParser:
    """The parser of every command's arguments; `function` of its result runs the command."""
    parser = argparse.ArgumentParser(prog="omnidiff", description="Omni-Diffusion, reproduced: any-to-any masked "
                                     "discrete diffusion over text, speech and image tokens.")
    parser.add_argument("--version", action="version", version=f"omnidiff-lite {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (function, declare, summary, example) in COMMANDS.items():
        sub = parsers.add_parser(name, help=summary, description=summary, epilog=f"example: {example}",
                                 formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        declare(sub)
        sub.set_defaults(function=function)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; a known kind of error becomes one line on stderr and exit status 1."""
    options = command_line().parse_args(argv)
    try:
        options.function(options)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except _known_errors() as error:
        print(f"omnidiff {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _known_errors() -> tuple[type[Exception], ...]:
    from omnidiff_lite.reproduce import RoadError
    from omnidiff_lite.processes import TogetherError
    from omnidiff_lite.training.step import TrainingError
    from omnidiff_lite.world.voices import VoiceError

    # Each of the kit's own errors is one of these.
    return (ValueError, OSError, RoadError, TogetherError, TrainingError, VoiceError)
