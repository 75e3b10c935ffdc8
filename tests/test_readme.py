"""The README tells the truth: its files exist, its commands parse, its figures are those of the last committed run."""

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from omnidiff_lite.artifacts import CLONE
from omnidiff_lite.cli import COMMANDS
from omnidiff_lite.reproduce import ROAD, declared_parameters

README = (CLONE / "README.md").read_text()


def test_no_tracked_file_names_a_path_of_some_machine():
    """Paths of whoever built it, in text or in committed outputs."""
    listed = subprocess.run(["git", "-C", str(CLONE), "ls-files"], capture_output=True, text=True).stdout.split()
    places = {str(p) for p in (CLONE.parent, Path.home(), Path(tempfile.gettempdir()))} - {"/"}
    machine = re.compile("|".join(rf"(?<![\w.}}/-]){re.escape(place)}/\w" for place in places))
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".ipynb", ".json", ".csv", ".html"}
    found = [name for name in listed if Path(name).suffix in kinds and (CLONE / name).exists()
             and machine.search((CLONE / name).read_text(errors="ignore"))]
    assert not found


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
    minutes, peak = sum(r["minutes"] for r in rows.values()), max(r["peak_gib"] for r in rows.values())
    assert f"| all | | {minutes:.1f} | {peak:.1f} |" in README and "{" not in re.sub(r"(?s)```.*?```", "", README)
