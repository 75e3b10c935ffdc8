"""A user's own files: what is accepted, and how each fault is reported."""

import io

import numpy as np
import PIL.Image
import pytest
import soundfile

from omnidiff_lite.media import Image, MediaError, Speech, Text, Waveform, as_part, load_image, load_waveform


def tone(seconds: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return wave if channels == 1 else np.stack([wave] * channels, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = PIL.Image.new(mode, (7, 5)) if mode != "LAB" else PIL.Image.new("LAB", (7, 5))
    assert load_image(image).mode == "RGB" and load_image(image).size == (7, 5)


def test_sixteen_bit_grey_keeps_its_shades():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    assert np.asarray(load_image(PIL.Image.fromarray(ramp))).std() > 50


def test_transparency_becomes_white():
    assert load_image(PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path):
    image = PIL.Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    image.save(tmp_path / "phone.jpg", exif=exif)
    assert load_image(tmp_path / "phone.jpg").size == (20, 30)


def test_a_truncated_picture_is_named(tmp_path):
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).save(buffer, format="PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:900])
    with pytest.raises(MediaError, match="half.png.*PNG or JPEG"):
        load_image(tmp_path / "half.png")


def test_a_missing_or_foreign_picture_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    for name in ("notes.png", "nowhere.png"):
        with pytest.raises(MediaError, match=name):
            load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate, channels", [(8000, 1), (44100, 2)])
def test_formats_rates_and_channels(tmp_path, suffix, rate, channels):
    soundfile.write(tmp_path / f"a.{suffix}", tone(0.5, rate, channels), rate)
    wave = load_waveform(tmp_path / f"a.{suffix}")
    assert wave.rate == rate and wave.samples.ndim == 1 and wave.samples.dtype == np.float32
    assert abs(wave.seconds - 0.5) < 0.1 and abs(wave.samples).max() > 0.2


@pytest.mark.parametrize("samples, words", [
    (tone(0.05), "at least 0.1 s"), (tone(31), "the limit is 30 s"), (np.zeros(8000), "silent"),
    (np.full(8000, np.nan), "not numbers"),
])
def test_recordings_that_cannot_be_used(samples, words):
    with pytest.raises(MediaError, match=words):
        load_waveform((samples, 16000))


def test_integer_samples_are_scaled():
    assert abs(load_waveform(((tone(0.2) * 32767).astype(np.int16), 16000)).samples).max() == pytest.approx(
        0.3, abs=0.01)


def test_unsigned_samples_are_silent_in_the_middle_of_their_range():
    wave = load_waveform(((tone(0.2) * 127 + 128).astype(np.uint8), 16000))
    assert abs(wave.samples.mean()) < 0.01 and abs(wave.samples).max() == pytest.approx(0.3, abs=0.01)
    with pytest.raises(MediaError, match="silent"):
        load_waveform((np.full(8000, 128, np.uint8), 16000))


@pytest.mark.parametrize("source", [(tone(0.2), 0), Waveform(tone(0.2), -8000)])
def test_a_rate_that_is_none_is_told(source):
    with pytest.raises(MediaError, match="samples a second; give the rate that it was recorded at"):
        load_waveform(source)


def test_an_unreadable_recording_names_the_formats_that_work(tmp_path):
    (tmp_path / "memo.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    with pytest.raises(MediaError, match="memo.m4a.*WAV or FLAC.*FLAC"):
        load_waveform(tmp_path / "memo.m4a")


def test_a_waveform_saves_resamples_and_plays(tmp_path):
    wave = Waveform(tone(0.5).astype(np.float32), 16000)
    assert load_waveform(wave.save(tmp_path / "deep" / "a.wav")).seconds == 0.5
    assert len(wave.resample(8000).samples) == 4000
    assert "<audio" in wave._repr_html_()


def test_plain_values_become_parts():
    assert isinstance(as_part("hi"), Text) and isinstance(as_part(PIL.Image.new("L", (2, 2))), Image)
    assert isinstance(as_part(Waveform(np.ones(3, np.float32), 8)), Speech)
    with pytest.raises(MediaError, match="int"):
        as_part(3)
