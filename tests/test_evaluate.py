"""Every evaluation with a model whose answers are known, so that each score can be worked out by hand."""

import numpy as np
import pytest
from known import JUDGES, RED, TONE, Ear, KnownModel, Reply

from omnidiff_lite.chat import ChatError, Sample, build_messages
from omnidiff_lite.config import load_preset
from omnidiff_lite.evaluation.alignment import evaluate_pictures, evaluate_s2i, evaluate_t2i, mismatched
from omnidiff_lite.evaluation.answers import evaluate_answers, right
from omnidiff_lite.evaluation.requests import (CHUNK, Settings, ask, media_refs, reference_images,
                                               reference_speech, requests_of, user_text)
from omnidiff_lite.evaluation.sampling import sweep_images, sweep_speech
from omnidiff_lite.evaluation.speech import evaluate_asr, evaluate_tts, skipping_records
from omnidiff_lite.evaluation.vision import (evaluate_captioning, evaluate_mme, evaluate_pope, evaluate_seed_bench,
                                             spoken_questions)
from omnidiff_lite.media import Image, Speech, Text
from omnidiff_lite.world import benchmarks
from omnidiff_lite.world.captions import plain
from omnidiff_lite.world.recipes import scene_ref
from omnidiff_lite.world.scenes import Scene, render, sample_scene
from omnidiff_lite.world.splits import stream
from omnidiff_lite.world.voices import parse_speech, speech_ref
from omnidiff_lite.world.voices import test_voices as voices_of_tests

WORLD = load_preset("smoke").world
QUICK = Settings(bootstrap=50, image_sizes=(64, 64))


def cells(records) -> dict[str, float]:
    return {record.column: record.value for record in records}


def speech(text: str) -> str:
    return speech_ref(text, voices_of_tests()[0])


def scenes(n: int) -> list[Scene]:
    return [sample_scene(stream("evaluate", i), WORLD, "test") for i in range(n)]


def drawing(task: str, scene: Scene) -> Sample:
    """A text- or speech-to-image sample."""
    caption = plain(scene)
    audios = [speech(caption)] if task == "s2i" else []
    return Sample(build_messages(task, caption, ""), [scene_ref(scene)], audios, task,
                  {"caption": caption, "scene": scene.to_dict()})


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, text", [
    ("tts", "say this"), ("t2i", "a red dog\non grass"), ("vqa", "what?\nA. one\nB. two"), ("text_qa", "why?"),
    ("asr", ""), ("captioning", ""), ("sqa", ""), ("svqa", ""), ("s2i", "")])
def test_the_users_text_comes_back_without_the_prompt(task, text):
    rng = np.random.default_rng(3)  # paraphrased prompts as well
    for messages in (build_messages(task, text, "answer"), build_messages(task, text, "answer", rng)):
        assert user_text(Sample(messages, task=task)) == text


def test_references_are_split_between_question_and_answer():
    sample = Sample(build_messages("svqa", None, "two"), ["i"], ["question", "answer"], "svqa")
    assert media_refs(sample, "user") == (["i"], ["question"])
    assert media_refs(sample, "assistant") == ([], ["answer"])


def test_a_request_holds_the_users_media_only():
    scene = scenes(1)[0]
    audios = [speech("how many"), speech("two")]
    sample = Sample(build_messages("svqa", None, "two"), [scene_ref(scene)], audios, "svqa")
    (parts,) = requests_of([sample], size=32)
    assert [type(part) for part in parts] == [Speech, Image] and parts[1].load().size == (32, 32)
    assert reference_speech([sample])[0].seconds != parts[0].load().seconds
    assert requests_of([Sample(build_messages("tts", "hi there"), task="tts")]) == [[Text("hi there")]]
    with pytest.raises(ValueError, match="needs one picture, this one has 0"):
        reference_images([sample])
    with pytest.raises(ChatError, match="2 <.audio.> in its messages but 1 references"):
        requests_of([Sample(sample.messages, sample.images, sample.audios[:1], "svqa")])


def test_media_on_disk_are_found_from_the_root(tmp_path):
    RED.save(tmp_path / "red.png")
    TONE.save(tmp_path / "tone.wav")
    sample = Sample(build_messages("svqa", None, "x"), ["red.png"], ["tone.wav", "tone.wav"], "svqa")
    (parts,) = requests_of([sample], tmp_path)
    assert parts[0].load().rate == 22050 and parts[1].load().getpixel((0, 0)) == (255, 0, 0)


def test_settings_reach_the_model_and_large_sets_go_in_chunks():
    model = KnownModel(*[Reply("a")] * CHUNK)
    samples = [Sample(build_messages("text_qa", "q", "a"), task="text_qa", meta={"answer": "a"})] * (CHUNK + 2)
    evaluate_answers(model, samples, Settings(seed=7, batch=3, decoding={"steps": 2}, bootstrap=10), task="text_qa")
    assert [len(call["requests"]) for call in model.calls] == [CHUNK, 2]
    assert model.calls[1] | {"requests": 0} == {"requests": 0, "to": ("text",), "task": "text_qa",
                                                "decoding": {"steps": 2}, "seed": 7 + CHUNK, "batch_size": 3}


def test_a_model_that_skips_is_an_error():
    samples = [Sample(build_messages("text_qa", "q", "a"), task="text_qa", meta={"answer": "a"})] * 2
    with pytest.raises(RuntimeError, match="1 answers to 2 requests"):
        evaluate_answers(KnownModel(Reply("a")), samples, task="text_qa")


def test_a_sample_without_its_reference_is_named():
    sample = Sample(build_messages("text_qa", "q", "a"), task="text_qa")
    with pytest.raises(ValueError, match="a text_qa test sample needs meta 'answer'; it has none"):
        evaluate_answers(KnownModel(Reply("a")), [sample], task="text_qa")


# --- table 1 ---------------------------------------------------------------------------------------------------------


def test_recognition():
    samples = [Sample(build_messages("asr", None, text), [], [speech(text)], "asr", {"answer": text})
               for text in ("a red circle", "a blue square", "two words")]
    model = KnownModel(Reply("a red circle"), Reply("A blue<|im_end|>x"), Reply(""))
    records, items = evaluate_asr(model, samples, QUICK)
    assert cells(records)["asr_wer"] == pytest.approx(100 * 3 / 8)  # one deletion, then two from an empty answer
    assert items["errors"].tolist() == [0, 1, 2] and records[0].n == 3 and records[0].row == "diffusion"


def test_synthesis_counts_silence_as_errors_unless_told_to_skip():
    samples = [Sample(build_messages("tts", text), [], [], "tts", {"text": text}) for text in ("w w w w", "w w w w w")]
    model = KnownModel(Reply(speech=TONE), Reply())
    records, items = evaluate_tts(model, Ear(), samples, QUICK)
    assert cells(records) == {"tts_wer": pytest.approx(100 * 6 / 9), "tts_silent": 50}  # one inserted, five deleted
    assert items["seconds"].tolist() == [0.5, 0]
    skipped, _ = skipping_records(items, QUICK)
    assert skipped.value == 25 and skipped.n == 1 and skipped.row == "diffusion, silent answers skipped"
    silent, = skipping_records(items.assign(silent=True), QUICK)
    assert silent.value is None and silent.reason == "every answer was silent"


# --- table 2 ---------------------------------------------------------------------------------------------------------


def test_pope_on_the_world():
    samples = benchmarks.pope("random", 8, 0, WORLD)
    truth = [sample.meta["answer"] for sample in samples]
    records, items = evaluate_pope(KnownModel(*[Reply(t) for t in truth]), samples, QUICK)
    assert cells(records) == {"pope_accuracy": 100, "pope_precision": 100, "pope_recall": 100, "pope_f1": 100,
                              "pope_yes": 50}
    assert items["right"].all() and items["picture"].nunique() < 8
    always, _ = evaluate_pope(KnownModel(*[Reply("yes")] * 8), samples, QUICK, name="pope_random")
    assert cells(always)["pope_random_accuracy"] == 50 and cells(always)["pope_random_recall"] == 100
    empty, _ = evaluate_pope(KnownModel(*[Reply()] * 8), samples, QUICK)
    assert set(cells(empty).values()) == {0}


def test_mme_on_the_world():
    samples = benchmarks.mme("count", 3, 0, WORLD) + benchmarks.mme("color", 3, 0, WORLD)
    records, _ = evaluate_mme(KnownModel(*[Reply("yes")] * 12), samples, QUICK)
    assert cells(records) == {"mme_count": 50, "mme_color": 50, "mme_p": 100}  # half of the questions, no picture


def test_spoken_questions_say_what_is_asked_beside_the_picture():
    samples = benchmarks.mme("count", 1, 0, WORLD)
    aloud, model = spoken_questions(samples, voices_of_tests()), KnownModel(Reply("no", TONE), Reply("no"))
    ask(model, aloud, QUICK, to=("text", "speech"), task="svqa")
    assert [type(part) for part in model.calls[0]["requests"][0]] == [Speech, Image]
    assert parse_speech(aloud[0].audios[0])[0] == samples[0].meta["question"]


def test_seed_bench_on_the_world():
    samples = benchmarks.seed_bench(4, 0, WORLD)
    letters = [sample.meta["answer"] for sample in samples]
    replies = [Reply(letters[0]), Reply(f"({letters[1]})"), Reply(""), Reply("no idea")]
    records, items = evaluate_seed_bench(KnownModel(*replies), samples, QUICK)
    assert cells(records) == {"seed2plus": 50} and items["right"].tolist() == [True, True, False, False]


def test_captions_are_read_as_well_as_matched():
    pictured = scenes(4)
    samples = [Sample(build_messages("captioning", None, plain(s)), [scene_ref(s)], [], "captioning",
                      {"answer": plain(s), "scene": s.to_dict()}) for s in pictured]
    truth = [Reply(plain(scene)) for scene in pictured]
    right, _ = evaluate_captioning(KnownModel(*truth), samples, QUICK)
    assert cells(right)["caption_bleu4"] == pytest.approx(100) and cells(right)["caption_all_right"] == 100
    half, items = evaluate_captioning(KnownModel(*truth[:2], Reply(""), Reply(None)), samples, QUICK)
    assert cells(half)["caption_all_right"] == cells(half)["caption_objects_right"] == 50
    assert items["cider"].tolist()[2:] == [0, 0] and cells(half)["caption_cider"] < cells(right)["caption_cider"]


def test_open_questions_and_whether_the_voice_agrees_with_the_text():
    samples = [Sample(build_messages("sqa", None, "w w w w w"), [], [speech("hello"), speech("w")], "sqa",
                      {"answer": "w w w w w"})] * 3
    model = KnownModel(Reply("W w w w w.", TONE), Reply("w w", TONE), Reply("w w w w w"))
    records, items = evaluate_answers(model, samples, QUICK, task="sqa", judge=Ear())
    values = cells(records)
    assert values["sqa_right"] == pytest.approx(200 / 3) and values["sqa_spoken_right"] == pytest.approx(200 / 3)
    assert values["sqa_voice_wer"] == pytest.approx(100 * (0 + 3 + 5) / 12)
    nothing, _ = evaluate_answers(KnownModel(Reply(), Reply(), Reply()), samples, QUICK, task="sqa", judge=Ear())
    assert nothing[-1].reason == "no answer had a text" and cells(nothing)["sqa_right"] == 0


@pytest.mark.parametrize("said, answer, expected", [
    ("No.", "no", True), ("no, a red star", "no, a blue star", True), ("yes, a blue star", "no, a blue star", False),
    ("a blue star", "no, a blue star", False), ("yes no red", "yes no red", True), ("yes no", "yes no red", False),
    ("Top left.", "top left", True), ("top", "top left", False), ("", "yes", False)])
def test_of_a_yes_or_a_no_the_first_word_decides(said, answer, expected):
    assert right(said, answer) == expected


@pytest.mark.parametrize("evaluate, task, prefix", [(evaluate_t2i, "t2i", ""), (evaluate_s2i, "s2i", "s2i_")])
def test_pictures_missing_ones_count_as_zero(evaluate, task, prefix):
    pictured = scenes(4)
    samples = [drawing(task, scene) for scene in pictured]
    replies = [Reply(image=render(scene, 64)) for scene in pictured[:2]] + [Reply(image=RED), Reply()]
    records, items = evaluate(KnownModel(*replies), JUDGES, samples, QUICK, world=WORLD)
    values = cells(records)
    assert values[prefix + "clip_i"] == 0.5 and values[prefix + "image_missing"] == 25
    assert values[prefix + "image_all_right"] == values[prefix + "image_attributes_right"] == 50
    assert items["clip_t"].iloc[2] == 1 and items["clip_t"].iloc[3] == 0


def test_ceiling_and_floor_of_the_alignment_judge():
    samples = [drawing("t2i", scene) for scene in scenes(3)]
    real = reference_images(samples, QUICK)
    ceiling, _ = evaluate_pictures(JUDGES, real, samples, Settings(row="real data (ceiling)", image_sizes=(64, 64)),
                                   world=WORLD)
    assert cells(ceiling)["clip_i"] == 1 and cells(ceiling)["image_all_right"] == 100
    assert {record.row for record in ceiling} == {"real data (ceiling)"}
    floor, _ = evaluate_pictures(JUDGES, mismatched(real), samples, QUICK, world=WORLD)
    assert cells(floor)["clip_i"] == 0 and cells(floor)["image_all_right"] == 0


# --- table 3 ---------------------------------------------------------------------------------------------------------


def test_the_image_rows_of_table_3():
    samples = [drawing("t2i", scene) for scene in scenes(3)]
    model = KnownModel(*[Reply(image=RED)] * 3)
    records, items = sweep_images(model, JUDGES, samples, QUICK, steps=(8, 2), timed=2)
    rows = [f"diffusion: text-to-image, {n} steps" for n in ("8", "2", "8 steps minus 2")]
    assert {record.row for record in records} == set(rows)
    lost = {record.column: record.value for record in records if record.row == rows[2]}
    assert lost == {"clip_t": 0, "clip_i": 0, "image_missing": 0}  # the same picture at any number of steps
    assert {record.column for record in records} == {"clip_t", "clip_i", "image_missing", "latency_s", "tokens_per_s"}
    assert {call["decoding"]["steps"] for call in model.calls} == {8, 2} and len(items) == 6
    assert [len(call["requests"]) for call in model.calls[:4]] == [1, 1, 1, 3]  # warm-up, two timed, then all
    latency = next(record for record in records if record.column == "latency_s")
    assert latency.n == 2 and 0 < latency.low <= latency.value <= latency.high


def test_the_speech_rows_of_table_3():
    samples = [Sample(build_messages("tts", "w w w w w"), [], [], "tts", {"text": "w w w w w"})] * 2
    model = KnownModel(Reply(speech=TONE), Reply(speech=TONE))
    records, _ = sweep_speech(model, Ear(), samples, QUICK, ratios=(0.5,), timed=2)
    values = cells(records)
    assert {record.row for record in records} == {"diffusion: text-to-speech, 0.5L steps"} and values["tts_wer"] == 0
    assert values["rtf"] == pytest.approx(values["latency_s"] / 0.5, rel=0.9) and values["tokens_per_s"] > 0
    silent, _ = sweep_speech(KnownModel(Reply(), Reply()), Ear(), samples, QUICK, ratios=(0.25,), timed=1)
    assert {r.column: r.reason for r in silent if r.value is None} == {"rtf": "every timed answer was silent"}
