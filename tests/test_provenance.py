"""Hashes of source: they depend on contents and names, and on nothing else."""

from __future__ import annotations

import shutil

import pytest
import torch

from omnidiff_lite.config import load_preset, to_dict
from omnidiff_lite.data import encode, media
from omnidiff_lite.provenance import PACKAGE, config_hash, hardware, hash_files, source_hash, tree_hash


def test_a_hash_knows_contents_and_names_but_not_places(tmp_path):
    for name, text in (("a.py", "one"), ("b/c.py", "two")):
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def seen(folder: str) -> str:
        return hash_files((tmp_path / folder).rglob("*.py"), tmp_path / folder)

    first = seen("here")
    assert first == seen("there") == hash_files(reversed(sorted((tmp_path / "here").rglob("*.py"))), tmp_path / "here")
    (tmp_path / "there" / "b" / "c.py").write_text("three")
    assert seen("there") != first
    (tmp_path / "here" / "a.py").rename(tmp_path / "here" / "z.py")
    assert seen("here") != first


def test_the_package_and_its_parts_have_hashes_of_their_own():
    assert source_hash() != source_hash("backbone.py") != source_hash("chat.py")
    assert source_hash("data/*.py") == hash_files(PACKAGE.glob("data/*.py"))
    assert source_hash("data/*.py") == source_hash("data/*.py", "data/media.py"), "a file counts once"


@pytest.mark.parametrize("pattern", sorted({*encode.SOURCES, *media.SOURCES}))
def test_every_named_source_is_there(pattern):
    assert list(PACKAGE.glob(pattern))


def test_a_setting_that_came_later_changes_no_hash_until_it_is_used():
    before = to_dict(load_preset("smoke"))
    del before["training"]["suffix"]
    assert tree_hash(before) == config_hash(load_preset("smoke"))
    used = load_preset("smoke", {"training.suffix": {"asr": 0.5}})
    assert config_hash(used) != config_hash(load_preset("smoke"))


def test_the_hardware_of_a_run_told_to_use_the_cpu_is_the_cpu(monkeypatch):
    """On a machine that has a GPU as well."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    hardware.cache_clear()
    found = [hardware(on) for on in ("cpu", "cuda", None)]
    hardware.cache_clear()
    assert "cores" in found[0] and found[1:] == ["1 x a GPU"] * 2
