"""Pictures and sounds by reference: paths and recipes, one or many, in worker processes and from the cache."""

import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.data import media
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.media import load_image_ref, load_many, load_ref, load_speech_ref
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.world.dataset import pictures, utterances

CONFIG = WorldConfig(image_size=64, max_objects=2, grid=2, train_voices=8)
REFS = [item.ref for pair in zip(pictures("train", 40, 0, CONFIG, charts=0.3), utterances("train", 40, 0, CONFIG))
        for item in pair]
RGB = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def same(one, other):
    if isinstance(one, Waveform):
        return one.rate == other.rate and np.array_equal(one.samples, other.samples)
    return one.mode == other.mode == "RGB" and np.array_equal(one, other)


@pytest.fixture(scope="module")
def drawn():
    return [load_ref(ref, size=64) for ref in REFS]


def test_recipes_are_drawn_at_the_size_asked_for():
    assert load_image_ref(REFS[0]).size == (256, 256) and load_image_ref(REFS[0], size=48).size == (48, 48)
    assert load_speech_ref(REFS[1]).rate == 22050


def test_paths_begin_at_the_root(tmp_path, drawn):
    drawn[0].save(tmp_path / "a.png")
    drawn[1].save(tmp_path / "b.wav")
    picture, recipe = load_many(["a.png", REFS[0]], tmp_path, size=64, kind="image")
    (sound,) = load_many(["b.wav"], tmp_path, kind="speech")
    assert same(picture, drawn[0]) and same(recipe, drawn[0])
    assert np.allclose(sound.samples, drawn[1].samples, atol=2e-4)
    assert same(load_image_ref(str(tmp_path / "a.png")), drawn[0])


def test_the_caller_says_what_a_file_is_whatever_its_name(tmp_path, drawn):
    drawn[0].save(tmp_path / "picture", format="PNG")
    (tmp_path / "note").write_text("neither")
    assert same(load_many(["picture"], tmp_path, kind="image")[0], drawn[0])
    for ref, kind, told in (("note", "image", "note: not a readable picture"), ("picture", "speech", "recording"),
                            ("picture", None, "picture: .*say kind="), (REFS[0], "speech", "'image' where 'speech'")):
        with pytest.raises(MediaError, match=told):
            load_many([ref], tmp_path, kind=kind)


def test_many_keep_their_order_and_repeats_are_loaded_once(drawn, monkeypatch):
    calls = []
    monkeypatch.setattr(media, "load_ref", lambda ref, **_: calls.append(ref) or load_ref(ref, size=64))
    found = load_many(REFS[:4] + REFS[:2], size=64)
    assert all(map(same, found, drawn[:4] + drawn[:2])) and calls == REFS[:4]


def test_worker_processes_give_the_same(drawn):
    assert len(REFS) >= media.SMALL
    assert all(map(same, load_many(REFS, workers=2, size=64), drawn))


def test_a_killed_worker_stops_the_work_and_the_next_call_begins_anew(drawn):
    """No bad sample among others, which would be passed over."""
    pool, _ = media._pool(2)
    pool.submit(os.getpid).result()
    pool.submit(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed .*memory.*; run again with fewer workers"):
        load_many(REFS, workers=2, size=64)
    assert all(map(same, load_many(REFS, workers=2, size=64), drawn))


def test_workers_that_cannot_start_are_done_without(tmp_path):
    """A script without its guard would start itself in each of them."""
    script = tmp_path / "script.py"
    script.write_text("from omnidiff_lite.data.media import load_many\n"
                      f"print(len(load_many({REFS[:64:2]!r} * 2 + {REFS[1:66:2]!r}, workers=2, size=16)))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "97", done.stderr
    assert "worker processes could not start" in done.stderr and "if __name__ == '__main__':" in done.stderr


def test_the_cache_gives_the_same_without_drawing(tmp_path, drawn, monkeypatch):
    assert all(map(same, load_many(REFS, cache_dir=tmp_path, size=64), drawn))
    archive, = (tmp_path / "media").iterdir()
    assert len(zipfile.ZipFile(archive).namelist()) == len(REFS)
    monkeypatch.setattr(media, "load_ref", lambda *_, **__: pytest.fail("drawn again"))
    assert all(map(same, load_many(REFS, cache_dir=tmp_path, size=64), drawn))


def test_the_cache_knows_other_references_sizes_and_sources(tmp_path, monkeypatch):
    for refs, size in ((REFS[:2], 64), (REFS[:3], 64), (REFS[:2], 32)):
        load_many(refs, cache_dir=tmp_path, size=size)
    monkeypatch.setattr(media, "source_hash", lambda *patterns: "other source code")
    load_many(REFS[:2], cache_dir=tmp_path, size=64)
    assert len(list((tmp_path / "media").iterdir())) == 4


def test_an_interrupted_write_leaves_no_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "_pack", lambda item: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_many(REFS[:2], cache_dir=tmp_path, size=64)
    assert not list((tmp_path / "media").iterdir())


def test_files_are_never_cached(tmp_path):
    path = tmp_path / "a.png"
    for color in RGB:
        PIL.Image.new("RGB", (8, 8), color).save(path)
        assert load_many([str(path)], cache_dir=tmp_path / "cache", kind="image")[0].getpixel((0, 0)) == RGB[color]


@pytest.mark.parametrize("kind, ref", [
    ("image", "nowhere.png"), ("speech", "nowhere.wav"), (None, "scene:{"), (None, 'chart:{"kind": "pie"}'),
    (None, "chart:[1]"), (None, 'scene:{"background": "grey", "objects": [], "grid": 2, "jitter": []}'),
    (None, "speech:{}"),
    (None, 'speech:{"text": "...", "voice": {"name": "x", "language": "en-us", "variant": "m1"}}')])
def test_a_bad_reference_is_one_error_that_names_it(kind, ref):
    with pytest.raises(MediaError) as caught:
        load_many([REFS[kind == "speech"], ref], kind=kind)
    assert ref in str(caught.value)
