"""The visual half of the embedded world: scenes and splits, captions, questions, charts, benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world import benchmarks, charts, questions
from omnidiff_lite.world.captions import Described, caption, matches, parse, plain, wordings
from omnidiff_lite.world.recipes import chart_ref, content, picture, scene_ref
from omnidiff_lite.world.scenes import (BACKGROUNDS, COLORS, SHAPES, Object, Scene, render, sample_scene, textures)
from omnidiff_lite.world.splits import (ALONE, INVERSE, RELATIONS, SPLITS, combination_split, item_split, stream)

SMALL = WorldConfig(image_size=64, max_objects=2, grid=2)
LARGE = WorldConfig(image_size=256, max_objects=4, grid=4)
WORLDS = pytest.mark.parametrize("config", [SMALL, LARGE], ids=["small", "large"])
PAIR = Scene("grey", (Object("circle", "red", "small", "plain", (0, 0)),
                      Object("square", "blue", "large", "plain", (1, 0))), 2, 0.1)
LONE = Scene("cream", (Object("star", "orange", "large", "plain", (1, 1)),), 2, 0.1)


def scenes(config: WorldConfig, split: str, n: int = 60) -> list[Scene]:
    return [sample_scene(stream("tests", split, index), config, split) for index in range(n)]


# --- scenes and splits ------------------------------------------------------------------------------------------------


@WORLDS
def test_scenes_hold_what_the_configuration_allows(config):
    drawn = scenes(config, "train", 150)
    assert {len(scene.objects) for scene in drawn} == set(range(1, config.max_objects + 1))
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert {item.shape for scene in drawn for item in scene.objects} == set(SHAPES)
    assert {item.texture for scene in drawn for item in scene.objects} == set(textures(config))
    for scene in drawn:
        assert len({item.cell for item in scene.objects}) == len(scene.objects)
        assert len({item.name for item in scene.objects}) == len(scene.objects)
        if scene.relation:
            assert sum(a == b for a, b in zip(scene.objects[0].cell, scene.objects[1].cell)) == 1


@WORLDS
@pytest.mark.parametrize("split", SPLITS)
def test_held_out_combinations_stay_out_of_training(config, split):
    held = [{combination_split(*each) for each in scene.combinations} for scene in scenes(config, split)]
    if split in ("train", "judge"):
        assert all(kept == {"train"} for kept in held)
    elif split == "test":
        assert all("test" in kept for kept in held)
    else:
        assert all("validation" in kept and "test" not in kept for kept in held)


def test_every_shape_and_color_is_seen_in_training():
    table = {(s, c, r): combination_split(s, c, r) for s in SHAPES for c in COLORS for r in (*RELATIONS, ALONE)}
    share = {split: count / len(table) for split, count in Counter(table.values()).items()}
    assert 0.06 < share["test"] < 0.14 and 0.02 < share["validation"] < 0.09
    for shape in SHAPES:
        for color in COLORS:
            assert sum(table[shape, color, r] == "train" for r in (*RELATIONS, ALONE)) >= 4
    assert {relation for (_, _, relation), split in table.items() if split == "test"} == {*RELATIONS, ALONE}


def test_bad_requests_are_named():
    rng = stream("bad")
    with pytest.raises(ValueError, match="no split 'dev'"):
        sample_scene(rng, SMALL, "dev")
    with pytest.raises(ValueError, match="5 objects do not fit a 2 x 2"):
        sample_scene(rng, SMALL, "train", 5)
    with pytest.raises(ValueError, match="no color 'mauve'"):
        Scene.from_dict({**PAIR.to_dict(), "objects": [{**LONE.to_dict()["objects"][0], "color": "mauve"}]})
    with pytest.raises(ValueError, match="not a scene: KeyError 'objects'"):
        Scene.from_dict({"background": "grey"})
    with pytest.raises(ValueError, match="two of its objects are in one cell"):
        Scene.from_dict({**PAIR.to_dict(), "objects": [LONE.to_dict()["objects"][0], PAIR.to_dict()["objects"][0] | {
            "cell": [1, 1]}]})
    with pytest.raises(ValueError, match="no picture recipe"):
        picture("photo.png", 64)


@pytest.mark.parametrize("size", [64, 96, 256])
def test_render_size_and_determinism(size):
    image = render(PAIR, size)
    assert image.size == (size, size) and image.mode == "RGB"
    assert np.array_equal(image, render(Scene.from_dict(json.loads(PAIR.to_json())), size))
    assert np.array_equal(image, picture(scene_ref(PAIR), size))


def test_objects_stay_inside_their_cell():
    for index in range(40):
        scene = sample_scene(stream("inside", index), SMALL, "train", 1)
        pixels = np.asarray(render(scene, 64)).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - BACKGROUNDS[scene.background]).sum(axis=2) > 30)
        assert {(row // 32, column // 32) for row, column in zip(rows, columns)} == {scene.objects[0].cell}


def test_equal_in_every_process():
    """Python salts its own hashes per process; nothing here may depend on them."""
    program = (
        "import hashlib\n"
        "from omnidiff_lite.config import WorldConfig\n"
        "from omnidiff_lite.world import captions, charts, questions, scenes\n"
        "from omnidiff_lite.world.splits import stream\n"
        "digest = hashlib.sha256()\n"
        "for index in range(12):\n"
        "    rng = stream('process', index)\n"
        "    scene = scenes.sample_scene(rng, WorldConfig(image_size=64, max_objects=2, grid=2), 'test')\n"
        "    chart = charts.sample_chart(rng, WorldConfig())\n"
        "    asked = questions.ask(scene, rng), charts.chart_question(chart, rng)\n"
        "    digest.update(repr((captions.caption(scene, rng), asked)).encode())\n"
        "    digest.update(scenes.render(scene, 64).tobytes() + charts.render_chart(chart, 64).tobytes())\n"
        "result = digest.hexdigest()\n")
    here: dict[str, str] = {}
    exec(program, here)
    for salt in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program + "import sys\nprint(result, {'torch', 'transformers'} & set(sys.modules))"],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
            check=True).stdout
        assert there.split() == [here["result"], "set()"]


# --- captions ---------------------------------------------------------------------------------------------------------


def test_plain_captions():
    assert plain(PAIR) == "a small red circle above a large blue square on a grey ground"
    assert plain(LONE) == "a large orange star at the bottom right of a cream ground"


@WORLDS
def test_every_wording_reads_back(config):
    for scene in scenes(config, "train") + scenes(config, "test"):
        for text in wordings(scene):
            said = parse(text)
            assert said.objects == tuple(Described(o.shape, o.color, o.size, o.texture) for o in scene.objects)
            assert (said.relation, said.background) == (scene.relation, scene.background)
            assert said.position == (None if scene.relation else scene.position(scene.objects[0]))
            assert all(matches(text, scene).values())
            assert text == text.lower() and not any(c.isdigit() for c in text)
        assert caption(scene, stream("any")) in wordings(scene)


def test_caption_draws_every_wording():
    assert {caption(PAIR, stream(i)) for i in range(200)} == set(wordings(PAIR))


def test_wrong_captions_score_as_wrong_as_they_are():
    right = {"objects_right": True, "attributes_right": True, "relation_right": True, "background_right": True,
             "all_right": True}
    assert matches("A large BLUE square, below a small red circle; on a grey ground!", PAIR) == right
    assert matches("a small red circle above a large blue square on a mint ground", PAIR) == {
        **right, "background_right": False, "all_right": False}
    assert matches("a small red circle below a large blue square on a grey ground", PAIR) == {
        **right, "relation_right": False, "all_right": False}
    assert matches("a large red circle above a large blue square on a grey ground", PAIR) == {
        **right, "attributes_right": False, "all_right": False}
    assert not any(matches("a small red circle left of", PAIR).values())
    for garbage in ("", "on a", "above above of of", "ground ground"):
        assert parse(garbage) is None and not any(matches(garbage, PAIR).values())


# --- questions --------------------------------------------------------------------------------------------------------


@WORLDS
@pytest.mark.parametrize("kind", ["existence", "count", "relation"])
def test_yes_and_no_are_balanced(config, kind):
    answers = Counter()
    for index in range(900):
        rng = stream("balance", kind, index)
        answers[questions.ask(sample_scene(rng, config, "train", 2), rng, kind).answer] += 1
    assert 0.42 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.58


ANSWERS = {  # of PAIR: a small red circle above a large blue square on a grey ground
    "where is the red circle?": "top left", "where is the blue square?": "bottom left",
    "what color is the circle?": "red", "what color is the ground?": "grey", "what shape is the blue object?": "square",
    "what size is the red circle?": "small", "is the blue square small or large?": "large",
    "how many objects are there?": "two", "how many circles do you see?": "one",
    "what is above the blue square?": "red circle", "is the red circle above or below the blue square?": "above",
    "is the red circle above the blue square in the image?": "yes",
    "is the blue square above the red circle in the image?": "no", "is there a circle in the image?": "yes",
    "is there a red square in the image?": "no", "is there a star in the image?": "no",
    "are there two objects in the image?": "yes", "are there three objects in the image?": "no",
    "is there one square in the image?": "yes"}


def test_answers_are_right():
    asked = [questions.ask(PAIR, stream("right", index)) for index in range(3000)]
    given = {text: {q.answer for q in asked if q.text == text} for text in ANSWERS}
    assert given == {text: {answer} for text, answer in ANSWERS.items()}


@WORLDS
def test_answers_are_short_and_in_words(config):
    seen = Counter()
    for index in range(300):
        rng = stream("short", index)
        scene = sample_scene(rng, config, "train")
        asked = questions.ask(scene, rng)
        seen[asked.kind] += 1
        assert 1 <= len(asked.answer.split()) <= 3
        assert not any(c.isdigit() for c in asked.text + asked.answer)
    assert set(seen) == set(questions.KINDS) - {"ocr"} - ({"texture"} if config is SMALL else set())


REPLIES = {  # to the questions of ANSWERS
    "the red circle is at the top left", "the blue square is at the bottom left", "the circle is red",
    "the ground is grey", "the blue object is a square", "the red circle is small", "the blue square is large",
    "the number of objects is two", "the number of circles is one", "above the blue square is the red circle",
    "the red circle is above the blue square", "yes, the red circle is above the blue square",
    "no, the blue square is below the red circle", "yes, the circle is red", "no, the square is blue",
    "no, the star is nowhere", "yes, the number of objects is two", "no, the number of objects is two",
    "yes, the number of squares is one"}


def test_replies_repeat_what_was_asked_about():
    asked = [questions.ask(PAIR, stream("right", index)) for index in range(3000)]
    assert {q.reply for q in asked if q.text in ANSWERS} == REPLIES
    assert all(q.answer in q.reply for q in asked)


def test_kinds_that_a_scene_cannot_answer_are_refused():
    with pytest.raises(ValueError, match="no 'relation' question about this scene"):
        questions.ask(LONE, stream(0), "relation")


def test_numbers_in_words():
    words = [questions.number_word(n) for n in (0, 7, 13, 20, 42)]
    assert words == ["zero", "seven", "thirteen", "twenty", "forty two"]
    with pytest.raises(ValueError, match="no word for 100"):
        questions.number_word(100)


def test_multiple_choice_has_four_different_choices_and_every_letter():
    letters = Counter()
    for index in range(200):
        rng = stream("letters", index)
        asked = questions.ask_choices(sample_scene(rng, SMALL, "train"), rng)
        assert len(set(asked.choices)) == 4 and asked.choices["ABCD".index(asked.reply)] == asked.answer
        assert f"\n{asked.reply}. {asked.answer}" in asked.prompt
        letters[asked.reply] += 1
    assert min(letters[letter] for letter in "ABCD") > 30


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(charts.CHARTS))
def test_charts_round_trip_and_draw(kind):
    for index in range(20):
        chart = charts.sample_chart(stream("chart", index), SMALL, kind)
        assert content(chart_ref(chart)) == chart and chart.split == "train"
        asked = charts.chart_question(chart, stream("ask", index))
        assert len(set(asked.choices)) == 4 and asked.answer in asked.choices
        for size in (64, 128):
            image = picture(chart_ref(chart), size)
            assert image.size == (size, size) and len(image.getcolors(size * size)) > 3


def test_charts_of_two_splits_are_never_the_same():
    kept = {split: {charts.sample_chart(stream(split, i), SMALL, "sign", split).to_json() for i in range(60)}
            for split in ("train", "validation", "test")}
    assert not kept["train"] & kept["test"] and not kept["train"] & kept["validation"]
    assert all(item_split(key) == split for split, keys in kept.items() for key in keys)


@pytest.mark.parametrize("chart, words", [
    ([1], "not a chart: a list"), ({"kind": ["sign"]}, "not a chart: kind"),
    ({"kind": "sign", "text": "café", "board": "red", "background": "white"}, "not a sign: no letter 'É'"),
    ({"kind": "sign", "text": 7, "board": "red", "background": "white"}, "not a sign"),
    ({"kind": "sign", "text": "stop", "board": "mauve", "background": "white"}, "not a sign: no color 'mauve'"),
    ({"kind": "web", "word": "stop", "number": -1, "header": "red", "button": "blue"}, "not a web: no letter '-'"),
    ({"kind": "chart", "colors": ["red", "blue", "pink"], "heights": [1, 2, 3], "background": {}}, "no background"),
    ({"kind": "chart", "colors": [], "heights": [], "background": "white"}, "no number of bars 0"),
    ({"kind": "map", "landmarks": [["star", "red", [0, 3]]], "route": [], "background": "white"}, "no crossing")])
def test_a_chart_that_cannot_be_drawn_is_told(chart, words):
    with pytest.raises(ValueError, match=words):
        picture("chart:" + json.dumps(chart), 64)


def test_bar_questions_are_answered_from_the_bars():
    chart = charts.BarChart(("red", "blue", "green"), (2, 5, 1), "white")
    answers = {"how high is the red bar?": "two", "how high is the blue bar?": "five",
               "how high is the green bar?": "one", "how many bars are there?": "three",
               "which bar is the highest?": "blue", "which bar is the lowest?": "green",
               "which bar is two high?": "red", "which bar is five high?": "blue", "which bar is one high?": "green"}
    asked = {(q.text, q.answer) for q in (charts.chart_question(chart, stream("bars", i)) for i in range(200))}
    assert asked == set(answers.items())


def test_map_routes_join_their_landmarks():
    for index in range(30):
        chart = charts.sample_chart(stream("map", index), SMALL, "map")
        cells = [cell for _, _, cell in chart.landmarks]
        assert (chart.route[0], chart.route[-1]) == (cells[0], cells[1]) and not set(chart.route) & set(cells[2:])
        assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in zip(chart.route, chart.route[1:]))


def test_signs_are_read_in_words():
    sign = charts.Sign("17", "red", "white")
    asked = [charts.ask_sign(sign, stream("sign", index)) for index in range(200)]
    assert {q.answer for q in asked} == {"seventeen", "yes", "no"}
    assert all((q.answer == "yes") == ("seventeen" in q.text) for q in asked if q.answer in ("yes", "no"))


# --- benchmarks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", benchmarks.STRATEGIES)
def test_pope_is_half_yes_and_right(strategy):
    rows = benchmarks.pope(strategy, 40, 0, SMALL)
    assert [row.meta["answer"] for row in rows] == ["yes", "no"] * 20
    for row in rows:
        scene = content(row.images[0])
        asked = row.meta["question"].removesuffix(" in the image?").split()[-1]
        assert (asked in {item.shape for item in scene.objects}) == (row.meta["answer"] == "yes")
        assert scene.split == "test" and scene.to_dict() == row.meta["scene"]


def test_pope_strategies_ask_of_the_same_pictures_what_they_promise():
    random, popular, adversarial = (benchmarks.pope(strategy, 120, 0, SMALL) for strategy in benchmarks.STRATEGIES)
    assert [row.images for row in random] == [row.images for row in popular] == [row.images for row in adversarial]
    alone, together = benchmarks._survey(SMALL)

    def weight(rows, measure):
        negatives = [(row.meta["question"].removesuffix(" in the image?").split()[-1], content(row.images[0]))
                     for row in rows if row.meta["answer"] == "no"]
        return np.mean([measure(shape, {item.shape for item in scene.objects}) for shape, scene in negatives])

    def frequency(shape, present):
        return alone[shape]

    def company(shape, present):
        return sum(together[shape, other] for other in present)

    assert weight(popular, frequency) > 1.2 * weight(random, frequency)
    assert weight(adversarial, company) > max(weight(popular, company), 1.2 * weight(random, company))


@pytest.mark.parametrize("subtask", benchmarks.SUBTASKS)
def test_mme_asks_yes_then_no_of_each_picture(subtask):
    rows = benchmarks.mme(subtask, 12, 0, SMALL)
    assert [row.meta["answer"] for row in rows] == ["yes", "no"] * 12
    assert [row.meta["image"] for row in rows] == [index for index in range(12) for _ in range(2)]
    for yes, no in zip(rows[::2], rows[1::2]):
        assert yes.images == no.images and yes.meta["question"] != no.meta["question"]
        assert yes.meta["text"].endswith("please answer yes or no.") and content(yes.images[0]).split == "test"
    if subtask == "position":
        assert all(INVERSE[content(row.images[0]).relation] in row.meta["question"] for row in rows[1::2])


def test_seed_bench_is_multiple_choice_over_three_categories():
    rows = benchmarks.seed_bench(30, 0, SMALL)
    assert Counter(row.meta["kind"] for row in rows) == {"chart": 10, "map": 10, "web": 10}
    assert all(row.meta["answer"] in "ABCD" and len(row.meta["choices"]) == 4 for row in rows)
    assert all(content(row.images[0]).split == "test" for row in rows)


def test_rows_do_not_depend_on_their_number():
    assert benchmarks.pope("popular", 10, 3, SMALL) == benchmarks.pope("popular", 30, 3, SMALL)[:10]
    assert benchmarks.seed_bench(5, 3, SMALL) == benchmarks.seed_bench(9, 3, SMALL)[:5]
    assert benchmarks.mme("count", 3, 3, SMALL) == benchmarks.mme("count", 5, 3, SMALL)[:6]
    assert benchmarks.mme("count", 3, 3, SMALL) != benchmarks.mme("count", 3, 4, SMALL)


@pytest.mark.parametrize("call, message", [
    (lambda: benchmarks.pope("rare", 2, 0, SMALL), "no POPE strategy 'rare'"),
    (lambda: benchmarks.mme("ocr", 2, 0, SMALL), "no MME subtask 'ocr'"),
    (lambda: charts.sample_chart(stream(0), SMALL, "pie"), "no chart of kind 'pie'"),
])
def test_unknown_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
