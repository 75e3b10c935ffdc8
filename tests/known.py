"""Stand-ins whose answers are known, so that a score can be worked out by hand: a model, an ear and an eye."""

from dataclasses import dataclass, field

import numpy as np
import PIL.Image

from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.media import Waveform

TONE = Waveform(np.full(11025, 0.1, np.float32), 22050)  # half a second
RED, BLACK = PIL.Image.new("RGB", (64, 64), (255, 0, 0)), PIL.Image.new("RGB", (64, 64))


@dataclass
class Reply:
    text: str | None = None
    speech: Waveform | None = None
    image: PIL.Image.Image | None = None
    ids: list[int] = field(default_factory=lambda: [0] * 10)


class KnownModel:
    """Gives its answers in order, from the first again at every call, and remembers what it was asked."""

    def __init__(self, *answers: Reply) -> None:
        self.answers, self.calls = answers, []

    def generate_many(self, requests, to, task=None, decoding=None, seed=0, batch_size=16):
        self.calls.append({"requests": requests, "to": to, "task": task, "decoding": decoding, "seed": seed,
                           "batch_size": batch_size})
        return list(self.answers[:len(requests)])


class Ear:
    """Hears the sound's length in tenths of a second as words: half a second is "w w w w w"."""

    def transcribe(self, waves):
        return [" ".join(["w"] * round(10 * wave.seconds)) for wave in waves]


class Eye:
    """Likes pictures as much as they are red; a text scores 1."""

    def similarity(self, texts, images):
        return np.array([np.asarray(image)[..., 0].mean() / 255 for image in images])

    def image_similarity(self, a, b):
        return np.array([float(np.array_equal(np.asarray(x), np.asarray(y))) for x, y in zip(a, b)])


JUDGES = Judges(Ear(), Eye(), Eye())
