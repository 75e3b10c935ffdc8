"""The README is true: its files exist, its commands parse, its numbers are those of the last committed run."""

import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import nbformat
import pytest

from omnidiff_lite.artifacts import CLONE
from omnidiff_lite.cli import command_line
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.rows import open_rows
from omnidiff_lite.readme import update
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
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))]
    assert len(links) > 15 and all((CLONE / link).exists() for link in links)


def test_every_linked_section_exists():
    sections = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
                for title in re.findall(r"(?m)^#+ (.+)$", README)}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links and set(links) <= sections


@pytest.mark.parametrize("line", re.findall(r"(?m)^(?:papermill|make) .*$", README))
def test_every_command_is_one_that_exists(line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"(?m)^{words[1]}:", (CLONE / "Makefile").read_text())
    if words[0] == "papermill":
        notebook = next(CLONE / w for w in words if w.startswith("notebooks/"))
        given = [words[i + 1] for i, w in enumerate(words) if w == "-p"]
        assert set(given) <= set(declared_parameters(notebook))


def shown_commands() -> list[str]:
    """What follows `omnidiff`, by whichever launcher, in the bash blocks of the README and of the notebooks."""
    notebooks = [nbformat.read(path, as_version=4) for path in sorted((CLONE / "notebooks").glob("*.ipynb"))]
    texts = [README, *(cell.source for each in notebooks for cell in each.cells if cell.cell_type == "markdown")]
    blocks = "\n".join(block for text in texts for block in re.findall(r"(?s)```bash\n(.*?)```", text))
    lines = re.findall(r"(?m)^(?:omnidiff|.*-m omnidiff_lite|sbatch .*slurm\.sh) .*$", blocks.replace("\\\n", " "))
    script = "train --preset full --stage 1 --expect 64 fsdp2 cuda "  # to which slurm.sh adds what it is given
    return [re.sub(r"^(?:omnidiff|.*-m omnidiff_lite) ", "", re.sub(r"^sbatch \S+ ", script, line)) for line in lines]


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_parses_and_is_given_data_that_can_be_read(line, tmp_path, monkeypatch):
    """A folder is one of `omnidiff tokenize`; of a file the name is judged before it is looked for."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)
    options = command_line().parse_args([word for word in words if word != "..."])
    data = getattr(options, "data", None) or getattr(options, "files", [])
    for path in data if isinstance(data, list) else [data]:
        if path.suffix or options.command != "train":
            with pytest.raises(DataError, match="no such file"):
                open_rows(path)


def test_the_launchers_commands_are_among_them():
    trained = [line for line in shown_commands() if line.startswith("train ")]
    assert len(trained) >= 9 and sum("--expect" in line for line in trained) >= 6


def test_the_measured_parts_are_those_of_the_committed_results(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(README)
    update(copy)
    assert copy.read_text() == README, "omnidiff reproduce --publish writes them"
    rows = {r["notebook"] for r in json.loads((CLONE / "results" / "smoke" / "road.json").read_text())}
    assert rows == {step.name for step in ROAD} == set(
        re.findall(r"(?m)^\| \[\d\d\]\(notebooks/(\w+)\.ipynb\)", README))


def test_a_measured_part_changes_with_the_results_and_nothing_else_does(tmp_path):
    copy, root = tmp_path / "README.md", tmp_path / "results"
    copy.write_text(README)
    (root / "smoke" / "metrics").mkdir(parents=True)
    (root / "smoke" / "road.json").write_text(
        json.dumps([{"notebook": "01_tokenization", "minutes": 77, "peak_gib": 9}]))
    update(copy, root)
    assert "| 77.0 | 9.0 |" in copy.read_text()
    outside = re.compile(r"(?s)<!-- \w+: written by the kit -->.*?<!-- end -->")
    assert outside.split(copy.read_text()) == outside.split(README)
