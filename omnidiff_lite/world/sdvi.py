"""SDVI, speech-driven visual interaction: the paper's pipeline from written to spoken samples (section 3.3).

Spoken VQA: drop maths and programming, turn multiple choice into open questions, drop answers of more than 100 words,
speak the question in one of many voices and the answer in one fixed voice. Speech-to-image: speak the caption.

Rows have LLaVA-OneVision's format, from the data set itself or from the embedded world:

    {"id": "7", "image": "a.jpg", "data_source": "ai2d", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is shown?\\nA. a cell\\nB. a leaf"}, {"from": "gpt", "value": "B"}]}

The paper does not say by which rules or language model it filters and rewrites; the rules here are the kit's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.world.splits import stream
from omnidiff_lite.world.voices import ANSWER_VOICE, Voice, speech_ref

Row = dict[str, Any]
V = TypeVar("V")
Said = list[tuple[str, V]]  # texts, and the voice that says each
MAX_WORDS = 100

_MATHS_SOURCE = re.compile(r"math|geo(?!graph)|intergps|tabmwp|websight|code", re.I)
_MATHS_TEXT = re.compile(
    r"\\(?:frac|sqrt|angle|begin|times|cdot|pi)\b|\$[^$\n]*[\\^_=][^$\n]*\$|\d\s*[+*×÷=^]\s*\d"
    r"|\b(?:plus|minus|multiplied|divided by|sum of|equations?|theorem|polynomial|hypotenuse|perimeter|derivative"
    r"|integral|calculate|solve for|radius|degrees of angle)\b", re.I)
_CODE_TEXT = re.compile(
    r"```|</?(?:html|div|body|script)\b|#include\b|\bdef \w+\(|\bconsole\.log\b"
    r"|\b(?:python|javascript|java|html|sql|latex|source code|programming|pseudocode)\b"
    r"|\bwrite an? (?:program|function|script)\b", re.I)
# What a question says about the form of its answer; an open, spoken question says nothing of the kind.
_INSTRUCTION = re.compile(
    r"[^.?!\n]*\b(?:answer|respond|reply|select|choose)\b[^.?!\n]*"
    r"\b(?:letters?|single word|short phrase|phrase|yes or no|given choices|given options)\b[^.\n]*\.?", re.I)
_LABEL = re.compile(r"^\s*(?:question|choices|options)\s*:\s*", re.I | re.M)
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([A-H])[.):]\s+", re.M)
_REFERENCE = re.compile(
    r"\s+(?:of|from|among) the (?:following|options|choices)(?: options| choices)?(?: below)?", re.I)
_LETTER = re.compile(
    r"^(?i:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?"
    r"\(?(?P<letter>[A-H])(?:\)?[.:)]?$|[.:)]{1,2}\s+(?P<rest>.+)$)", re.S)


# --- reading a row ----------------------------------------------------------------------------------------------------

def question_of(row: Row) -> str:
    """The first human turn, without its `<image>`. Raises ValueError naming the row if it is not a conversation."""
    return _turn(row, 0, ("human", "user")).replace("<image>", "").strip()


def answer_of(row: Row) -> str:
    """The answer to the first question. Raises ValueError like `question_of`."""
    return _turn(row, 1, ("gpt", "assistant")).strip()


def _turn(row: Row, index: int, speakers: tuple[str, ...]) -> str:
    try:
        turn = row["conversations"][index]
        if turn["from"] in speakers:
            return str(turn["value"])
    except (KeyError, IndexError, TypeError):
        pass
    raise ValueError(f"row {row.get('id', '?')!r}: turn {index} of its conversations is not {{'from': {speakers[0]!r}, "
                     "'value': ...}; give rows in LLaVA-OneVision's format")


def _with_turn(row: Row, question: str, answer: str) -> Row:
    """The row with one question, which keeps its `<image>`, and one answer."""
    return {**row, "conversations": [{"from": "human", "value": f"<image>\n{question}"},
                                     {"from": "gpt", "value": answer}]}


def one_picture(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows about exactly one picture, cut to their first question: later ones may rely on earlier answers."""
    for row in rows:
        image = row.get("image")
        images = image if isinstance(image, list) else [image]
        if len(images) == 1 and images[0] is not None:
            yield _with_turn({**row, "image": images[0]}, question_of(row), answer_of(row))


# --- the steps of the paper -------------------------------------------------------------------------------------------

def drop_maths_and_code(rows: Iterable[Row]) -> Iterator[Row]:
    """Step 1: leave out mathematics and programming, by the name of the source and by the words of the row."""
    for row in rows:
        text = f"{question_of(row)}\n{answer_of(row)}"
        source = str(row.get("data_source", ""))
        if not (_MATHS_SOURCE.search(source) or _MATHS_TEXT.search(text) or _CODE_TEXT.search(text)):
            yield row


def open_question(row: Row) -> Row | None:
    """Step 2: a multiple-choice question as an open one, its letter replaced by the words that it stands for.

    Questions without choices only lose what they say about the form of the answer. None if the answer is neither
    a letter nor the words of one of the choices.
    """
    stem, choices = split_choices(question_of(row))
    if not choices:
        return _with_turn(row, stem, answer_of(row))
    answer = _in_words(answer_of(row), choices)
    return None if answer is None else _with_turn(row, _without_reference(stem), answer)


def drop_long_answers(rows: Iterable[Row], words: int = MAX_WORDS) -> Iterator[Row]:
    """Step 3: leave out answers of more than `words` words."""
    return (row for row in rows if len(answer_of(row).split()) <= words)


def synthesise(question: str, answer: str, voice: Voice, answer_voice: Voice = ANSWER_VOICE) -> list[str]:
    """Step 4: references to the spoken question and the spoken answer."""
    return [speech_ref(question, voice), speech_ref(answer, answer_voice)]


# --- multiple choice --------------------------------------------------------------------------------------------------

def split_choices(text: str) -> tuple[str, dict[str, str]]:
    """The question without its choices and instructions, and the choices by letter ({} if there are none).

    Choices are marked "A.", "A)", "(A)" or "A:", on lines of their own or in one line, in order from A.
    """
    text = _INSTRUCTION.sub("", text)
    marks = [mark for mark in _OPTION.finditer(text)]
    start = next((i for i, mark in enumerate(marks) if mark[1] == "A"), len(marks))
    run = [mark for i, mark in enumerate(marks[start:]) if mark[1] == chr(ord("A") + i)]
    if len(run) < 2:
        return _tidy(text), {}
    ends = [mark.start() for mark in run[1:]] + [_line_end(text, run[-1].end())]
    choices = {mark[1]: text[mark.end():end].strip(" \n;,.") for mark, end in zip(run, ends)}
    return _tidy(text[:run[0].start()] + "\n" + text[ends[-1]:]), choices


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _tidy(text: str) -> str:
    lines = (_LABEL.sub("", line).strip() for line in text.splitlines())
    return " ".join(line for line in lines if line)


def _in_words(answer: str, choices: dict[str, str]) -> str | None:
    words = {choice.casefold(): choice for choice in choices.values()}
    plain = answer.strip(" .").casefold()
    if plain in words:
        return words[plain]
    found = _LETTER.match(answer)
    if not found or found["letter"] not in choices:
        return None
    choice, rest = choices[found["letter"]], (found["rest"] or "").strip()
    return choice if rest.strip(" .").casefold() in ("", choice.casefold()) else f"{choice}. {rest}"


def _without_reference(stem: str) -> str:
    """"Which of the following animals ..." -> "Which animals ...": nothing follows any more."""
    return _REFERENCE.sub("", stem)


# --- samples ----------------------------------------------------------------------------------------------------------

def build_spoken_vqa(rows: Iterable[Row], voices: Sequence[Voice], answer_voice: Voice = ANSWER_VOICE, seed: int = 0,
                     max_words: int = MAX_WORDS) -> list[Sample]:
    """All four steps: samples of (spoken question, picture, text answer, spoken answer), task "svqa".

    The voice of a question depends on the seed and the question, not on the other rows.
    """
    return [_recorded(*script) for script in vqa_scripts(rows, partial(choose_voice, voices, seed), answer_voice,
                                                         max_words)]


def build_speech_to_image(pairs: Iterable[tuple[str, str]], voices: Sequence[Voice], seed: int = 0) -> list[Sample]:
    """Samples of (spoken caption, picture), task "s2i", from pairs of a caption and a picture reference."""
    return [_recorded(*image_script(caption, image, partial(choose_voice, voices, seed))) for caption, image in pairs]


def _recorded(sample: Sample, said: Said[Voice]) -> Sample:
    sample.audios = [speech_ref(text, voice) for text, voice in said]
    return sample


def vqa_scripts(rows: Iterable[Row], voice_of: Callable[[str, str], V], answer_voice: V, max_words: int = MAX_WORDS
                ) -> Iterator[tuple[Sample, Said[V]]]:
    """Steps 1 to 3: samples without recordings, and what the recordings shall say. `voice_of`: who asks, by picture and
    question; a voice is whatever step 4 accepts as one."""
    kept = (open_question(row) for row in drop_maths_and_code(one_picture(rows)))
    for row in drop_long_answers((row for row in kept if row is not None), max_words):
        question, answer = question_of(row), answer_of(row)
        yield (Sample(build_messages("svqa", answer=answer), [row["image"]], [], "svqa",
                      {"question": question, "answer": answer, "text": question}),
               [(question, voice_of(row["image"], question)), (answer, answer_voice)])


def image_script(caption: str, image: str, voice_of: Callable[[str, str], V]) -> tuple[Sample, Said[V]]:
    """The same for a picture and its caption."""
    return (Sample(build_messages("s2i", answer=""), [image], [], "s2i", {"caption": caption, "text": caption}),
            [(caption, voice_of(image, caption))])


def choose_voice(voices: Sequence[V], *key: object) -> V:
    """One of `voices`, chosen by the seed and the sample in `key`. Raises ValueError if there is none."""
    if not voices:
        raise ValueError("no voice to speak the questions; give at least one")
    return voices[int(stream("sdvi voice", *key).integers(len(voices)))]
