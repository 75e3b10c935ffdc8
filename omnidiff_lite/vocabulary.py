"""One id space: text | special | speech | image, in the released order, at any size (section 3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

# The order in which the released system adds them (tokenizer.py:28-50; finetune_dream_v4_51_3.py:293-296).
BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_EXTRAS = 19  # ids 151646..151664 of Qwen2.5: tool, fim and vision tags that the paper does not use
DREAM_SPECIALS = ("<|beginoftext|>", "<|mask|>")
OMNI_SPECIALS = (
    "<|begin_of_image|>", "<|end_of_image|>", "<|context_of_image|>",
    "<|begin_of_video|>", "<|end_of_video|>", "<|context_of_video|>",
    "<|begin_of_patch|>", "<|end_of_patch|>", "<|context_of_patch|>",
    "<|begin_of_quad|>", "<|end_of_quad|>", "<|begin_of_ref|>", "<|end_of_ref|>", "<|begin_of_box|>", "<|end_of_box|>",
    "<|image|>", "<|video|>",
    "<|begin_of_audio|>", "<|end_of_audio|>", "<|context_of_audio|>", "<|audio|>",
)
RELEASED_TEXT, RELEASED_SPEECH, RELEASED_IMAGE = 151643, 16384, 8192


class VocabularyError(ValueError):
    """An id or a tokenizer that does not fit the layout."""


@dataclass(frozen=True)
class Vocabulary:
    """Which id means what. `text`: ids below the first special; codes follow the last special."""

    text: int
    speech_codes: int
    image_codes: int
    ids: dict[str, int] = field(repr=False)

    @classmethod
    def small(cls, text: int, speech_codes: int, image_codes: int) -> Vocabulary:
        """The released order without Qwen's 19 unused tags."""
        names = BASE_SPECIALS + DREAM_SPECIALS + OMNI_SPECIALS
        return cls(text, speech_codes, image_codes, {name: text + i for i, name in enumerate(names)})

    @classmethod
    def released(cls) -> Vocabulary:
        """The 7B layout: `<|mask|>` 151666, `<|begin_of_audio|>` 151684, 176,264 ids in all."""
        ids = {name: RELEASED_TEXT + i for i, name in enumerate(BASE_SPECIALS)}
        after = RELEASED_TEXT + len(BASE_SPECIALS) + QWEN_EXTRAS
        ids |= {name: after + i for i, name in enumerate(DREAM_SPECIALS + OMNI_SPECIALS)}
        return cls(RELEASED_TEXT, RELEASED_SPEECH, RELEASED_IMAGE, ids)

    @property
    def first_speech(self) -> int:
        return max(self.ids.values()) + 1

    @property
    def speech_range(self) -> range:
        return range(self.first_speech, self.first_speech + self.speech_codes)

    @property
    def image_range(self) -> range:
        return range(self.speech_range.stop, self.speech_range.stop + self.image_codes)

    @property
    def text_range(self) -> range:
        return range(self.text)

    @property
    def size(self) -> int:
        """Number of rows in the embedding and in the output head."""
        return self.image_range.stop

    @property
    def pad(self) -> int:
        return self.ids["<|endoftext|>"]

    @property
    def im_start(self) -> int:
        return self.ids["<|im_start|>"]

    @property
    def im_end(self) -> int:
        return self.ids["<|im_end|>"]

    @property
    def mask(self) -> int:
        return self.ids["<|mask|>"]

    @property
    def begin_of_image(self) -> int:
        return self.ids["<|begin_of_image|>"]

    @property
    def end_of_image(self) -> int:
        return self.ids["<|end_of_image|>"]

    @property
    def begin_of_audio(self) -> int:
        return self.ids["<|begin_of_audio|>"]

    @property
    def end_of_audio(self) -> int:
        return self.ids["<|end_of_audio|>"]

    @property
    def context_of_audio(self) -> int:
        return self.ids["<|context_of_audio|>"]

    def speech_ids(self, codes: Iterable[int]) -> list[int]:
        """Codes 0..speech_codes-1 -> ids. Raises `VocabularyError` outside the codebook."""
        return _shift(codes, self.speech_range, "speech")

    def image_ids(self, codes: Iterable[int]) -> list[int]:
        """Codes 0..image_codes-1, row-major -> ids. Raises `VocabularyError` outside the codebook."""
        return _shift(codes, self.image_range, "image")

    def codes_of_speech(self, ids: Iterable[int]) -> list[int]:
        """The speech codes among `ids`, in order; other ids are skipped, as in the release."""
        return [int(i) - self.speech_range.start for i in ids if int(i) in self.speech_range]

    def codes_of_image(self, ids: Iterable[int]) -> list[int]:
        """The image codes among `ids`, in order; other ids are skipped, as in the release."""
        return [int(i) - self.image_range.start for i in ids if int(i) in self.image_range]

    def name(self, token: int) -> str:
        """A readable name for an id: its special name, `audio_7`, `image_3` or `text_42`."""
        token = int(token)
        if token in self.speech_range:
            return f"audio_{token - self.speech_range.start}"
        if token in self.image_range:
            return f"image_{token - self.image_range.start}"
        special = {i: n for n, i in self.ids.items()}.get(token)
        return special or f"text_{token}"

    def modality(self, token: int) -> str:
        """"text", "special", "speech" or "image". Raises `VocabularyError` beyond the vocabulary."""
        for name, span in (("text", self.text_range), ("speech", self.speech_range), ("image", self.image_range)):
            if int(token) in span:
                return name
        if 0 <= int(token) < self.size:
            return "special"
        raise VocabularyError(f"id {int(token)} is outside the vocabulary of {self.size}")


def _shift(codes: Iterable[int], span: range, what: str) -> list[int]:
    ids = [int(c) + span.start for c in codes]
    wrong = [i - span.start for i in ids if i not in span]
    if wrong:
        raise VocabularyError(f"{what} code {wrong[0]} is outside the codebook 0..{len(span) - 1}")
    return ids
