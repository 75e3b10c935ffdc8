"""The README tells the truth: its files exist, its commands parse, its figures are those of the last committed run."""

import json
import re
import shlex

import pytest

from omnidiff_lite.artifacts import CLONE
from omnidiff_lite.cli import COMMANDS
from omnidiff_lite.reproduce import ROAD, declared_parameters

README = (CLONE / "README.md").read_text()


def test_every_linked_file_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 15 and all((CLONE / link).exists() for link in links)


@pytest.mark.parametrize("line", re.findall(r"(?m)^(?:omnidiff|papermill|make) .*$", README))
def test_every_command_is_one_that_exists(line):
    words = shlex.split(line, comments=True)
    if words[0] == "omnidiff":
        assert words[1] in COMMANDS
    if words[0] == "make":
        assert re.search(rf"(?m)^{words[1]}:", (CLONE / "Makefile").read_text())
    if words[0] == "papermill":
        notebook = next(CLONE / w for w in words if w.startswith("notebooks/"))
        given = [words[i + 1] for i, w in enumerate(words) if w == "-p"]
        assert set(given) <= set(declared_parameters(notebook))


def test_minutes_and_memory_are_those_of_the_committed_run():
    rows = {r["notebook"]: r for r in json.loads((CLONE / "results" / "smoke" / "road.json").read_text())}
    assert set(rows) == {step.name for step in ROAD}
    for name, row in rows.items():
        assert re.search(rf"\[{name[:2]}\]\(notebooks/{name}.ipynb\).*\| {row['minutes']:.1f} \| {row['peak_gib']:.1f} \|",
                         README), f"{name}: {row}"
    assert f"| all | | {sum(r['minutes'] for r in rows.values()):.1f} | {max(r['peak_gib'] for r in rows.values()):.1f} |" in README
