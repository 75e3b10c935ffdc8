"""The 7 x 7 matrix and inpainting with models whose answers are known: the right ones score 100, silence scores 0."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from omnidiff_lite.chat import infer_task
from omnidiff_lite.config import load_preset
from omnidiff_lite.evaluation.any_to_any import (as_table, cell_shares, evaluate_any_to_any, evaluate_references,
                                                 picture_right, references, words_right)
from omnidiff_lite.evaluation.combinations import (CELLS, PART, SETS, TRAINED, ZERO_SHOT, halved,
                                                   instructed, known_as, typed, undefined)
from omnidiff_lite.evaluation.inpainting import covered, evaluate_inpainting, restored, tokens_kept
from omnidiff_lite.evaluation.records import Record
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.media import Image, Speech, Text, Waveform
from omnidiff_lite.pipeline.requests import read_request
from omnidiff_lite.world.dataset import samples
from omnidiff_lite.world.scenes import Object, Scene, render

PRESET = load_preset("smoke")
WORLD, N = PRESET.world, 2
QUICK = Settings(bootstrap=50, image_sizes=(64, 64))
KEYS = [key for key, cell in CELLS.items() if cell.ask]  # all but inpainting


@dataclass
class Reply:
    text: str | None = None
    speech: Waveform | None = None
    image: PIL.Image.Image | None = None
    ids: list[int] = field(default_factory=lambda: [0] * 64)


class Model:
    """Gives `replies`, one list a cell in the matrix's order, and remembers what it was asked; paints `painted`.

    Its tokens are codes 0..63, of 8 x 8 pixels each.
    """

    settings = SimpleNamespace(generation_size=64)
    tokenizers = SimpleNamespace(vocabulary=SimpleNamespace(codes_of_image=list),
                                 image=SimpleNamespace(config=SimpleNamespace(factor=8)))

    def __init__(self, replies=(), painted=()):
        self.replies, self.painted, self.calls = iter(replies), iter(painted), []

    def generate_many(self, requests, to, task=None, decoding=None, seed=0, batch_size=16):
        assert task is None, "a user names no task"
        self.calls.append((to, requests))
        return next(self.replies, [Reply()] * len(requests))

    def inpaint(self, image, mask, prompt="", decoding=None, seed=0):
        return next(self.painted, Reply())

    def image_codes(self, images, size):
        return [[0] * 64 for _ in images]


class Exact:
    """Tokenizers that lose nothing; with `blank`, of pictures and voices everything."""

    def __init__(self, blank=False):
        self.image = torch.nn.Linear(1, 1)  # only its device is looked at
        self.image.config = SimpleNamespace(generation_size=64)
        self.image.encode = lambda pixels: pixels * (not blank) + blank
        self.image.decode = lambda pixels: pixels
        self.speech_tokenizer = SimpleNamespace(encode=lambda wave: wave)
        self.speech_decoder = SimpleNamespace(decode=lambda wave: replace(wave, samples=wave.samples * (not blank)))


class Ear:
    """Knows the recordings of the right answers by their samples, and hears nothing in any other."""

    def __init__(self, known):
        self.known = {wave.samples.tobytes(): text for wave, text in known}

    def transcribe(self, waves):
        return [self.known.get(wave.samples.tobytes(), "") for wave in waves]


def drawn(key):
    return samples(CELLS[key].drawn, "test", N, QUICK.seed, WORLD)


@pytest.fixture(scope="module")
def right():
    """The right answers, one list a cell, and a judge that understands them."""
    replies = [references(drawn(key), key[1], QUICK, Exact()) for key in KEYS]
    return replies, Ear([(r.speech, r.text) for each in replies for r in each if r.speech])


def values(records, table="any_to_any"):
    return {(r.row, r.column): r.value for r in records if r.table == table and r.value is not None}


# --- the matrix ------------------------------------------------------------------------------------------------------


def test_the_right_answers_score_100_in_every_defined_cell(right):
    replies, ear = right
    cases = covered(N, QUICK.seed, WORLD, 64)
    model = Model(replies, [Reply(image=case.picture) for case in cases])
    records, items = evaluate_any_to_any(model, ear, N, QUICK, WORLD)
    assert values(records) == dict.fromkeys(CELLS, 100) and len(items) == N * len(CELLS) and items["right"].all()
    assert [to for to, _ in model.calls] == [tuple(key[1].split(" + ")) for key in KEYS]
    spoken = values(records, "any_to_any_voice_wer")
    assert set(spoken.values()) == {0} and ("text", "speech") in spoken and ("image", "speech") not in spoken


def test_the_ceiling_is_what_the_tokenizers_keep_of_the_right_answers(right):
    kept, lost = (values(evaluate_references(Exact(blank), right[1], N, QUICK, WORLD), "any_to_any_ceiling")
                  for blank in (False, True))
    assert kept == dict.fromkeys(CELLS, 100)
    assert lost == {key: 100 if key[1] == "text" else 0 for key in CELLS}


def test_shares_of_cells_count_scores_and_those_near_the_ceiling():
    scores = dict.fromkeys(CELLS, 50) | {("text", "text"): 49, ("text", "image"): 0}
    ceilings = dict.fromkeys(CELLS, 100) | {("text", "image"): 0, ("text", "speech"): 90}
    tables = {"any_to_any": scores, "any_to_any_ceiling": ceilings}
    records = [Record(table, *key, value, n=N) for table, found in tables.items() for key, value in found.items()]
    shares = {r.column: (r.value, r.n) for r in cell_shares(records, 0)}
    assert shares == {"scored": (100, 25), "half_of_ceiling": (100 * 23 / 25, 25)}, "nothing is not half of nothing"


def test_silence_scores_0_and_has_an_interval(right):
    records, items = evaluate_any_to_any(Model(), right[1], N, QUICK, WORLD)
    assert values(records) == dict.fromkeys(CELLS, 0) and not items["right"].any()
    assert all(r.n == N and r.low == 0 < r.high for r in records if r.table == "any_to_any" and r.value is not None)
    assert set(values(records, "any_to_any_voice_wer").values()) == {100}


def test_every_output_asked_for_must_be_right(right):
    replies, ear = right
    mute = [[replace(r, speech=None) if "text" in key[1] else r for r in each] for key, each in zip(KEYS, replies)]
    records, _ = evaluate_any_to_any(Model(mute), ear, N, QUICK, WORLD)
    found = values(records)
    assert {key: found[key] for key in KEYS} == {key: 0 if key[1] == "text + speech" else 100 for key in KEYS}


def test_a_model_that_skips_is_an_error(right):
    with pytest.raises(RuntimeError, match="1 answers to 2 requests"):
        evaluate_any_to_any(Model([[Reply()]]), right[1], N, QUICK, WORLD)


def test_every_cell_is_asked_or_says_why_not():
    assert len(SETS) == 7 and set(CELLS) < {(a, b) for a in SETS for b in SETS}
    records, _ = evaluate_any_to_any(Model(), Ear([]), N, QUICK, WORLD)
    empty = {(r.row, r.column): r.reason for r in records if r.table == "any_to_any" and r.value is None}
    assert len(empty) + len(CELLS) == 49 and all(empty[key] == undefined(*key) for key in empty)
    assert all("image" in column for _, column in empty), "words alone always have a right answer"
    table = as_table(records, PRESET)
    assert table.loc["image", ("to", "speech")].endswith("zero-shot") and table.loc["image", ("to", "image")] == ""


@pytest.mark.parametrize("key", KEYS, ids=" -> ".join)
def test_a_request_has_the_inputs_of_its_row_and_the_pipeline_takes_it(key):
    cell, outputs = CELLS[key], tuple(key[1].split(" + "))
    for sample in drawn(key):
        parts = cell.ask(sample, QUICK)
        kinds = {{Text: "text", Image: "image", Speech: "speech"}[type(part)] for part in parts}
        assert kinds == set(key[0].split(" + "))
        assert read_request(parts, outputs).task == ("asr" if cell.ask is instructed else infer_task(kinds, outputs))


def test_cells_say_what_was_trained():
    known = {key: known_as(*key, PRESET) for key in CELLS}
    assert [key for key, kind in known.items() if kind == TRAINED] == [
        ("text", "text"), ("text", "image"), ("text", "speech"), ("image", "text"), ("speech", "text"),
        ("speech", "image"), ("speech", "text + speech"), ("text + image", "text"), ("text + speech", "text"),
        ("image + speech", "text + speech")]
    assert [key for key, kind in known.items() if kind == PART] == [
        ("speech", "speech"), ("image + speech", "text"), ("image + speech", "speech")]
    silent = load_preset("smoke", {f"training.stage{i}.mix": {"text_qa": 1.0} for i in (1, 2, 3)})
    assert {key for key in CELLS if known_as(*key, silent) != ZERO_SHOT} == {("text", "text")}


def test_a_typed_instruction_beside_its_medium_is_that_task():
    """The prompt is then the trained one, to the letter, and the answer has that task's length and decoding."""
    spoken, = samples("asr", "test", 1, 0, WORLD)
    asked = read_request(instructed(spoken, QUICK), ("text",))
    assert asked.task == "asr" and asked.messages == spoken.messages[:-1] and asked.text == ""
    picture = Image(PIL.Image.new("RGB", (8, 8)))
    assert read_request([Text("What does the image show?"), picture], ("text",)).task == "captioning"
    assert read_request([Text("what color is the cross"), picture], ("text",)).task == "vqa"
    assert read_request(instructed(spoken, QUICK), ("speech",)).task is None, "recognition does not speak"


def test_halves_make_the_whole_and_typed_questions_are_the_spoken_ones():
    sample = samples("svqa", "test", 1, 0, WORLD)[0]
    spoken, written, picture = halved(sample, QUICK)
    words = sample.meta["question"].split()
    assert written.text == " ".join(words[len(words) // 2:]) and 0 < spoken.load().seconds
    assert [type(part) for part in (spoken, written, picture)] == [Speech, Text, Image]
    assert typed(sample, QUICK)[0] == Text(sample.meta["question"])


def test_captions_count_in_any_wording_and_pictures_by_shape_and_colour():
    sample = samples("captioning", "test", 1, 0, WORLD)[0]
    assert words_right(sample.meta["caption"].upper() + ".", sample) and not words_right("a dog", sample)
    scene = Scene("white", (Object("circle", "red", "large", "plain", (0, 0)),
                            Object("square", "blue", "small", "plain", (0, 1))), 2, 0.0)
    first, second = scene.objects
    third = Object("star", "green", "large", "plain", (1, 0))

    def right(*objects, ground="white"):
        return picture_right(render(Scene(ground, objects, 2, 0.0), 64), scene.to_dict(), WORLD)

    assert right(first, second) and right(replace(first, size="small"), second, ground="mint")
    assert not right(replace(first, cell=(0, 1)), replace(second, cell=(0, 0))), "mirrored"
    assert not right(first, replace(second, color="green")) and not right(first) and not right(first, second, third)
    assert not picture_right(None, scene.to_dict(), WORLD)


# --- inpainting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "gpu"])  # lattices of 2 x 2 and 3 x 3
def test_the_covered_half_holds_one_whole_object_and_nothing_else_is_touched(name):
    world = load_preset(name).world
    for case in covered(12, 0, world, 64):
        assert case.mask.sum() == 64 * 64 / 2 and case.hidden in case.scene.objects
        shown, real = np.asarray(case.shown), np.asarray(case.picture)
        assert (shown[~case.mask] == real[~case.mask]).all() and len(np.unique(shown[case.mask], axis=0)) == 1
        assert restored(case.picture, case, world) and not restored(case.shown, case, world)
    assert [c.half for c in covered(4, 0, world, 64)] == [c.half for c in covered(8, 0, world, 64)][:4]


def test_an_object_must_come_back_where_the_caption_puts_it():
    case = next(c for c in covered(20, 0, WORLD, 64) if len(c.scene.objects) == 2)
    other, = (item for item in case.scene.objects if item != case.hidden)

    def drawn_with(**changes):
        objects = tuple(replace(item, **changes) if item == case.hidden else item for item in case.scene.objects)
        return restored(render(replace(case.scene, objects=objects, jitter=0.0), 64), case, WORLD)

    row, column = case.hidden.cell
    in_half = (1 - row, column) if case.half in ("left", "right") else (row, 1 - column)
    assert drawn_with() and drawn_with(size="small" if case.hidden.size == "large" else "large")
    assert not drawn_with(cell=in_half), "the two share a row or a column"
    assert not drawn_with(color=next(c for c in ("red", "blue") if c not in (case.hidden.color, other.color)))


def test_nothing_else_may_be_painted_into_the_covered_half():
    world = load_preset("gpu").world  # a lattice of 3 x 3: the half's edge runs through the middle
    case = next(c for c in covered(40, 0, world, 96) if c.half == "left" and len(c.scene.objects) == 1)
    taken = case.hidden.cell

    def drawn_with(cell):
        extra = replace(case.hidden, shape="star" if case.hidden.shape != "star" else "ring", cell=cell)
        return restored(render(replace(case.scene, objects=(*case.scene.objects, extra)), 96), case, world)

    free = [(row, column) for row in range(3) for column in range(3) if (row, column) != taken]
    assert {cell for cell in free if drawn_with(cell)} == {(0, 2), (1, 2), (2, 2)}, "only the half that was not covered"


def test_only_objects_that_the_caption_places_are_covered():
    world = replace(load_preset("gpu").world, max_objects=3)
    scenes = [case.scene for case in covered(60, 0, world, 32)]
    hidden = [case.scene.objects.index(case.hidden) for case in covered(60, 0, world, 32)]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3} and set(hidden) == {0, 1}
    with pytest.raises(ValueError, match="a half with one placed object"):
        covered(1, 0, replace(world, grid=4, max_objects=1, jitter=0.0), 32)  # "top left" may be four cells


def test_a_changed_token_or_no_picture_is_not_restored():
    cases = covered(4, 0, WORLD, 64)
    hidden = cases[2].mask[::8, ::8].flatten()
    spoilt = [int(not covered_token) for covered_token in hidden]  # every kept token has changed
    repainted = [int(covered_token) for covered_token in cases[1].mask[::8, ::8].flatten()]
    replies = [Reply(image=cases[0].picture), Reply(image=cases[1].picture, ids=repainted),
               Reply(image=cases[2].picture, ids=spoilt), Reply()]
    records, items = evaluate_inpainting(Model(painted=replies), cases, QUICK, world=WORLD)
    assert items["restored"].tolist() == items["kept"].tolist() == [True, True, False, False]
    assert {r.column: (r.value, r.n) for r in records} == {"inpainting_restored": (50, 4), "inpainting_kept": (50, 4)}


def test_the_system_keeps_what_is_not_covered(tiny_model):
    case = covered(1, 0, WORLD, 64)[0]
    answer = tiny_model.inpaint(case.shown, case.mask, prompt=case.caption, seed=0)
    assert tokens_kept(tiny_model, case, answer)
    assert not tokens_kept(tiny_model, replace(case, mask=~case.mask), answer), "the other half was drawn anew"
