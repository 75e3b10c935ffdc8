"""Samples of every task: repeatable, prefixes of longer sets, and split by wording, combination and voice."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from omnidiff_lite.chat import AUDIO, IMAGE, TASKS
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world import dataset, text_qa, voices
from omnidiff_lite.world.dataset import VQA_SHARES, corpus, pictures, samples, utterances, voices_of
from omnidiff_lite.world.recipes import content
from omnidiff_lite.world.scenes import Scene
from omnidiff_lite.world.sentences import sample_sentence
from omnidiff_lite.world.splits import item_split, stream
from omnidiff_lite.world.voices import ANSWER_VOICE, parse_speech, speech

CONFIG = WorldConfig(image_size=64, max_objects=2, grid=2, train_voices=8)
ROOT = Path(__file__).parents[1]


def fingerprint():
    """Of a few samples of every task and split."""
    drawn = [asdict(s) for task in TASKS for split in ("train", "validation", "test", "judge")
             for s in samples(task, split, 3, 0, CONFIG)]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def test_same_samples_in_another_process_without_torch():
    code = ("import sys\nfrom tests.test_world_dataset import *\nprint(fingerprint())\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == fingerprint(), done.stderr


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_does_not_depend_on_how_many_are_drawn(task):
    ten = samples(task, "train", 10, 0, CONFIG)
    assert ten[:5] == samples(task, "train", 5, 0, CONFIG)
    assert ten != samples(task, "train", 10, 1, CONFIG)


@pytest.mark.parametrize("task", TASKS)
def test_the_format_of_every_task(task):
    for sample in samples(task, "test", 20, 0, CONFIG):
        assert sample.task == task and sample.messages[-1]["role"] == "assistant"
        text = "".join(message["content"] for message in sample.messages)
        assert (text.count(IMAGE), text.count(AUDIO)) == (len(sample.images), len(sample.audios))
        assert {"text", "answer"} <= set(sample.meta)
        written = sample.messages[-1]["content"].replace(IMAGE, "").replace(AUDIO, "").strip()
        assert written == ("" if task == "tts" else sample.meta["answer"])
        json.dumps(sample.meta)


@pytest.mark.parametrize("task", ["asr", "sqa", "svqa", "s2i"])
def test_users_speak_in_the_voices_of_their_split(task):
    for split in ("train", "test", "judge"):
        allowed = set(voices_of(split, CONFIG))
        heard = {parse_speech(sample.audios[0])[1] for sample in samples(task, split, 40, 0, CONFIG)}
        assert heard <= allowed and len(heard) > 4


def test_the_assistant_speaks_in_one_voice():
    for task in ("tts", "sqa", "svqa"):
        spoken = [parse_speech(sample.audios[-1]) for sample in samples(task, "train", 20, 0, CONFIG)]
        assert {voice for _, voice in spoken} == {ANSWER_VOICE}
        assert [text for text, _ in spoken] == [s.meta["answer"] for s in samples(task, "train", 20, 0, CONFIG)]


def test_pictures_of_a_split_hold_its_combinations():
    for split, part in (("train", "train"), ("validation", "validation"), ("test", "test"), ("judge", "train")):
        refs = [ref for task in ("captioning", "vqa", "t2i", "svqa", "s2i")
                for sample in samples(task, split, 20, 0, CONFIG) for ref in sample.images]
        assert {content(ref).split for ref in refs} == {part}


def test_held_out_wordings_of_facts_that_training_teaches():
    train, validation, test = ({q for found in text_qa.questions(split).values() for q in found}
                               for split in ("train", "validation", "test"))
    asked = [q.question for part in (train, validation, test) for q in part]
    assert len(asked) == len(set(asked)) > 1500 and len(test) > 300 and len(validation) > 80
    for held_out in validation | test:  # kind and answer occur in training, the wording of this fact does not
        assert any((q.kind, q.answer) == (held_out.kind, held_out.answer) for q in train)
    facts = sum(len(table.facts) for table in text_qa.TABLES.values())
    assert len(validation) + len(test) == facts, "one wording of every fact"


def test_the_tables_are_right_where_they_can_be_computed():
    value = {word: number for number, word in enumerate(text_qa.NUMBERS)}
    for kind, operate in (("sum", int.__add__), ("difference", int.__sub__)):
        assert all(operate(value[a], value[b]) == value[c] for a, b, c in text_qa.TABLES[kind].facts)
    assert dict(text_qa.TABLES["next day"].facts)["sunday"] == "monday"
    assert dict(text_qa.TABLES["previous month"].facts)["january"] == "december"
    assert {fact[2] for fact in text_qa.TABLES["larger"].facts if "a mouse" in fact[:2] and "an ant" in fact[:2]} == {
        "a mouse"}


def test_visual_questions_are_of_every_sort_and_yes_is_half():
    drawn = samples("vqa", "train", 600, 0, CONFIG)
    kinds = Counter(sample.meta["kind"] for sample in drawn)
    assert {"existence", "count", "position", "color", "shape", "relation", "ocr", "chart", "map", "web"} <= set(kinds)
    charts = sum(sample.images[0].startswith("chart:") for sample in drawn) / len(drawn)
    assert abs(charts - VQA_SHARES["chart"] - VQA_SHARES["sign"]) < 0.06
    answers = Counter(sample.meta["answer"].split(",")[0] for sample in drawn)
    assert 0.4 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.6


def test_spoken_questions_have_been_opened():
    drawn = samples("svqa", "train", 200, 0, CONFIG)
    assert not any(re.search(r"\n|letter|please answer", sample.meta["question"]) for sample in drawn)
    assert not any(re.fullmatch("[A-D]", sample.meta["answer"]) for sample in drawn)
    assert {"chart", "map", "web", "ocr"} <= {sample.meta["kind"] for sample in drawn}


def test_training_asks_about_several_objects_more_often():
    shares = {split: [len(s.meta["scene"]["objects"]) > 1 for s in samples("vqa", split, 600, 0, CONFIG)
                      if "scene" in s.meta] for split in ("train", "test")}
    several = {split: sum(found) / len(found) for split, found in shares.items()}
    assert several["train"] == pytest.approx(0.75, abs=0.08) and several["test"] == pytest.approx(0.5, abs=0.08)


def test_no_utterance_is_longer_than_the_limit(monkeypatch):
    short = WorldConfig(grid=2, max_objects=2, max_seconds=3.5)
    said = [u.ref for u in utterances("train", 40, 0, short)]
    said += [ref for task in ("tts", "svqa", "s2i") for s in samples(task, "test", 6, 0, short) for ref in s.audios]
    longest = max(speech(ref).seconds for ref in said)
    assert 2.5 < longest <= 3.5
    monkeypatch.setattr(dataset, "ATTEMPTS", 5)
    with pytest.raises(ValueError, match="max_seconds is 0.1, too short"):
        utterances("train", 1, 0, WorldConfig(max_seconds=0.1))


def test_utterances_of_every_set_of_voices():
    assert {parse_speech(u.ref)[1] for u in utterances("answer", 30, 0, CONFIG)} == {ANSWER_VOICE}
    assert {parse_speech(u.ref)[1] for u in utterances("test", 200, 0, CONFIG)} == set(voices.test_voices())
    for utterance in utterances("train", 50, 0, CONFIG):
        assert parse_speech(utterance.ref)[0] == utterance.text
        assert re.fullmatch(r"[a-z]+( [a-z]+)*", utterance.text)
    assert utterances("judge", 8, 0, CONFIG)[:3] == utterances("judge", 3, 0, CONFIG)


def test_no_sentence_that_is_tested_has_been_trained_on():
    """Not even the short ones that turn up often: "how many objects do you see"."""
    def said(split):
        return {sample_sentence(stream("said", split, i), CONFIG, split) for i in range(1000)}

    train, validation, test, judge = map(said, ("train", "validation", "test", "judge"))
    assert not train & validation and not train & test and not validation & test
    assert not judge & (validation | test) and judge & train
    for split, part in (("train", "train"), ("judge", "train"), ("validation", "validation"), ("test", "test")):
        texts = [s.meta["text"] for task in ("asr", "tts") for s in samples(task, split, 100, 0, CONFIG)]
        texts += [utterance.text for utterance in utterances(split, 100, 0, CONFIG)]
        assert {item_split(text) for text in texts} == {part}
    assert {item_split(utterance.text) for utterance in utterances("answer", 100, 0, CONFIG)} == {"train"}


def test_sentences_vary():
    drawn = [sample_sentence(stream("test", i), CONFIG, "train") for i in range(400)]
    assert len(set(drawn)) > 330 and len({len(text.split()) for text in drawn}) > 10


def test_half_of_what_is_spoken_in_training_is_one_to_three_words():
    """Words are learnt from these; sentences are what is tested."""
    def short(split, share=None):
        config = CONFIG if share is None else replace(CONFIG, short_share=share)
        drawn = [sample_sentence(stream("short", split, i), config, split) for i in range(400)]
        return sum(len(text.split()) <= 3 for text in drawn) / len(drawn)

    assert short("train") > short("train", 0.0) + 0.35
    assert short("train", 1.0) > 0.8, "but for those with words like twenty one"
    assert short("test") == short("test", 0.0) < 0.2


def test_pictures_with_and_without_charts():
    drawn = pictures("train", 60, 0, CONFIG, charts=0.5)
    assert drawn[:7] == pictures("train", 7, 0, CONFIG, charts=0.5)
    charts = [picture for picture in drawn if picture.ref.startswith("chart:")]
    assert 15 < len(charts) < 45 and all(picture.caption == "" for picture in charts)
    plain = pictures("train", 20, 0, CONFIG)
    assert all(picture.caption and Scene.from_dict(picture.scene) == content(picture.ref) for picture in plain)


def test_the_corpus_holds_what_every_task_writes():
    texts = corpus(90, 0, CONFIG)
    assert len(texts) == 90 and texts[:9] == corpus(9, 0, CONFIG)
    joined = "\n".join(texts)
    assert "Convert the speech to text." in joined and "Please response the input audio" in joined
    assert IMAGE not in joined and AUDIO not in joined


def test_unknown_names_are_one_clear_error():
    with pytest.raises(ValueError, match="no task 'song'.*text_qa"):
        samples("song", "train", 1, 0, CONFIG)
    for draw in (lambda: samples("vqa", "tset", 1, 0, CONFIG), lambda: utterances("tset", 1, 0, CONFIG),
                 lambda: pictures("tset", 1, 0, CONFIG)):
        with pytest.raises(ValueError, match="no split 'tset'.*train"):
            draw()
