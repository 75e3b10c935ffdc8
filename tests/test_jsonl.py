"""The released jsonl format, its faults, and the embedded world written to files and read back."""

import json

import numpy as np
import PIL.Image
import pytest

from omnidiff_lite.chat import TASKS
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.data.jsonl import DataError, read_samples, write_samples
from omnidiff_lite.data.media import load_image_ref, load_speech_ref
from omnidiff_lite.world.dataset import samples

CONFIG = WorldConfig(image_size=64, max_objects=2, grid=2, train_voices=8)
GOOD = {"messages": [{"role": "user", "content": "What is it?\n<|image|>"}, {"role": "assistant", "content": "a leaf"}],
        "images": ["a.png"]}


@pytest.fixture
def folder(tmp_path):
    PIL.Image.new("RGB", (8, 8), "green").save(tmp_path / "a.png")
    return tmp_path


def written(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_messages_with_a_picture(folder):
    sample, = read_samples(written(folder, GOOD, ""))
    assert sample.messages == GOOD["messages"] and sample.images == [str(folder / "a.png")]
    assert (sample.audios, sample.task, sample.meta) == ([], "vqa", {})


def test_conversations_by_human_and_gpt_read_the_same(folder):
    turns = [{"from": "human", "value": "What is it?\n<|image|>"}, {"from": "gpt", "value": "a leaf"}]
    other = {"conversations": turns, "images": ["a.png"]}
    assert read_samples(written(folder, other)) == read_samples(written(folder, GOOD))


def test_a_json_file_holds_a_list(folder):
    assert read_samples(written(folder, [GOOD, GOOD], name="data.json")) == read_samples(written(folder, GOOD, GOOD))


def test_paths_begin_at_the_root(folder, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("elsewhere"), GOOD)
    assert read_samples(path, root=folder)[0].images == [str(folder / "a.png")]
    with pytest.raises(DataError, match=r"line 1: images names .*a\.png, which is not there"):
        read_samples(path)


FAULTS = {
    "malformed": ('{"messages": [', "not JSON"),
    "not an object": ("[1, 2]", "a list, not an object"),
    "no conversation": ({"images": []}, "no conversation"),
    "unknown role": ({"messages": [{"role": "robot", "content": "hi"}]}, "unknown role 'robot'; use one of human, gpt"),
    "content": ({"messages": [{"role": "user", "content": 7}]}, "content of the user turn is 7"),
    "turn": ({"messages": ["hi"]}, "a turn is a str"),
    "too few files": ({**GOOD, "images": []}, r"1 <\|image\|> in the messages but 0 images"),
    "too many files": ({**GOOD, "images": ["a.png", "a.png"]}, r"1 <\|image\|> in the messages but 2 images"),
    "wrong kind": ({**GOOD, "images": [], "audios": ["a.png"]}, r"1 <\|image\|> in the messages but 0 images"),
    "missing file": ({**GOOD, "images": ["b.png"]}, "images names .*b.png, which is not there"),
    "no list": ({**GOOD, "images": "a.png"}, "'images' is 'a.png'; give a list"),
    "task": ({**GOOD, "task": "song"}, "unknown task 'song'; choose one of"),
    "meta": ({**GOOD, "meta": "x"}, "'meta' is a str"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_the_file_and_the_line(folder, fault):
    row, message = FAULTS[fault]
    with pytest.raises(DataError, match=rf"data\.jsonl, line 3: .*{message}"):
        read_samples(written(folder, GOOD, "", row, GOOD))


def test_files_that_cannot_be_read(folder):
    with pytest.raises(DataError, match="nowhere.jsonl: cannot be read"):
        read_samples(folder / "nowhere.jsonl")
    with pytest.raises(DataError, match="data.jsonl: holds no samples"):
        read_samples(written(folder, ""))
    with pytest.raises(DataError, match="data.json: holds a dict"):
        read_samples(written(folder, GOOD, name="data.json"))
    with pytest.raises(DataError, match="data.json, row 2: no conversation"):
        read_samples(written(folder, [GOOD, {}], name="data.json"))
    (folder / "latin.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="latin.jsonl: cannot be read.*UTF-8"):
        read_samples(folder / "latin.jsonl")


def test_the_embedded_world_survives_export_and_reading(tmp_path):
    drawn = [sample for task in TASKS for sample in samples(task, "test", 2, 0, CONFIG)]
    path = write_samples(drawn, tmp_path / "world", image_size=64)
    back = read_samples(path)
    assert path == tmp_path / "world" / "samples.jsonl" and len(back) == len(drawn)
    for before, after in zip(drawn, back, strict=True):
        assert (after.messages, after.task, after.meta) == (before.messages, before.task, before.meta)
        for ref, file in zip(before.images, after.images, strict=True):
            assert np.array_equal(load_image_ref(file), load_image_ref(ref, size=64))
        for ref, file in zip(before.audios, after.audios, strict=True):
            assert np.allclose(load_speech_ref(file).samples, load_speech_ref(ref).samples, atol=2e-4)
    assert read_samples(write_samples(back, tmp_path / "again")) == back, "files are named, not copied"


def test_recipes_may_stand_in_a_file(tmp_path):
    sample, = samples("svqa", "train", 1, 0, CONFIG)
    row = vars(sample)
    assert read_samples(written(tmp_path, row)) == [sample]
