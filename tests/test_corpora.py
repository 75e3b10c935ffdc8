"""The paper's training data, each read from a small copy in its published layout, and from malformed ones."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from omnidiff_lite.chat import AUDIO, IMAGE
from omnidiff_lite.cli import main
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.corpora import corpora, corpus_table, read_corpus
from omnidiff_lite.data.corpus_files import KINDS
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.jsonl import read_samples
from omnidiff_lite.data.media import load_image_ref, load_speech_ref
from omnidiff_lite.media import Waveform
from omnidiff_lite.plan.data import TABLE_4


def wav(seconds: float = 0.2) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.tile([0.5, -0.5], int(8000 * seconds)), 16000, format="WAV")
    return buffer.getvalue()


def jpg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def put(root: Path, files: dict) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), path)
            continue
        if name.endswith(".tar"):
            with tarfile.open(path, "w") as tar:
                for member, inside in data.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(inside)
                    tar.addfile(info, io.BytesIO(inside))
            continue
        path.write_bytes(data.encode() if isinstance(data, str) else data)


SOUND, PICTURE = {"bytes": wav(), "path": "a.wav"}, {"bytes": jpg(), "path": "a.jpg"}
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
AUDIOQA = {"messages": [{"role": "user", "content": AUDIO}, {"role": "assistant", "content": f"Yes.\n{AUDIO}"}],
           "audios": ["datasets/VITA-MLLM/AudioQA-1M/q/wav/1.wav", "datasets/VITA-MLLM/AudioQA-1M/a/wav/1.wav"]}
GIGA = "aid,sid,path,text_tn\nA1,A1_S1,audio/a.opus,WELL <COMMA> YES <PERIOD>\n"
CV = "client_id\tpath\tsentence\tlocale\nc\tcv_1.mp3\tHe said \"no\".\ten\n"
VOX = "id\traw_text\tnormalized_text\tspeaker_id\nv1\tYes.\tyes\t7\n"
SMALL = {  # the files of one sample, and what is said, asked or answered in it
    "tulu3": ({"data/train-00000.parquet": [{"id": "1", "source": "s", "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}]}, "hello"),
    "laion2b": ({"00000.tar": {"000000001.jpg": jpg(), "000000001.json": b'{"status": "success"}',
                               "000000001.txt": b"a cat"}}, "a cat"),
    "llava_onevision": ({"ai2d/train-00000.parquet": [{"id": "1", "image": PICTURE, "data_source": "ai2d",
                                                       "conversations": TURNS}]}, "A cat."),
    "journeydb": ({"data/train/train_anno_realease_repath.jsonl": json.dumps(
        {"img_path": "./000/a.jpg", "prompt": "cat --v 4", "Task2": {"Caption": "a cat"}}),
        "data/train/imgs/000/a.jpg": jpg()}, "a cat"),
    "blip3o_journeydb": ({"JourneyDB_000.tar": {"x/1.jpg": jpg(), "x/1.txt": b"a cat"}}, "a cat"),
    "librispeech": ({"7/9/7-9.trans.txt": "7-9-0001 HE WENT\n", "7/9/7-9-0001.flac": wav()}, "HE WENT"),
    "common_voice": ({"en/train.tsv": CV, "en/clips/cv_1.mp3": wav()}, 'He said "no".'),
    "gigaspeech": ({"data/metadata/m_metadata_additional/m_chunks_0000_metadata.csv":
                    f"{GIGA}A1,A1_S2,audio/a.opus,<MUSIC>\n",
                    "data/audio/m_files_additional/m_chunks_0000/A1_S1.wav": wav()}, "WELL, YES."),
    "peoples_speech": ({"clean/train-00000.parquet": [{"id": "1", "audio": SOUND, "duration_ms": 200, "text": "hm"}]},
                       "hm"),
    "voxpopuli": ({"data/en/asr_train.tsv": VOX, "data/en/train/train_part_0/other.wav": wav(),
                   "data/en/train/train_part_1/v1.wav": wav()}, "yes"),
    "libritts": ({"7/9/7_9_1.normalized.txt": "He went.", "7/9/7_9_1.wav": wav()}, "He went."),
    "globe": ({"data/train-00000.parquet": [{"audio": SOUND, "speaker_id": "S1", "transcript": "Hm."}]}, "Hm."),
    "emilia": ({"Emilia/EN/EN-B000000.tar": {"EN_1.json": b'{"id": "EN_1", "text": "Hm.", "duration": 0.2}',
                                             "EN_1.mp3": wav()}}, "Hm."),
    "voiceassistant": ({"data/train-00000.parquet": [{"question": "Why?", "question_audio": SOUND, "answer": "So.",
                                                      "answer_snac": "# 1 2"}]}, "So."),
    "audioqa": ({"train.jsonl": json.dumps(AUDIOQA), "q/wav/1.wav": wav(), "a/wav/1.wav": wav()}, "Yes."),
}


@pytest.mark.parametrize("name", corpora())
def test_a_small_copy_in_the_published_layout_gives_the_kits_samples(tmp_path, name):
    files, words = SMALL[name]
    put(tmp_path, files)
    sample, = read_corpus(name, tmp_path)
    assert sample.task == corpora()[name].task
    text = "\n".join(message["content"] for message in sample.messages)
    assert words in text and "<image>" not in text
    assert text.count(IMAGE) == len(sample.images) and text.count(AUDIO) == len(sample.audios)
    assert all(load_image_ref(ref).size == (8, 8) for ref in sample.images)
    assert all(load_speech_ref(ref).seconds > 0.1 for ref in sample.audios)


def test_the_table_is_the_papers():
    """Names, tasks and stages agree with the plan's table 4, in which the in-house set and SDVI have no source."""
    ours = {corpus.title: (corpus.task, corpus.stages) for corpus in corpora().values()}
    for source in TABLE_4:
        if source.name == "in-house VQA" or source.name.startswith("SDVI"):
            continue
        assert ours[source.name] == (source.task, source.stages)
    text = corpus_table()
    for corpus in corpora().values():
        assert corpus.licence in text and corpus.fetch in text and corpus.bytes in text and corpus.size in text


BROKEN = {  # what is wrong: corpus, files in place of the good ones, message
    "no turns": ("tulu3", {"data/train-00000.parquet": [{"id": "1", "messages": None}]},
                 r"train-00000\.parquet, row 1: 'messages' is None, not a list of turns; give the file as published"),
    "a role": ("tulu3", {"data/train-00000.parquet": [{"messages": [{"role": "poet", "content": "a"}]}]},
               r"row 1: a turn is .*'poet'.*; it needs a role"),
    "no words": ("laion2b", {"00000.tar": {"1.jpg": jpg()}}, r"00000\.tar, sample 1: 'txt' is None, not a text"),
    "no picture": ("laion2b", {"00000.tar": {"1.txt": b"cat"}}, r"00000\.tar, sample 1: has no image in 'jpg'"),
    "no tar": ("blip3o_journeydb", {"JourneyDB_000.jpg": b"", "JourneyDB_000.tar": {}}, "holds no samples of blip3o"),
    "no bytes": ("llava_onevision", {"ai2d/train-00000.parquet": [{"image": {"bytes": None}, "conversations": TURNS}]},
                 r"row 1: has no image in 'image'"),
    "json": ("journeydb", {"data/train/train_anno_realease_repath.jsonl": '\n{"img_path": '},
             r"repath\.jsonl, line 2: not JSON"),
    "lost picture": ("journeydb", {"data/train/imgs/000/a.jpg": None},
                     r"repath\.jsonl, line 1: names .*imgs/000/a\.jpg, which is not there; "
                     r"unpack the archives beside it"),
    "transcript": ("librispeech", {"7/9/7-9.trans.txt": "7-9-0001 HE WENT\n7-9-0002\n"},
                   r"7-9\.trans\.txt, line 2: '7-9-0002' has no words"),
    "lost clip": ("common_voice", {"en/clips/cv_1.mp3": None},
                  r"train\.tsv, line 2: names .*cv_1\.mp3, which is not there"),
    "column": ("common_voice", {"en/train.tsv": "client_id\tsentence\nc\thm\n"},
               r"train\.tsv, line 2: has no column 'path'; give the file as published"),
    "short line": ("voxpopuli", {"data/en/asr_train.tsv": "id\traw_text\tnormalized_text\nv1\tYes\n"},
                   r"asr_train\.tsv, line 2: 'normalized_text' is None, not a text"),
    "lost segment": ("gigaspeech", {"data/audio/m_files_additional/m_chunks_0000/A1_S1.wav": None},
                     r"metadata\.csv, line 2: names .*A1_S1\.wav, which is not there"),
    "silence": ("peoples_speech", {"clean/train-00000.parquet": [{"audio": SOUND, "text": " "}]},
                r"row 1: 'text' is ' ', not a text"),
    "empty text": ("libritts", {"7/9/7_9_1.normalized.txt": " "}, r"7_9_1\.normalized\.txt: is empty"),
    "no transcript": ("globe", {"data/train-00000.parquet": [{"audio": SOUND}]}, r"row 1: 'transcript' is None"),
    "tar json": ("emilia", {"Emilia/EN/EN-B000000.tar": {"a.json": b"{", "a.mp3": wav()}},
                 r"EN-B000000\.tar, sample 1 \(a\.json\): not JSON"),
    "no answer": ("voiceassistant", {"data/train-00000.parquet": [{"question": "q", "question_audio": SOUND}]},
                  r"row 1: 'answer' is None"),
    "counts": ("audioqa", {"train.jsonl": json.dumps(AUDIOQA | {"audios": []})},
               r"train\.jsonl, line 1: 2 <\|audio\|> in the messages but 0 audios"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_malformed_copy_is_one_error_that_names_file_and_line_and_mend(tmp_path, fault):
    name, files, message = BROKEN[fault]
    put(tmp_path, SMALL[name][0])
    put(tmp_path, {path: data for path, data in files.items() if data is not None})
    for path in (path for path, data in files.items() if data is None):
        (tmp_path / path).unlink()
    with pytest.raises(DataError, match=message) as raised:
        list(read_corpus(name, tmp_path))
    assert "\n" not in str(raised.value)


def test_every_corpus_has_a_malformed_copy():
    assert {name for name, _, _ in BROKEN.values()} == set(corpora())


def test_an_unknown_name_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="no corpus 'tulu'; choose one of tulu3, laion2b"):
        read_corpus("tulu", tmp_path)
    with pytest.raises(DataError, match="no such folder; give the directory of tulu3: data/train-"):
        read_corpus("tulu3", tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no samples of emilia; it should hold Emilia/EN"):
        read_corpus("emilia", tmp_path)


TULU = SMALL["tulu3"][0]["data/train-00000.parquet"][0]
DRAWN = json.dumps({"img_path": "./000/a.jpg", "prompt": "cat", "Task2": {"Caption": "a cat"}})
GAPS = {  # kind: corpus, files with broken rows between good ones, how many are good, where the broken ones stand
    "parquet": ("tulu3", {"train-00000.parquet": [TULU, {"messages": []}, TULU]}, 2, ["train-00000.parquet, row 2"]),
    "jsonl": ("journeydb", {"data/train/train_anno_realease_repath.jsonl": f"{DRAWN}\n{{\n{DRAWN}\n",
                            "data/train/imgs/000/a.jpg": jpg()}, 2,
              ["data/train/train_anno_realease_repath.jsonl, line 2"]),
    "tsv": ("common_voice", {"en/train.tsv": f"{CV}c\tlost.mp3\tHm.\ten\nc\tcv_1.mp3\tYes.\ten\n",
                             "en/clips/cv_1.mp3": wav()}, 2, ["en/train.tsv, line 3"]),
    "csv": ("gigaspeech", {"data/metadata/m_metadata_additional/m_chunks_0000_metadata.csv":
                           f"{GIGA}A1,A1_S2,audio/a.opus,HM\nA1,A1_S1,audio/a.opus,YES\n",
                           "data/audio/m_files_additional/m_chunks_0000/A1_S1.wav": wav()}, 2,
            ["data/metadata/m_metadata_additional/m_chunks_0000_metadata.csv, line 3"]),
    "tar": ("laion2b", {"00000.tar": {"1.jpg": jpg(), "1.txt": b"a cat", "2.jpg": jpg(), "3.jpg": jpg(),
                                      "3.txt": b"a cat"}}, 2, ["00000.tar, sample 2"]),
    "librispeech": ("librispeech", {
        "7/8/7-8-0001.flac": wav(), "7/9/7-9.trans.txt": "7-9-0001 HE\n7-9-0002\n7-9-0003 HM\n7-9-0005 WENT\n",
        "7/9/7-9-0001.flac": wav(), "7/9/7-9-0002.flac": wav(), "7/9/7-9-0004.flac": wav(), "7/9/7-9-0005.flac": wav()},
        2, ["7/8", "7/9/7-9-0004.flac", "7/9/7-9.trans.txt, line 2", "7/9/7-9.trans.txt, line 3"]),
    "libritts": ("libritts", {
        "7/8/a.txt": "", "7/9/7_9_1.normalized.txt": "He.", "7/9/7_9_1.wav": wav(), "7/9/7_9_2.normalized.txt": " ",
        "7/9/7_9_2.wav": wav(), "7/9/7_9_3.normalized.txt": "Hm.", "7/9/7_9_4.wav": wav(),
        "7/9/7_9_5.normalized.txt": b"\xff", "7/9/7_9_5.wav": wav(), "7/9/7_9_6.normalized.txt": "Went.",
        "7/9/7_9_6.wav": wav()}, 2,
        ["7/8", "7/9/7_9_4.wav", *(f"7/9/7_9_{n}.normalized.txt" for n in (2, 3, 5))]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_broken_rows_may_be_skipped_and_are_named(tmp_path, kind):
    name, files, good, broken = GAPS[kind]
    assert corpora()[name].kind == kind
    put(tmp_path / "in", files)
    log = BrokenLog(tmp_path / "broken.jsonl")
    assert len(list(read_corpus(name, tmp_path / "in", log=log))) == good
    assert list(log.known) == [str(tmp_path / "in" / where) for where in broken] and log.seen == good + len(broken)
    assert all(str(tmp_path / "in") in reason for reason in log.known.values())
    with pytest.raises(DataError, match=f"{len(broken)} samples are broken and {len(broken) - 1} are allowed"):
        list(read_corpus(name, tmp_path / "in", log=BrokenLog(most=len(broken) - 1)))


def test_what_stands_after_a_limit_is_not_checked(tmp_path):
    put(tmp_path, GAPS["parquet"][1])
    assert len(list(read_corpus("tulu3", tmp_path, limit=1))) == 1


def test_the_command_lists_and_writes(tmp_path, capsys):
    assert main(["data", "--list"]) == 0
    assert "curl -LO https://www.openslr.org/resources/12/train-clean-100.tar.gz" in capsys.readouterr().out
    put(tmp_path / "libri", SMALL["librispeech"][0])
    assert main(["data", "--corpus", "librispeech", str(tmp_path / "libri"), "--out", str(tmp_path / "out")]) == 0
    sample, = read_samples(tmp_path / "out/samples.jsonl")
    assert sample.task == "asr" and sample.meta["speaker"] == "7"
    assert main(["data", "--task", "asr"]) == 1 and "give --out" in capsys.readouterr().err


def test_subsets_with_tables_of_one_name_keep_their_own_pictures(tmp_path):
    row = SMALL["llava_onevision"][0]["ai2d/train-00000.parquet"][0]
    put(tmp_path, {f"{colour}/train-00000.parquet": [row | {"image": {"bytes": jpg(colour), "path": "a.jpg"}}]
                   for colour in ("red", "blue")})
    blue, red = (load_image_ref(sample.images[0]).getpixel((4, 4))
                 for sample in read_corpus("llava_onevision", tmp_path))
    assert red[0] > 200 > red[2] and blue[2] > 200 > blue[0]
