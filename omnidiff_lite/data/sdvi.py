"""SDVI at the paper's scale (section 3.3): spoken VQA from LLaVA-OneVision, speech to image from BLIP3o-JourneyDB.

    sdvi/svqa.jsonl     samples as they are made, in the released format
         svqa.json      which source, and how far it has been read: a killed run resumes there
         audios/        their recordings
         unspoken.jsonl samples that could not be spoken

The steps are those of `world.sdvi`, one sample at a time; any `Synthesiser` may speak.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from omnidiff_lite.chat import IMAGE, Sample
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.jsonl import row_of
from omnidiff_lite.files import written_whole
from omnidiff_lite.media import MediaError, load_waveform
from omnidiff_lite.weights import write_json
from omnidiff_lite.world import sdvi
from omnidiff_lite.world.synthesisers import Synthesiser
from omnidiff_lite.world.voices import VoiceError

SIZE = 30_000  # samples of each of the two parts (table 4)
Script = tuple[Sample, sdvi.Said[str]]  # a sample without recordings, and what these shall say


def build_sdvi(task: str, samples: Iterable[Sample], out: str | Path, speaker: Synthesiser, n: int = SIZE,
               seed: int = 0, log: BrokenLog | None = None, progress: bool = False, corpus: str = "") -> Path:
    """Make up to `n` samples of `task` ("svqa" from samples of VQA, "s2i" from those of T2I); returns the jsonl file.

    `samples`: in the same order at every call (`read_corpus`). `log`: takes what cannot be spoken. `corpus`: names
    the source of `samples`. Raises `DataError` for another task, for unsuitable samples, if the folder was begun with
    another corpus, seed or speaker, and if nothing could be made.
    """
    if task not in SCRIPTS:
        raise DataError(f"SDVI has no task {task!r}; choose one of {', '.join(SCRIPTS)}")
    out, log = Path(out), log or BrokenLog(Path(out) / "unspoken.jsonl")
    (out / "audios").mkdir(parents=True, exist_ok=True)
    path, about = out / f"{task}.jsonl", {"corpus": corpus, "seed": seed, "speaker": type(speaker).__name__}
    read, made = _resume(path, about)
    with path.open("a", encoding="utf-8") as file, \
            tqdm(total=n, initial=made, desc=task, unit="", mininterval=5.0, disable=not progress) as bar:
        for number, sample in enumerate(islice(samples, read, None), start=read + 1):
            if made >= n:
                break
            if sample.task not in TAKES[task]:
                raise DataError(f"source row {number}: a sample of task {sample.task!r}, and {task} is made from "
                                f"{', '.join(TAKES[task])}; give {SPOKEN[task]}")
            spoken = _spoken(SCRIPTS[task](sample, speaker, seed), out, speaker, f"{path}, source row {number}", log)
            if spoken:
                file.write(json.dumps(row_of(spoken), ensure_ascii=False) + "\n")
                file.flush()
                made += 1
                bar.update()
            _note(path, about | {"read": number, "made": made, "bytes": file.tell()})
    if not made:
        raise DataError(f"{path}: none of the samples could be made into {task}; give {SPOKEN[task]}"
                        f"{f', or mend what {log.path} names' if log.known else ''}")
    return path


# --- the steps --------------------------------------------------------------------------------------------------------

def _vqa_script(sample: Sample, speaker: Synthesiser, seed: int) -> Script | None:
    """Steps 1 to 3 of the paper; None for a sample they leave out."""
    row = _llava_row(sample)
    chosen = functools.partial(voice_of, speaker, seed)
    return next(sdvi.vqa_scripts([row] if row else [], chosen, speaker.answer_voice), None)


def _image_script(sample: Sample, speaker: Synthesiser, seed: int) -> Script:
    return sdvi.image_script(sample.meta["caption"], sample.images[0], functools.partial(voice_of, speaker, seed))


# LLaVA-OneVision's conversations; a few ask for a caption, or have no picture and are left out.
TAKES = {"svqa": ("vqa", "captioning", "text_qa"), "s2i": ("t2i",)}
SPOKEN = {"svqa": "questions about pictures (llava_onevision)", "s2i": "pictures with captions (blip3o_journeydb)"}
SCRIPTS: dict[str, Callable[[Sample, Synthesiser, int], Script | None]] = {"svqa": _vqa_script, "s2i": _image_script}


def _llava_row(sample: Sample) -> sdvi.Row | None:
    """The first question and answer of a sample about one picture, in LLaVA-OneVision's format."""
    turns = [message for message in sample.messages if message["role"] != "system"]
    if len(sample.images) != 1 or [turn["role"] for turn in turns[:2]] != ["user", "assistant"]:
        return None
    return {"image": sample.images[0], "data_source": str(sample.meta.get("source", "")), "conversations": [
        {"from": "human", "value": turns[0]["content"].replace(IMAGE, "")},
        {"from": "gpt", "value": turns[1]["content"]}]}


def voice_of(speaker: Synthesiser, seed: int, *key: str) -> str:
    """Who speaks a sample: depends on the seed and the sample, not on the others."""
    return sdvi.choose_voice(speaker.voices, seed, *map(os.path.basename, key))


def _spoken(script: Script | None, out: Path, speaker: Synthesiser, where: str, log: BrokenLog) -> Sample | None:
    """Step 4: the sample with its recordings, or None if one cannot be made."""
    log.saw(1)
    if script is None:
        return None
    sample, said = script
    try:
        sample.audios = [recording(text, voice, out, speaker) for text, voice in said]
    except (VoiceError, MediaError) as error:
        log.skip(where, str(error))
        return None
    return sample


def recording(text: str, voice: str, out: Path, speaker: Synthesiser) -> str:
    """`text` in `voice`, a file of its own under `out`, made unless it exists, written atomically; relative to `out`.

    Raises `VoiceError` or `MediaError` for what cannot be spoken.
    """
    name = f"audios/{hashlib.sha256(json.dumps([voice, text]).encode()).hexdigest()[:20]}.flac"
    if not (out / name).exists():
        wave = load_waveform(speaker.speak(text, voice))  # not silent, not longer than the encoder takes
        with written_whole(out / name) as partial:  # another process may be making it too
            wave.save(partial, "FLAC")
    return name


# --- going on ---------------------------------------------------------------------------------------------------------

def _resume(path: Path, about: dict) -> tuple[int, int]:
    """Source rows read and samples made; what a killed run wrote after its last note is cut off."""
    note = path.with_suffix(".json")
    if not note.exists():
        path.write_text("")
        return 0, 0
    state = json.loads(note.read_text())
    differ = [key for key in about if state.get(key) != about[key]]
    if differ:
        raise DataError(f"{path} was begun with another {' and '.join(differ)}: give another folder, or delete it")
    os.truncate(path, state["bytes"])
    return state["read"], state["made"]


def _note(path: Path, state: dict) -> None:
    write_json(path.with_suffix(".json"), state)
