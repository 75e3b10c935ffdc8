"""From samples with media to ids: roles, batches, cache, and errors that name the sample."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import toys
from toys import ToyParts

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.config import load_preset
from omnidiff_lite.data.encode import (
    EncodedSample, EncodingError, build_dataset, encode_samples, read_encoded, write_encoded)
from omnidiff_lite.media import Waveform

SIZES, DIM = (32, 16), toys.SPEECH_DIM  # pixels in user turns and in others; width of the frames


@pytest.fixture()
def parts() -> ToyParts:
    return ToyParts()


@pytest.fixture()
def folder(tmp_path):
    """Pictures by their red, sounds by their length (tenths of a second) and loudness."""
    for red in (10, 200):
        PIL.Image.new("RGB", (48, 32), (red, 0, 0)).save(tmp_path / f"red{red}.png")
    for tenths, loud in ((3, 0.25), (5, 0.5)):
        Waveform(np.tile(np.float32([loud, -loud]), 800 * tenths), 16000).save(tmp_path / f"sound{tenths}.wav")
    return tmp_path


def svqa() -> Sample:
    """Spoken question about a picture, answered in text and speech."""
    return Sample(build_messages("svqa", answer="red"), ["red10.png"], ["sound3.wav", "sound5.wav"], "svqa")


def test_each_medium_becomes_what_its_turn_needs(parts, folder):
    v = parts.vocabulary
    (encoded,) = encode_samples([svqa()], parts, SIZES, folder)
    ids = encoded.ids.tolist()
    assert encoded.task == "svqa" and encoded.ids.dtype == encoded.labels.dtype == np.int32
    # User speech: 3 frames and 4 queries, continuous. Sound 5 is the answer: 5 codes of 8 * 0.5.
    assert ids.count(v.context_of_audio) == 7 and encoded.frames.shape == (7, DIM)
    assert encoded.frames.dtype == np.float16 and (encoded.frames == 0.25).all()
    assert v.codes_of_speech(ids) == [4] * 5
    # A user's picture at 32 pixels: 4 x 4 codes.
    assert v.codes_of_image(ids) == [10] * 16
    answered = [label for label in encoded.labels.tolist() if label != -100]
    assert parts.text.decode([i for i in answered if i in v.text_range]) == "red\n\n" and answered[-2] == v.im_end
    assert v.codes_of_speech(answered) == [4] * 5 and not v.codes_of_image(answered)


def test_discrete_speech_is_written_in_the_ids_of_the_speech_tokenizer(parts, folder):
    """In the user's turn too, between the same markers; nothing is left for the adapter. Loudness 0.25 is code 2."""
    v = parts.vocabulary
    (encoded,), (framed,) = (encode_samples([svqa()], parts, SIZES, folder, speech_input=how)
                             for how in ("discrete", "continuous"))
    asked = encoded.ids[encoded.labels == -100].tolist()
    assert v.codes_of_speech(asked) == [2] * 3 and v.context_of_audio not in asked and not len(encoded.frames)
    assert asked[asked.index(v.begin_of_audio) + 4] == v.end_of_audio
    assert np.array_equal(encoded.labels[encoded.labels != -100], framed.labels[framed.labels != -100])


def test_an_assistant_picture_is_encoded_at_the_generation_size(parts, folder):
    sample = Sample(build_messages("t2i", text="a red circle", answer=""), ["red200.png"], [], "t2i")
    (encoded,) = encode_samples([sample], parts, SIZES, folder)
    assert parts.vocabulary.codes_of_image(encoded.labels) == [200] * 4
    assert encoded.frames.shape == (0, DIM)


def test_each_medium_is_encoded_once_for_each_use(parts, folder):
    asr = Sample(build_messages("asr", answer="a"), [], ["sound3.wav"], "asr")
    tts = Sample(build_messages("tts", text="a", answer=""), [], ["sound3.wav"], "tts")
    encoded = encode_samples([svqa(), asr, svqa(), tts, asr], parts, SIZES, folder)
    assert sorted(parts.seen) == [("codes", 3), ("codes", 5), ("frames", 3), ("image", 32)]
    assert np.array_equal(encoded[0].ids, encoded[2].ids)
    assert parts.vocabulary.codes_of_speech(encoded[3].ids) == [2] * 3


def test_a_sample_that_fails_is_named(parts, folder):
    good = svqa()
    with pytest.raises(EncodingError, match=r"sample 1: .*red7.png.*no such picture"):
        encode_samples([good, Sample(good.messages, ["red7.png"], good.audios, "svqa")], parts, SIZES, folder)
    with pytest.raises(EncodingError, match=r"sample 1 \(svqa\): 2 <\|audio\|> in the messages but 1 references"):
        encode_samples([good, Sample(good.messages, good.images, good.audios[:1], "svqa")], parts, SIZES, folder)
    with pytest.raises(EncodingError, match=r"sample 0 \(None\): a message needs a role"):
        encode_samples([Sample([{"role": "poet", "content": "a"}])], parts, SIZES, folder)


def test_pictures_and_sounds_need_no_suffix(parts, folder):
    """Which of the two a file is follows from where the sample holds it."""
    for name in ("red10.png", "sound3.wav"):
        (folder / name).rename(folder / name.partition(".")[0])
    sample = svqa()
    bare = Sample(sample.messages, ["red10"], ["sound3", "sound5.wav"], "svqa")
    assert parts.vocabulary.codes_of_image(encode_samples([bare], parts, SIZES, folder)[0].ids) == [10] * 16
    with pytest.raises(EncodingError, match="sample 0: .*sound3.*not a readable picture"):
        encode_samples([Sample(sample.messages, ["sound3"], bare.audios, "svqa")], parts, SIZES, folder)


def test_encoded_samples_come_back_from_disk_as_they_were(parts, folder):
    text_only = Sample(build_messages("text_qa", "a", "red"), task="text_qa")
    encoded = encode_samples([svqa(), text_only], parts, SIZES, folder)
    write_encoded(folder / "set" / "data.safetensors", encoded)
    for ours, theirs in zip(read_encoded(folder / "set" / "data.safetensors"), encoded, strict=True):
        assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("ids", "labels", "frames"))
        assert ours.task == theirs.task
    assert not list(folder.rglob("*.partial"))


def test_the_world_is_encoded_once_and_again_when_anything_changes(parts, tmp_path):
    preset = load_preset("smoke")

    def build(seed: int = 0, preset=preset, task: str = "svqa") -> list[EncodedSample]:
        return build_dataset(preset, parts, task, "train", 3, seed, tmp_path)

    first = build()
    assert [kind for kind, _ in parts.seen].count("image") >= 1 and len(first) == 3
    parts.seen.clear()
    again = build()
    assert not parts.seen and all(np.array_equal(a.ids, b.ids) for a, b in zip(first, again))
    for change in ({"seed": 1}, {"task": "vqa"}, {"preset": load_preset("smoke", {"world.max_objects": 1})},
                   {"preset": load_preset("smoke", {"denoiser.speech_input": "discrete"})}):
        parts.seen.clear()
        build(**change)
        assert parts.seen, f"{change} was answered from the cache"
    parts.seen.clear()
    parts.fingerprint = lambda: "weights-2"
    build()
    assert parts.seen
