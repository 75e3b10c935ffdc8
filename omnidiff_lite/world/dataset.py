"""Samples of every task of the paper, drawn from the embedded world.

Sample i of a (task, split, seed) is drawn from a generator of its own, so it depends neither on how many samples are
requested nor on the process. Sentences to read or to transcribe (asr, tts, utterances) belong to one split each. Users
speak in the voices of the split (training voices, held-out voices for validation and test, a third set for the
judges); the assistant always answers in one voice, as in the paper's SDVI.

Every sample's meta has "text" (what the user writes or says, without the task's prompt) and "answer" (what should be
written or, in speech synthesis, said), and where they apply "question", "kind", "choices", "caption", and "scene" or
"chart" (the picture's content).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnidiff_lite.chat import AUDIO, IMAGE, Sample, build_messages
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world.captions import caption
from omnidiff_lite.world.charts import Chart, ask_sign, chart_question, sample_chart
from omnidiff_lite.world.questions import Question, ask, ask_choices, choose
from omnidiff_lite.world.recipes import chart_ref, scene_ref
from omnidiff_lite.world.scenes import Scene, sample_scene
from omnidiff_lite.world.sdvi import Row, build_speech_to_image, build_spoken_vqa, synthesise
from omnidiff_lite.world.sentences import sample_sentence
from omnidiff_lite.world.splits import stream, training_part
from omnidiff_lite.world.text_qa import sample_text_question
from omnidiff_lite.world.voices import (ANSWER_VOICE, Voice, judge_voices, parse_speech, speak, speech_ref, test_voices,
                                        train_voices)

# What visual questions are about: anything in a scene; what is there, as POPE and MME ask; four choices by letter;
# charts, maps and pages, as SEED-Bench-2-Plus asks; words and numbers on signs.
VQA_SHARES = {"scene": 0.4, "existence": 0.25, "choices": 0.1, "chart": 0.15, "sign": 0.1}
# Share of the training scenes asked about that are sure to hold several objects: with a lone object the question need
# not be read.
SEVERAL = 0.5
ATTEMPTS = 200  # draws until a text is short enough to speak

# An upper bound on the seconds that a text takes at 175 words a minute (above all of 2,500 utterances in 87 voices):
# most texts need not be spoken to know that they are short enough.
SECONDS_PER_LETTER, SECONDS_AT_ENDS = 0.065, 0.5


@dataclass(frozen=True)
class Utterance:
    """A sentence and the recipe for its sound."""

    text: str
    ref: str


@dataclass(frozen=True)
class Picture:
    """A caption, the recipe for its picture, and what the picture holds. Charts have no caption ("")."""

    caption: str
    ref: str
    scene: dict[str, Any]


def samples(task: str, split: str, n: int, seed: int, config: WorldConfig) -> list[Sample]:
    """`n` samples of a task; `split` is train, validation, test or judge.

    Raises ValueError for an unknown task or split, and where `config.max_seconds` is too short for any sentence.
    """
    if task not in _DRAW:
        raise ValueError(f"no task {task!r}: choose one of {', '.join(_DRAW)}")
    voices = voices_of(split, config)
    return [_draw(task, stream("sample", task, split, seed, i), config, split, voices) for i in range(n)]


def utterances(split: str, n: int, seed: int, config: WorldConfig) -> list[Utterance]:
    """`n` sentences of a split, each in one of its voices. The split "answer": training sentences in the answer voice;
    judges hear training sentences too."""
    voices, part = voices_of(split, config), "train" if split == "answer" else split
    drawn = (_draw("asr", stream("utterance", split, seed, i), config, part, voices) for i in range(n))
    return [Utterance(sample.meta["text"], sample.audios[0]) for sample in drawn]


def pictures(split: str, n: int, seed: int, config: WorldConfig, charts: float = 0.0) -> list[Picture]:
    """`n` scenes with their captions, a share `charts` of them replaced by charts, maps, pages and signs."""
    return [_picture(stream("picture", split, seed, i), config, split, charts) for i in range(n)]


def corpus(n: int, seed: int, config: WorldConfig) -> list[str]:
    """`n` texts to train the text tokenizer on: the messages of training samples of all tasks in turn."""
    voices, tasks = voices_of("train", config), tuple(_DRAW)
    drawn = (_draw(tasks[i % len(tasks)], stream("corpus", seed, i), config, "train", voices) for i in range(n))
    return ["\n".join(f"{m['role']}\n{m['content']}" for m in sample.messages).replace(IMAGE, "").replace(AUDIO, "")
            for sample in drawn]


def voices_of(split: str, config: WorldConfig) -> list[Voice]:
    """The voices in which users of a split speak; "answer" is the assistant's. Raises ValueError for another split."""
    if split == "answer":
        return [ANSWER_VOICE]
    if training_part(split) != "train":
        return test_voices()
    return judge_voices() if split == "judge" else train_voices(config.train_voices)


# --- drawing ----------------------------------------------------------------------------------------------------------

Generator = np.random.Generator
Voices = list[Voice]


def _draw(task: str, rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    """One sample of a task, redrawn if SDVI drops it or if its speech would be too long."""
    for _ in range(ATTEMPTS):
        sample = _DRAW[task](rng, config, split, voices)
        if sample is not None and all(_fits(ref, config.max_seconds) for ref in sample.audios):
            return sample
    raise ValueError(f"world.max_seconds is {config.max_seconds:g}, too short for the {task!r} task; raise it")


def _fits(ref: str, limit: float) -> bool:
    """Whether a recipe's sound lasts at most `limit` seconds."""
    text, voice = parse_speech(ref)
    bound = SECONDS_AT_ENDS + SECONDS_PER_LETTER * len(text) * 175 / voice.rate
    return bound <= limit or speak(text, voice).seconds <= limit


def _sample(task: str, rng: Generator, split: str, text: str, answer: str, images: Sequence[str] = (),
            audios: Sequence[str] = (), **meta: Any) -> Sample:
    """One row; training sees every wording of a prompt, the other splits only the first."""
    messages = build_messages(task, text, answer, rng if split == "train" else None)
    return Sample(messages, list(images), list(audios), task, {"text": text, "answer": answer, **meta})


def _plain(item: Scene | Chart) -> dict[str, Any]:
    """A picture's content as it comes back from JSON: with lists for tuples."""
    return json.loads(item.to_json())


def _text_qa(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    item = sample_text_question(rng, split)
    return _sample("text_qa", rng, split, item.question, item.answer, question=item.question, kind=item.kind)


def _captioning(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    scene = sample_scene(rng, config, split)
    text = caption(scene, rng)
    return _sample("captioning", rng, split, "", text, (scene_ref(scene),), caption=text, scene=_plain(scene))


def _t2i(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    scene = sample_scene(rng, config, split)
    text = caption(scene, rng)
    return _sample("t2i", rng, split, text, "", (scene_ref(scene),), caption=text, scene=_plain(scene))


def _vqa(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    question, ref, content = _visual_question(rng, config, split)
    return _sample("vqa", rng, split, question.prompt, question.reply, (ref,), question=question.text,
                   kind=question.kind, choices=list(question.choices), **content)


def _visual_question(rng: Generator, config: WorldConfig, split: str, letters: bool = True
                     ) -> tuple[Question, str, dict[str, Any]]:
    """A question, the recipe for its picture, and the picture's content as meta. Without `letters`, questions about
    scenes are open: a choice says "red" where an open answer says "the circle is red"."""
    share = str(rng.choice(tuple(VQA_SHARES), p=tuple(VQA_SHARES.values())))
    if share in ("chart", "sign"):
        chart = sample_chart(rng, config, "sign" if share == "sign" else choose(rng, ("chart", "map", "web")), split)
        question = ask_sign(chart, rng) if share == "sign" else chart_question(chart, rng)
        return question, chart_ref(chart), {"chart": _plain(chart)}
    several = split == "train" and config.max_objects > 1 and rng.random() < SEVERAL
    scene = sample_scene(rng, config, split, int(rng.integers(2, config.max_objects + 1)) if several else None)
    question = (ask_choices(scene, rng) if share == "choices" and letters
                else ask(scene, rng, "existence" if share == "existence" else None))
    return question, scene_ref(scene), {"scene": _plain(scene)}


def _asr(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    text = sample_sentence(rng, config, split)
    return _sample("asr", rng, split, text, text, audios=(speech_ref(text, choose(rng, voices)),))


def _tts(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    text = sample_sentence(rng, config, split)
    return _sample("tts", rng, split, text, text, audios=(speech_ref(text, ANSWER_VOICE),))


def _sqa(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    item = sample_text_question(rng, split)
    return _sample("sqa", rng, split, item.question, item.answer, question=item.question, kind=item.kind,
                   audios=synthesise(item.question, item.answer, choose(rng, voices)))


def _svqa(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample | None:
    """A visual question passed through the SDVI pipeline, which may drop it."""
    question, ref, content = _visual_question(rng, config, split, letters=False)
    for sample in build_spoken_vqa([vqa_row(question, ref)], voices, seed=int(rng.integers(2**32))):
        sample.meta |= {"kind": question.kind, **content}
        return sample
    return None


def _s2i(rng: Generator, config: WorldConfig, split: str, voices: Voices) -> Sample:
    scene = sample_scene(rng, config, split)
    pair = caption(scene, rng), scene_ref(scene)
    sample, = build_speech_to_image([pair], voices, seed=int(rng.integers(2**32)))
    sample.meta |= {"answer": "", "scene": _plain(scene)}
    return sample


_DRAW: dict[str, Callable[[Generator, WorldConfig, str, Voices], Sample | None]] = {
    "text_qa": _text_qa, "captioning": _captioning, "vqa": _vqa, "t2i": _t2i, "asr": _asr, "tts": _tts, "sqa": _sqa,
    "svqa": _svqa, "s2i": _s2i}


def vqa_row(question: Question, ref: str) -> Row:
    """A question of the world as a row in LLaVA-OneVision's format."""
    return {"id": ref, "image": ref, "data_source": "embedded world", "conversations": [
        {"from": "human", "value": f"<image>\n{question.prompt}"}, {"from": "gpt", "value": question.reply}]}


def _picture(rng: Generator, config: WorldConfig, split: str, charts: float) -> Picture:
    if rng.random() < charts:
        chart = sample_chart(rng, config, split=split)
        return Picture("", chart_ref(chart), _plain(chart))
    scene = sample_scene(rng, config, split)
    return Picture(caption(scene, rng), scene_ref(scene), _plain(scene))
