"""Any to any, measured: how many answers are right in every cell of the 7 x 7 matrix of `combinations`.

The paper claims any-to-any but measures only a handful of tasks. Here every cell with a right answer is asked, on the
test split: scenes and questions not trained on, held-out voices. An item is right if every requested output is: text
and what the judge hears equal the answer's words (for a caption, all that it says holds), and a picture shows every
object by shape and colour, no others, placed as described. A missing output is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import PIL.Image

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import Preset, WorldConfig
from omnidiff_lite.data.media import load_speech_ref
from omnidiff_lite.evaluation.alignment import reconstruct
from omnidiff_lite.evaluation.answers import right
from omnidiff_lite.evaluation.combinations import CELLS, SETS, known_as, undefined
from omnidiff_lite.evaluation.inpainting import covered, evaluate_inpainting, restored
from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Answer, Model, Settings, ask_parts, meta, reference_images
from omnidiff_lite.evaluation.scene_analysis import read, score
from omnidiff_lite.evaluation.speech import Recogniser, compare, resynthesize, transcribe_all, wer
from omnidiff_lite.evaluation.statistics import Estimate, proportion_interval
from omnidiff_lite.evaluation.tables import cell_text
from omnidiff_lite.media import Waveform
from omnidiff_lite.tokenizers import Tokenizers
from omnidiff_lite.world.captions import matches
from omnidiff_lite.world.dataset import samples
from omnidiff_lite.world.scenes import Scene
from omnidiff_lite.world.voices import ANSWER_VOICE, speech_ref

TABLE, CEILING, VOICE, CELL = "any_to_any", "any_to_any_ceiling", "any_to_any_voice_wer", "any_to_any_cells"
ASKED = {key: cell for key, cell in CELLS.items() if cell.ask is not None}  # all but inpainting


@dataclass(frozen=True)
class Reference:
    """The right answer in the requested outputs: what a perfect model would give."""

    text: str
    speech: Waveform | None
    image: PIL.Image.Image | None


def evaluate_any_to_any(model: Model, judge: Recogniser, n: int, settings: Settings, world: WorldConfig,
                        painted: pd.DataFrame | None = None) -> tuple[list[Record], pd.DataFrame]:
    """Percent of `n` items right in every defined cell: table any_to_any, row = inputs, column = outputs; the other
    cells are missing, with the reason. Table any_to_any_voice_wer: WER of what is heard, where the wording is fixed.

    Needs `settings.image_sizes`. `painted`: items from `evaluate_inpainting`, if available. Per item: inputs,
    outputs, asked, answer, text, heard, text_right, speech_right, image_right (None where not requested), right.
    """
    if painted is None:
        cases = covered(n, settings.seed, world, settings.image_sizes[1])
        painted = evaluate_inpainting(model, cases, settings, world=world)[1]
    drawn, tables = _drawn(n, settings, world), {}
    for (inputs, outputs), cell in ASKED.items():
        requests = [cell.ask(sample, settings) for sample in drawn[cell.drawn]]
        answers = ask_parts(model, requests, settings, to=tuple(outputs.split(" + ")))
        tables[inputs, outputs] = score_answers(answers, drawn[cell.drawn], outputs, judge, world)
    tables["text + image", "image"] = pd.DataFrame({
        "asked": painted["caption"], "answer": painted["hidden"], "image_right": painted["restored"],
        "right": painted["restored"]})
    return _records(tables, settings, TABLE) + _voices(tables, settings), _joined(tables)


def evaluate_references(tokenizers: Tokenizers, judge: Recogniser, n: int, settings: Settings, world: WorldConfig
                        ) -> list[Record]:
    """The same for the right answers, spoken in the answer voice and drawn by the world, through `tokenizers` and back:
    the score that tokens, judge and picture reading leave a perfect model. Table any_to_any_ceiling."""
    drawn, found = _drawn(n, settings, world), {}
    for (_, outputs), cell in ASKED.items():
        if (cell.drawn, outputs) not in found:  # the right answer does not depend on how it was asked for
            answers = references(drawn[cell.drawn], outputs, settings, tokenizers)
            found[cell.drawn, outputs] = score_answers(answers, drawn[cell.drawn], outputs, judge, world)
    tables = {key: found[cell.drawn, key[1]] for key, cell in ASKED.items()}
    cases = covered(n, settings.seed, world, settings.image_sizes[1])
    whole = reconstruct(tokenizers.image, [case.picture for case in cases])
    tables["text + image", "image"] = pd.DataFrame({"right": [restored(p, c, world) for p, c in zip(whole, cases)]})
    return [record for record in _records(tables, settings, CEILING) if record.value is not None]


def references(drawn: Sequence[Sample], outputs: str, settings: Settings, tokenizers: Tokenizers) -> list[Reference]:
    """The right answer to each sample, with pictures and voices as their tokens preserve them."""
    asked, texts = outputs.split(" + "), [meta(sample, "answer") for sample in drawn]
    voices, pictures = [None] * len(drawn), [None] * len(drawn)
    if "speech" in asked:
        spoken = [load_speech_ref(speech_ref(text, ANSWER_VOICE)) for text in texts]
        voices = resynthesize(tokenizers.speech_tokenizer, tokenizers.speech_decoder, spoken)
    if "image" in asked:
        pictures = reconstruct(tokenizers.image, reference_images(drawn, settings))
    return [Reference(*each) for each in zip(texts, voices, pictures)]


def cell_shares(records: Sequence[Record], seed: int) -> list[Record]:
    """Percent of the defined cells that have a score at all (`scored`), and whose score is above 0 and at least half
    of what `evaluate_references` gives them (`half_of_ceiling`)."""
    scores, ceilings = ({(r.row, r.column): r.value for r in records if r.table == table and r.value is not None}
                        for table in (TABLE, CEILING))
    half = [key for key, score in scores.items() if score > 0 and key in ceilings and score >= ceilings[key] / 2]
    return measured(CELL, "diffusion", seed, {
        name: Estimate(100 * len(cells) / len(CELLS), None, None, len(CELLS), "no interval: cells are counted")
        for name, cells in (("scored", scores), ("half_of_ceiling", half))})


def _drawn(n: int, settings: Settings, world: WorldConfig) -> dict[str, list[Sample]]:
    """Test samples of every task that a cell asks for."""
    return {task: samples(task, "test", n, settings.seed, world) for task in {cell.drawn for cell in ASKED.values()}}


# --- scoring ----------------------------------------------------------------------------------------------------------


def score_answers(answers: Sequence[Answer], drawn: Sequence[Sample], outputs: str, judge: Recogniser,
                  world: WorldConfig) -> pd.DataFrame:
    """The per-item table of one cell."""
    asked = outputs.split(" + ")
    items = pd.DataFrame({"task": [s.task for s in drawn], "asked": [meta(s, "text") for s in drawn],
                          "answer": [meta(s, "answer") for s in drawn], "right": True})
    if "text" in asked:
        items["text"] = [a.text or "" for a in answers]
        items["text_right"] = [words_right(text, s) for text, s in zip(items["text"], drawn)]
    if "speech" in asked:
        items["heard"] = transcribe_all(judge, [a.speech for a in answers])
        items["speech_right"] = [words_right(text, s) for text, s in zip(items["heard"], drawn)]
    if "image" in asked:
        items["image_right"] = [picture_right(a.image, meta(s, "scene"), world) for a, s in zip(answers, drawn)]
    items["right"] = items[[f"{kind}_right" for kind in asked]].all(axis=1)
    return items


def words_right(words: str, sample: Sample) -> bool:
    """Whether the words are right by `answers.right`; for a caption, whether all that it says holds, in any wording."""
    if sample.task == "captioning":
        return matches(words, Scene.from_dict(meta(sample, "scene")))["all_right"]
    return right(words, meta(sample, "answer"))


def picture_right(picture: PIL.Image.Image | None, scene: dict[str, Any], world: WorldConfig) -> bool:
    """Whether the scene's objects, and no others, are there by shape and colour, the first two (or the only one)
    standing as they should."""
    if picture is None:
        return False
    wanted = Scene.from_dict(scene)
    kinds = [Counter((item.shape, item.color) for item in each) for each in (read(picture, world).objects,
                                                                             wanted.objects)]
    return kinds[0] == kinds[1] and score(picture, wanted, world)["relation_right"]


def _records(tables: dict[tuple[str, str], pd.DataFrame], settings: Settings, table: str) -> list[Record]:
    records = []
    for row, column in product(SETS, SETS):
        if (row, column) not in tables:
            records.append(missing(table, row, column, undefined(row, column)))
            continue
        share = proportion_interval(tables[row, column]["right"], **settings.resampling)
        records += measured(table, row, settings.seed, {column: share.scaled(100)})
    return records


def _voices(tables: dict[tuple[str, str], pd.DataFrame], settings: Settings) -> list[Record]:
    spoken = {key: items for key, items in tables.items() if "heard" in items and CELLS[key].drawn != "captioning"}
    return [record for (row, column), items in spoken.items()
            for record in measured(VOICE, row, settings.seed, {
                column: wer(compare(items["answer"], items["heard"], "libritts"), settings)})]


def _joined(tables: dict[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    joined = pd.concat(tables, names=["inputs", "outputs"]).reset_index(["inputs", "outputs"]).reset_index(drop=True)
    return joined.drop(columns="task")


def as_table(records: Sequence[Record], preset: Preset) -> pd.DataFrame:
    """The matrix as text, each cell with its `known_as`; empty where there is no right answer."""
    cells = {(r.row, r.column): r for r in records if r.table == TABLE}
    frame = pd.DataFrame("", index=pd.Index(SETS, name="from"), columns=pd.MultiIndex.from_product([["to"], SETS]))
    for row, column in CELLS:
        frame.loc[row, ("to", column)] = f"{cell_text(cells[row, column])}, {known_as(row, column, preset)}"
    return frame
