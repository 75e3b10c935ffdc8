"""`python -m omnidiff_lite.parity [directory of reference files]`."""

import sys

import transformers

from omnidiff_lite.parity import GOLDEN, Golden, ParityError, count, report


def main(arguments: list[str]) -> int:
    """0: every row passed; 1: one failed, or its reference is missing."""
    transformers.logging.disable_progress_bar()
    try:
        table = report(Golden(*arguments) if arguments else GOLDEN)
    except ParityError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 1
    print(table.to_string(index=False))
    print(count(table))
    return 0 if table.passed.all() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
