"""The pipeline of the paper's SDVI on hand-made rows in LLaVA-OneVision's format."""

import pytest

from omnidiff_lite.chat import SVQA_SYSTEM
from omnidiff_lite.world import sdvi
from omnidiff_lite.world.voices import ANSWER_VOICE, parse_speech, train_voices

VOICES = train_voices(8)


def row(question, answer, image="a.jpg", source="ai2d", **more):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": "7", "image": image, "data_source": source, "conversations": turns, **more}


def opened(question, answer):
    result = sdvi.open_question(row(question, answer))
    return result and (sdvi.question_of(result), sdvi.answer_of(result))


@pytest.mark.parametrize("kept", [
    row("How many dogs are there?", "Three."), row("What year was it built?", "Between 1990 and 1995."),
    row("How much is the bread?", "It costs $5, the cake $10."), row("Where is this?", "Paris.", source="geography")])
def test_ordinary_questions_pass_the_filter(kept):
    assert list(sdvi.drop_maths_and_code([kept])) == [kept]


@pytest.mark.parametrize("dropped", [
    row("Solve for x.", "x = 3"), row("What is shown?", "The angle is $\\frac{\\pi}{2}$."), row("What is 3 + 4?", "7"),
    row("What is the perimeter of the square?", "twelve"), row("What does this do?", "```print(1)```"),
    row("Which colour?", "red", source="geo170k(qa)"), row("Which colour?", "red", source="MathV360K_TQA"),
    row("Write a function that draws this.", "sure"), row("Rebuild the page.", "<html><body></body></html>")])
def test_maths_and_programming_are_dropped(dropped):
    assert list(sdvi.drop_maths_and_code([dropped])) == []


@pytest.mark.parametrize("question", [
    "What is it?\nA. a cell\nB. a leaf\nC. a root\nAnswer with the option's letter from the given choices directly.",
    "What is it? (A) a cell (B) a leaf (C) a root",
    "Question: What is it?\nChoices:\n(A) a cell\n(B) a leaf\n(C) a root\nPlease answer with the letter.",
    "What is it?\nOptions: A: a cell, B: a leaf, C: a root"])
@pytest.mark.parametrize("answer", [
    "B", "B.", "(B)", "B. a leaf", "The answer is B.", "Answer: B", "a leaf", "A leaf."])
def test_multiple_choice_becomes_an_open_question(question, answer):
    assert opened(question, answer) == ("What is it?", "a leaf")


def test_an_explanation_after_the_letter_stays():
    assert opened("What is it?\nA. a cell\nB. a leaf", "B. It is green.") == ("What is it?", "a leaf. It is green.")


def test_nothing_refers_to_choices_that_are_gone():
    assert opened("Which of the following animals flies?\nA. cow\nB. bee", "B") == ("Which animals flies?", "bee")


def test_a_question_without_choices_only_loses_its_format():
    assert opened("What colour is it?\nAnswer the question using a single word or phrase.", "red") == (
        "What colour is it?", "red")
    assert opened("Is there a dog? please answer yes or no.", "yes") == ("Is there a dog?", "yes")
    assert opened("Is A. Smith in the picture?", "A dog is.") == ("Is A. Smith in the picture?", "A dog is.")


@pytest.mark.parametrize("answer", ["D", "something else", "A lion sleeps"])
def test_an_answer_that_is_no_choice_is_dropped(answer):
    assert opened("What is it?\nA. a cell\nB. a leaf", answer) is None


def test_long_answers_are_dropped_at_100_words():
    short, long = row("Why?", " ".join(["word"] * 100)), row("Why?", " ".join(["word"] * 101))
    assert list(sdvi.drop_long_answers([short, long])) == [short]


def test_a_row_needs_exactly_one_picture_and_gives_its_first_question():
    several = row("Where?", "here", image=["a.jpg", "b.jpg"])
    later = row("Where?", "here", image=["a.jpg"])
    later["conversations"] += [{"from": "human", "value": "And when?"}, {"from": "gpt", "value": "now"}]
    kept, = sdvi.one_picture([several, row("Hi", "hello", image=None), later])
    assert kept["image"] == "a.jpg" and len(kept["conversations"]) == 2


def test_spoken_vqa_end_to_end():
    rows = [row("What is it?\nA. a cell\nB. a leaf", "B"), row("What is 3 + 4?", "7"), row("Why?", "word " * 101)]
    sample, = sdvi.build_spoken_vqa(rows, VOICES, seed=3)
    assert sample.task == "svqa" and sample.images == ["a.jpg"]
    assert [m["content"] for m in sample.messages] == [SVQA_SYSTEM, "<|audio|>\n<|image|>", "a leaf\n<|audio|>"]
    (question, voice), answer = map(parse_speech, sample.audios)
    assert question == "What is it?" and voice in VOICES and answer == ("a leaf", ANSWER_VOICE)


def test_a_voice_depends_on_the_question_and_not_on_the_other_rows():
    rows = [row(f"What is thing {word}?", "a leaf") for word in ("one", "two", "three", "four", "five", "six")]
    together = sdvi.build_spoken_vqa(rows, VOICES)
    assert [sdvi.build_spoken_vqa([each], VOICES)[0] for each in rows] == together
    assert len({sample.audios[0].partition('"voice"')[2] for sample in together}) > 1


def test_speech_to_image():
    sample, = sdvi.build_speech_to_image([("a small tree", "tree.png")], VOICES)
    assert (sample.task, sample.images, sample.messages[-1]["content"]) == ("s2i", ["tree.png"], "<|image|>")
    assert parse_speech(sample.audios[0])[0] == "a small tree"


@pytest.mark.parametrize("broken", [{"id": "9", "image": "a.jpg"}, {"id": "9", "image": "a.jpg", "conversations": []},
                                    {"id": "9", "image": "a.jpg", "conversations": [{"value": "hi"}]}])
def test_a_row_in_another_format_is_named(broken):
    with pytest.raises(ValueError, match="row '9'.*LLaVA-OneVision"):
        sdvi.build_spoken_vqa([broken], VOICES)
    with pytest.raises(ValueError, match="no voice"):
        sdvi.build_spoken_vqa([row("Why?", "so")], [])
