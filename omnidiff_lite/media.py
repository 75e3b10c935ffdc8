"""Inputs and outputs: Text, Image, Speech, and the Waveform they share; loading with clear errors."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
import PIL.Image
import PIL.ImageOps

MIN_SECONDS, MAX_SECONDS = 0.1, 30.0
MAX_CHANNELS = 64  # more would be samples, in a transposed array


class MediaError(ValueError):
    """A picture or recording that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Waveform:
    """Mono sound: `samples` float32 [n] in -1..1 at `rate` Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def resample(self, rate: int) -> Waveform:
        """The same sound at another rate (soxr, high quality)."""
        if rate == self.rate:
            return self
        import soxr

        return Waveform(soxr.resample(self.samples, self.rate, rate).astype(np.float32), rate)

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write a file, 16-bit for WAV and FLAC, in `format` as soundfile names it, or that of its suffix."""
        import soundfile

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.clip(self.samples, -1, 1), self.rate, format=format)
        return path

    def _repr_html_(self) -> str:
        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, np.clip(self.samples, -1, 1), self.rate, format="WAV")
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


@dataclass(frozen=True)
class Text:
    """A text input."""

    text: str


@dataclass(frozen=True)
class Image:
    """A picture input: a path, a PIL image, or an array [H, W, 3] uint8."""

    source: Union[str, Path, PIL.Image.Image, np.ndarray]

    def load(self) -> PIL.Image.Image:
        return load_image(self.source)


@dataclass(frozen=True)
class Speech:
    """A speech input: a path, a `Waveform`, or a pair (samples, rate)."""

    source: Union[str, Path, Waveform, tuple[np.ndarray, int]]

    def load(self) -> Waveform:
        return load_waveform(self.source)


Part = Union[Text, Image, Speech]


def as_part(value: object) -> Part:
    """A plain string becomes a Text, a PIL image an Image, a Waveform a Speech."""
    if isinstance(value, (Text, Image, Speech)):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, PIL.Image.Image):
        return Image(value)
    if isinstance(value, Waveform):
        return Speech(value)
    raise MediaError(f"cannot take a {type(value).__name__} as input: give Text, Image, Speech, a string, "
                     "a PIL image or a Waveform")


def load_image(source: str | Path | PIL.Image.Image | np.ndarray | io.BytesIO) -> PIL.Image.Image:
    """Any picture that Pillow opens, as RGB: EXIF rotation applied, transparency over white.

    Raises `MediaError` naming the file if it is missing, truncated or not a picture.
    """
    name = source if isinstance(source, (str, Path)) else "the picture"
    try:
        if isinstance(source, np.ndarray):
            image = PIL.Image.fromarray(source)
        elif isinstance(source, PIL.Image.Image):
            image = source
        else:
            image = PIL.Image.open(source)
        image.load()
    except FileNotFoundError:
        raise MediaError(f"{name}: no such picture; check the path") from None
    except PIL.Image.DecompressionBombError:
        raise MediaError(f"{name}: has too many pixels (over {2 * PIL.Image.MAX_IMAGE_PIXELS:,}); "
                         "make it smaller") from None
    except (PIL.UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError) as error:
        raise MediaError(f"{name}: not a readable picture ({error}); save it again as PNG or JPEG") from None
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _wide_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _wide_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit, 32-bit and float greyscale, scaled to 8 bits by its own range (Pillow would clip it)."""
    values = np.asarray(image, dtype=np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scaled = (np.nan_to_num(values) - low) / ((high - low) or 1.0) * 255
    return PIL.Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")


def load_waveform(source: str | Path | Waveform | tuple[np.ndarray, int] | io.BytesIO,
                  max_seconds: float = MAX_SECONDS) -> Waveform:
    """A recording as mono float32 at its own rate.

    Takes what libsndfile reads (WAV, FLAC, OGG, MP3, ...), any rate, any number of channels (averaged), between
    `MIN_SECONDS` and `max_seconds`. Raises `MediaError` naming the file and the limit.
    """
    name = source if isinstance(source, (str, Path)) else "the recording"
    samples, rate = _samples(source, name)
    if not rate >= 1:
        raise MediaError(f"{name}: {rate} samples a second; give the rate that it was recorded at, such as 16000")
    samples = samples.astype(np.float32)
    if samples.ndim > 2 or (samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS):
        raise MediaError(f"{name}: samples of shape {list(samples.shape)}; give [n] or [n, channels]")
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    wave = Waveform(np.ascontiguousarray(samples), int(rate))
    if not np.isfinite(wave.samples).all():
        raise MediaError(f"{name}: holds values that are not numbers; record or export it again")
    if wave.seconds < MIN_SECONDS:
        raise MediaError(f"{name}: {wave.seconds:.3f} s long; give at least {MIN_SECONDS} s of sound")
    if wave.seconds > max_seconds:
        raise MediaError(f"{name}: {wave.seconds:.1f} s long; the limit is {max_seconds:g} s, cut it into pieces")
    if not np.any(np.abs(wave.samples) > 1e-5):
        raise MediaError(f"{name}: is silent; check the microphone or the export")
    return wave


def _samples(source: object, name: object) -> tuple[np.ndarray, int]:
    if isinstance(source, Waveform):
        return source.samples, source.rate
    if isinstance(source, tuple):
        samples, rate = source
        samples = np.asarray(samples)
        if np.issubdtype(samples.dtype, np.integer):
            kind = np.iinfo(samples.dtype)
            samples = samples / 2.0 ** (kind.bits - 1) - float(kind.min == 0)  # unsigned: silence is mid-range
        return samples, rate
    import soundfile

    if not isinstance(source, io.BytesIO) and not Path(source).is_file():
        raise MediaError(f"{name}: no such recording; check the path")
    try:
        return soundfile.read(source, dtype="float32")
    except soundfile.LibsndfileError as error:
        formats = ", ".join(sorted(soundfile.available_formats()))
        raise MediaError(f"{name}: not a readable recording ({error}); convert it to WAV or FLAC "
                         f"(formats that work: {formats})") from None
