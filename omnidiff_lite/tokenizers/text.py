"""Text: byte-level BPE, trained here or read from a released directory, extended in the released order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from omnidiff_lite.vocabulary import BASE_SPECIALS, DREAM_SPECIALS, OMNI_SPECIALS, Vocabulary, VocabularyError
from omnidiff_lite.weights import read_json


def train_text_tokenizer(corpus: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with exactly `size` text ids, or fewer if the corpus yields fewer merges.

    The 256 bytes are always included, so that any text can be written. Raises `ValueError` below that.
    """
    if size < 256:
        raise ValueError(f"text_tokenizer.size is {size}; a byte-level vocabulary needs at least 256")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([_special(name) for name in BASE_SPECIALS + DREAM_SPECIALS])
    tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
    tokenizer.bos_token, tokenizer.mask_token = "<|beginoftext|>", "<|mask|>"
    return tokenizer


def extend(tokenizer: PreTrainedTokenizerBase, speech_codes: int, image_codes: int) -> Vocabulary:
    """Add what the released system adds, in its order, and return the checked layout.

    Image, video and audio markers, then `<|audio_0|>`.., then `<|image_0|>`.. (tokenizer.py:28-50). A tokenizer that
    already has them is only checked. Raises `VocabularyError` if the ids do not form one block.
    """
    tokenizer.add_tokens([_special(name) for name in OMNI_SPECIALS])
    tokenizer.add_tokens([AddedToken(f"<|audio_{i}|>", normalized=False) for i in range(speech_codes)])
    tokenizer.add_tokens([AddedToken(f"<|image_{i}|>", normalized=False) for i in range(image_codes)])
    return vocabulary_of(tokenizer, speech_codes, image_codes)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, speech_codes: int, image_codes: int) -> Vocabulary:
    """The actual layout of an extended tokenizer. Raises `VocabularyError` if it does not fit."""
    known = tokenizer.get_vocab()
    names = BASE_SPECIALS + DREAM_SPECIALS + OMNI_SPECIALS
    missing = [name for name in names if name not in known]
    if missing:
        raise VocabularyError(f"the text tokenizer lacks {', '.join(missing)}: it is no Dream or Qwen2 tokenizer; "
                              "use the one beside the released checkpoint")
    vocabulary = Vocabulary(known["<|endoftext|>"], speech_codes, image_codes, {name: known[name] for name in names})
    _check(vocabulary, known)
    return vocabulary


def _check(vocabulary: Vocabulary, known: dict[str, int]) -> None:
    first = vocabulary.ids["<|begin_of_image|>"]
    expected = {name: first + i for i, name in enumerate(OMNI_SPECIALS)}
    for kind, span in (("audio", vocabulary.speech_range), ("image", vocabulary.image_range)):
        expected |= {f"<|{kind}_{code}|>": span.start + code for code in (0, len(span) - 1)}
    for name, token in expected.items():
        if known.get(name) != token:
            raise VocabularyError(f"{name} has id {known.get(name)} in the text tokenizer, {token} in the layout: "
                                  "its codebook sizes or its order of added tokens differ")


def load_text_tokenizer(directory: str | Path, speech_codes: int, image_codes: int
                        ) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    """A tokenizer from a directory (or hub id), extended and checked. Raises `VocabularyError` for any other kind."""
    tokenizer = read_tokenizer(directory)
    return tokenizer, extend(tokenizer, speech_codes, image_codes)


def read_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer as stored.

    Dream's own class ("DreamTokenizer", code beside the checkpoint) is Qwen2's byte-level BPE with other special
    tokens, which its tokenizer_config.json names: Qwen2's is loaded instead, so that no foreign code is run. Raises
    `VocabularyError` for files that are missing or incomplete.
    """
    config = Path(directory) / "tokenizer_config.json"
    try:
        named = read_json(config).get("tokenizer_class", "") if config.exists() else ""
        if named.startswith("Dream"):
            return Qwen2Tokenizer.from_pretrained(str(directory))
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # transformers raises ValueError, OSError; tokenizers plain Exception
        reason = str(error).strip().splitlines()[0]
        raise VocabularyError(f"{directory}: no text tokenizer can be read there ({reason}); expected tokenizer.json, "
                              "or vocab.json with merges.txt, and tokenizer_config.json") from error


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a piece of text, with nothing added around it; `<|im_end|>` in it stays text, not a marker."""
    pieces = re.split(r"(?<=<)(?=\|)", text)  # cutting "<|" in two keeps any added token from matching
    return [i for piece in pieces if piece for i in tokenizer.encode(piece, add_special_tokens=False)]


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """The text of ids, without special tokens, ends stripped; the caller must drop ids of other modalities."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
