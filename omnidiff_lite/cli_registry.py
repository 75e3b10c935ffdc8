"""The commands of `omnidiff`, by name, and the helpers that several of them share."""

from __future__ import annotations

import argparse
from typing import Any, Callable

Command = Callable[[argparse.Namespace], None]
COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None], str, str]] = {}


def command(name: str, summary: str, example: str) -> Callable[[Command], Command]:
    """Register the decorated function; its `arguments` attribute is set by `arguments` below."""
    def register(function: Command) -> Command:
        COMMANDS[name] = (function, getattr(function, "arguments", lambda parser: None), summary, example)
        return function
    return register


def arguments(declare: Callable[[argparse.ArgumentParser], None]) -> Callable[[Command], Command]:
    """Let `declare` add the decorated command's arguments to its parser; goes below `command`."""
    def attach(function: Command) -> Command:
        function.arguments = declare  # type: ignore[attr-defined]
        return function
    return attach


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least `least`."""
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {text}")
        return int(text)
    return number


def preset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="smoke", help="smoke, cpu, gpu, full, or a .yaml file (default smoke)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change one configuration key, e.g. training.gamma=0.3; repeatable")


def load(options: argparse.Namespace) -> Any:
    """The preset that `preset_arguments` name."""
    from omnidiff_lite.config import load_preset

    return load_preset(options.preset, overrides(options))


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """What `--set` changes, by dotted key. Raises `ConfigError`."""
    from omnidiff_lite.notebook import parse_overrides

    return parse_overrides(options.overrides)
