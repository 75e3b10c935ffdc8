"""Real benchmarks' files as published: what is read from each, how the rows are scored, and every fault's message.

The directories are made here, with a few rows each, in the layouts of the published archives.
"""

import io
import json
import sys
from dataclasses import dataclass

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from omnidiff_lite.chat import AUDIO, IMAGE, task_of
from omnidiff_lite.cli import command_line
from omnidiff_lite.data.benchmark_coco import CAPTIONS, TASKS, as_task, respoken
from omnidiff_lite.data.benchmark_files import BENCHMARKS, BenchmarkError, read_benchmark, tasks_of
from omnidiff_lite.data.benchmark_vision import SEED_FILE, SUBTASKS
from omnidiff_lite.data.jsonl import read_samples, write_samples
from omnidiff_lite.evaluation.benchmarks import _PROTOCOLS, benchmark_text, evaluate_benchmark
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.likelihood import evaluate_choices
from omnidiff_lite.evaluation.requests import Settings, media_refs, reference_images, reference_speech, requests_of
from omnidiff_lite.evaluation.speech import evaluate_asr
from omnidiff_lite.evaluation.vision import evaluate_mme, evaluate_pope, evaluate_seed_bench
from omnidiff_lite.media import Image, Speech, Text, Waveform
from omnidiff_lite.world.voices import parse_speech
from omnidiff_lite.world.voices import test_voices as voices_of_tests

QUICK = Settings(bootstrap=50)
ASK = " Please answer yes or no."


def file(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), "green").save(path)


def recording(path):
    Waveform(np.full(3200, 0.1, np.float32), 16000).save(path)


@dataclass
class Reply:
    text: str | None = None
    speech: Waveform | None = None
    image: PIL.Image.Image | None = None
    ids: tuple[int, ...] = ()


class Model:
    """Gives the answers it was made with, in order."""

    def __init__(self, *texts):
        self.answers = [Reply(text) for text in texts]

    def generate_many(self, requests, to, task=None, decoding=None, seed=0, batch_size=16):
        assert len(requests) == len(self.answers)
        return self.answers


def scores(evaluated):
    records, _ = evaluated
    return {record.column: record.value for record in records}


# --- LibriSpeech and LibriTTS -----------------------------------------------------------------------------------------


@pytest.fixture
def librispeech(tmp_path):
    """Two speakers; the transcript's order is not the order of the ids."""
    for name in ("121/1/121-1-0000", "121/1/121-1-0001", "61/7/61-7-0000"):
        recording(tmp_path / f"{name}.flac")
    file(tmp_path / "121/1/121-1.trans.txt", "121-1-0001 A HOUSE\n121-1-0000 A RED LEAF\n")
    file(tmp_path / "61/7/61-7.trans.txt", "61-7-0000 NO\n")
    return tmp_path


def test_librispeech_is_recognition(librispeech):
    rows = read_benchmark("librispeech", librispeech)
    assert [row.meta["id"] for row in rows] == ["121-1-0000", "121-1-0001", "61-7-0000"]
    first = rows[0]
    assert first.messages == [{"role": "user", "content": f"Convert the speech to text.\n{AUDIO}"},
                              {"role": "assistant", "content": "A RED LEAF"}]
    assert (first.task, first.images, first.audios) == ("asr", [], [str(librispeech / "121/1/121-1-0000.flac")])
    assert first.meta == {"id": "121-1-0000", "speaker": "121", "text": "A RED LEAF", "answer": "A RED LEAF"}
    assert isinstance(requests_of(rows)[0][0], Speech) and task_of(first.messages) == "asr"


def test_librispeechs_rows_are_scored_without_regard_to_case(librispeech):
    model = Model("a red leaf", "the house", "no")
    assert scores(evaluate_asr(model, read_benchmark("librispeech", librispeech), QUICK))["asr_wer"] == pytest.approx(
        100 / 6)


@pytest.fixture
def libritts(tmp_path):
    for name, text in (("5_6_000001_000000", "Mister Hall said so."), ("5_6_000000_000001", "Well!")):
        recording(tmp_path / f"5/6/{name}.wav")
        file(tmp_path / f"5/6/{name}.normalized.txt", text)
        file(tmp_path / f"5/6/{name}.original.txt", text.replace("Mister", "Mr."))
    file(tmp_path / "5/6/5_6.trans.tsv", "not read")
    return tmp_path


def test_libritts_is_synthesis_and_its_recordings_are_the_ceiling(libritts):
    rows = read_benchmark("libritts", libritts)
    assert [row.meta["text"] for row in rows] == ["Well!", "Mister Hall said so."]
    assert rows[1].messages == [
        {"role": "user", "content": "Convert the text to speech.\nMister Hall said so."},
        {"role": "assistant", "content": AUDIO}]
    assert media_refs(rows[1], "assistant")[1] == [str(libritts / "5/6/5_6_000001_000000.wav")]
    assert requests_of(rows) == [[Text("Well!")], [Text("Mister Hall said so.")]], "the recording is not asked with"
    assert [wave.seconds for wave in reference_speech(rows)] == [0.2, 0.2]


# --- POPE -------------------------------------------------------------------------------------------------------------


def pope_line(number, label, image="COCO_val2014_000000310196.jpg", thing="dog"):
    return json.dumps({"question_id": number, "image": image, "text": f"Is there a {thing} in the image?",
                       "label": label})


@pytest.fixture
def pope(tmp_path):
    picture(tmp_path / "val2014/COCO_val2014_000000310196.jpg")
    for strategy in ("random", "popular", "adversarial"):
        lines = [pope_line(number, label) for number, label in enumerate(("yes", "no", "yes", "no"), start=1)]
        file(tmp_path / f"coco_pope_{strategy}.json", "\n".join(lines) + "\n")
    return tmp_path


def test_popes_strategies_follow_each_other(pope):
    rows = read_benchmark("pope", pope)
    assert [row.meta["id"] for row in rows[::4]] == ["random/1", "popular/1", "adversarial/1"]
    first = rows[0]
    assert first.messages[0]["content"] == f"Is there a dog in the image?\n{IMAGE}"
    assert first.images == [str(pope / "val2014/COCO_val2014_000000310196.jpg")] and first.task == "vqa"
    assert first.meta == {"id": "random/1", "strategy": "random", "kind": "existence", "answer": "yes", "choices": [],
                          "question": "Is there a dog in the image?", "text": "Is there a dog in the image?"}


def test_popes_pictures_may_lie_elsewhere(pope, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("coco")
    (pope / "val2014").rename(elsewhere / "val2014")
    rows = read_benchmark("pope", pope, part="popular", pictures=elsewhere / "val2014")
    assert len(rows) == 4 and rows[0].images == [str(elsewhere / "val2014/COCO_val2014_000000310196.jpg")]


def test_popes_five_figures_from_its_rows(pope):
    rows = read_benchmark("pope", pope, part="adversarial")
    assert scores(evaluate_pope(Model("Yes.", "no", "no", "neither"), rows, QUICK)) == pytest.approx(
        {"pope_accuracy": 50, "pope_precision": 100, "pope_recall": 50, "pope_f1": 200 / 3, "pope_yes": 25})


# --- MME --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mme(tmp_path):
    """Two pictures a subtask; posters to artwork keep pictures and texts apart, as the published archive does."""
    for subtask in SUBTASKS:
        apart = subtask in ("posters", "celebrity", "scene", "landmark", "artwork")
        for name in ("0002", "0001"):
            picture(tmp_path / subtask / ("images" if apart else "") / f"{name}{'.jpg' if apart else '.png'}")
            file(tmp_path / subtask / ("questions_answers_YN" if apart else "") / f"{name}.txt",
                 f"Is this a {subtask}?{ASK}\tYes\nIs this a stone?{ASK}\tNo\n\n")
    return tmp_path


@pytest.mark.parametrize("subtask, image", [("count", "count/0001.png"), ("scene", "scene/images/0001.jpg")])
def test_mmes_two_layouts(mme, subtask, image):
    rows = read_benchmark("mme", mme, part=subtask)
    assert [row.meta["id"] for row in rows] == [f"{subtask}/{n}" for n in ("0001/1", "0001/2", "0002/1", "0002/2")]
    assert [row.meta["answer"] for row in rows] == ["yes", "no", "yes", "no"]
    assert rows[0].images == rows[1].images == [str(mme / image)]
    assert rows[0].messages == [{"role": "user", "content": f"Is this a {subtask}?{ASK}\n{IMAGE}"},
                                {"role": "assistant", "content": "yes"}]
    assert rows[0].meta["kind"] == subtask and rows[0].task == "vqa"


def test_mmes_subtasks_stand_in_their_published_order(mme):
    assert [row.meta["kind"] for row in read_benchmark("mme", mme)[::4]] == list(SUBTASKS)


def test_mmes_accuracy_and_accuracy_plus_from_its_rows(mme):
    """All right but one of the four questions of count: 75 % of its questions, 50 % of its pictures."""
    rows = read_benchmark("mme", mme)
    answers = [row.meta["answer"] for row in rows]
    answers[4] = "I cannot see"
    found = scores(evaluate_mme(Model(*answers), rows, QUICK))
    assert (found["mme_count"], found["mme_OCR"], found["mme_p"]) == (125, 200, 9 * 200 + 125)


# --- SEED-Bench-2-Plus ------------------------------------------------------------------------------------------------


def seed_question(number, answer, spelling=str.lower, **changes):
    choices = {f"choice_{spelling(letter)}": f"{letter} street" for letter in "ABCD"}
    return {"question_id": str(number), "data_id": "text_rich/1.png", "question": "Where is it?", "answer": answer,
            "question_image_type": "map", "data_type": "Single Image", **choices, **changes}


@pytest.fixture
def seed(tmp_path):
    picture(tmp_path / "text_rich/1.png")
    file(tmp_path / SEED_FILE, json.dumps({"questions": [seed_question(0, "B"), seed_question(1, "d")]}))
    return tmp_path


def test_seed_bench_offers_lettered_choices(seed):
    first, second = read_benchmark("seed2plus", seed)
    text = "Where is it?\nA. A street\nB. B street\nC. C street\nD. D street\nAnswer with the letter."
    assert first.messages[0]["content"] == f"{text}\n{IMAGE}" and first.images == [str(seed / "text_rich/1.png")]
    assert first.meta == {"id": "0", "kind": "map", "question": "Where is it?", "text": text, "answer": "B",
                          "choices": ["A street", "B street", "C street", "D street"]}
    assert second.meta["answer"] == "D"


def test_seed_bench_may_be_a_bare_list_with_capital_keys(seed):
    before = read_benchmark("seed2plus", seed)
    file(seed / SEED_FILE, json.dumps([seed_question(0, "B", str.upper), seed_question(1, "D", str.upper)]))
    assert read_benchmark("seed2plus", seed) == before


def test_seed_benchs_dimension_stands_in_for_a_missing_kind(seed):
    row = seed_question(0, "A", question_type_id=28)
    del row["question_image_type"]
    file(seed / SEED_FILE, json.dumps([row]))
    assert read_benchmark("seed2plus", seed)[0].meta["kind"] == "28"


def test_seed_benchs_accuracy_from_its_rows(seed):
    rows = read_benchmark("seed2plus", seed)
    assert scores(evaluate_seed_bench(Model("(b) B street", "A"), rows, QUICK)) == {"seed2plus": 50}


# --- MMMU -------------------------------------------------------------------------------------------------------------


def png():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def mmmu_row(number, answer="B", pictures=1, **changes):
    images = {f"image_{k}": {"bytes": png(), "path": f"{k}.png"} if k <= pictures else None for k in range(1, 8)}
    return {"id": f"validation_Art_Theory_{number}", "question": "Who made <image 1>?", "answer": answer,
            "options": "['Ann', \"O'Hara\"]", "question_type": "multiple-choice", **images, **changes}


MMMU_ROWS = [mmmu_row(1), mmmu_row(2, "7", question_type="open", options="[]"),
             mmmu_row(3, "A", 2, question="Which of <image 1> and <image 2> is older?")]


@pytest.fixture
def mmmu(tmp_path):
    """A subject's folder, with the rows given and another part that is not read."""
    def put(*rows):
        file(tmp_path / "Art_Theory/dev-00000-of-00001.parquet", "")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows),
                                    tmp_path / "Art_Theory/validation-00000-of-00001.parquet")
        return tmp_path

    return put


def test_mmmus_pictures_are_unpacked_and_its_open_questions_have_no_choices(mmmu):
    root = mmmu(*MMMU_ROWS)
    first, middle, second = read_benchmark("mmmu", root)
    assert (middle.meta["answer"], middle.meta["choices"], middle.meta["text"]) == ("7", [], "Who made <image 1>?")
    assert first.meta == {
        "id": "validation_Art_Theory_1", "kind": "Art_Theory", "question": "Who made <image 1>?", "answer": "B",
        "text": "Who made <image 1>?\nA. Ann\nB. O'Hara\nAnswer with the letter.", "choices": ["Ann", "O'Hara"]}
    assert first.images == [str(root / "pictures/validation_Art_Theory_1_1.png")]
    assert second.images == [str(root / f"pictures/validation_Art_Theory_3_{k}.png") for k in (1, 2)]
    assert second.messages[0]["content"].endswith(f"letter.\n{IMAGE}\n{IMAGE}")
    assert [type(part) for part in requests_of([second])[0]] == [Text, Image, Image]
    assert scores(evaluate_seed_bench(Model("B", "B"), [first, second], QUICK)) == {"seed2plus": 50}


def test_mmmus_pictures_are_written_once_and_again_where_unfinished(mmmu, tmp_path_factory):
    root, pictures = mmmu(*MMMU_ROWS), tmp_path_factory.mktemp("unpacked")
    path = pictures / "validation_Art_Theory_1_1.png"
    read_benchmark("mmmu", root, 1, pictures=pictures)
    assert list(pictures.iterdir()) == [path], "what stands after the limit is not unpacked"
    written = path.stat().st_mtime_ns
    read_benchmark("mmmu", root, 1, pictures=pictures)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(png()[:20])
    read_benchmark("mmmu", root, 1, pictures=pictures)
    assert path.read_bytes() == png()


def test_mmmu_may_be_given_by_its_subject_and_must_be_whole(mmmu):
    root = mmmu(*MMMU_ROWS)
    rows = read_benchmark("mmmu", root)
    assert [row.meta["answer"] for row in rows] == ["B", "7", "A"]
    assert read_benchmark("mmmu", root / "Art_Theory", pictures=root / "pictures") == rows
    file(root / "Art_Theory/validation-00000-of-00001.parquet", "PAR1 and no more")
    with pytest.raises(BenchmarkError, match="of-00001.parquet: not a readable parquet file .*download it again"):
        read_benchmark("mmmu", root)


def test_mmmu_without_pyarrow_names_the_mend(tmp_path, monkeypatch):
    file(tmp_path / "validation-00000-of-00001.parquet", "")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BenchmarkError, match="reading parquet needs pyarrow; pip install pyarrow"):
        read_benchmark("mmmu", tmp_path)


MMMU_FAULTS = {
    "letter": ({"answer": "C"}, r"row 1: the answer 'C' is outside A\.\.B, the letters of its choices"),
    "options": ({"options": "Ann, Bob"}, "row 1: options is 'Ann, Bob', not a Python list of choices"),
    "named picture": ({"question": "What is <image 2>?"}, "row 1: has no picture in image_2, which its text needs"),
    "no picture": ({"image_1": None, "question": "What is it?"}, "row 1: has no picture in image_1"),
    "column": ({"id": None}, "row 1: 'id' is None, not a text"),
}


@pytest.mark.parametrize("fault", MMMU_FAULTS)
def test_a_fault_in_mmmu(mmmu, fault):
    changes, message = MMMU_FAULTS[fault]
    with pytest.raises(BenchmarkError, match=rf"of-00001\.parquet, {message}"):
        read_benchmark("mmmu", mmmu(mmmu_row(1, **changes)))


def test_mmmus_pictures_need_a_folder_that_can_be_written(mmmu):
    root = mmmu(*MMMU_ROWS)
    file(root / "taken", "a file where a folder should be")
    with pytest.raises(BenchmarkError, match="row 1: its picture cannot be unpacked .*can be written as `pictures`"):
        read_benchmark("mmmu", root, pictures=root / "taken")


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco_file(images=(73, 42), captions=((73, "A motorcycle  parked\n on gravel. "), (42, "A pair of shoes."),
                                         (73, "An old bike."), (42, "A dog on shoes"))):
    return json.dumps({"info": {}, "licenses": [], "images": [
        {"id": number, "file_name": f"COCO_val2014_{number:0>12}.jpg", "height": 8, "width": 8} for number in images],
        "annotations": [{"id": n, "image_id": number, "caption": text} for n, (number, text) in enumerate(captions)]})


@pytest.fixture
def coco(tmp_path):
    """Two pictures with two captions each, in no order."""
    for number in (42, 73):
        picture(tmp_path / f"val2014/COCO_val2014_{number:012d}.jpg")
    file(tmp_path / CAPTIONS, coco_file())
    return tmp_path


def test_cocos_pictures_stand_by_id_with_all_their_captions(coco):
    first, second = read_benchmark("coco", coco)
    assert first.messages == [{"role": "user", "content": f"Describe the image in detail.\n{IMAGE}"},
                              {"role": "assistant", "content": "A pair of shoes."}]
    assert (first.task, first.images) == ("captioning", [str(coco / "val2014/COCO_val2014_000000000042.jpg")])
    assert {key: first.meta[key] for key in ("id", "captions", "caption", "answer", "tasks")} == {
        "id": "42", "captions": ["A pair of shoes.", "A dog on shoes"], "caption": "A pair of shoes.",
        "answer": "A pair of shoes.", "tasks": list(TASKS)}
    assert second.meta["captions"] == ["A motorcycle parked on gravel.", "An old bike."]
    assert "scene" not in first.meta, "a photograph's scene is not known"


def test_a_picture_of_coco_serves_three_tasks(coco):
    row = read_benchmark("coco", coco)[0]
    drawn, spoken = as_task(row, "t2i"), as_task(row, "s2i")
    assert requests_of([drawn]) == [[Text("A pair of shoes.")]] and as_task(row, "captioning") is row
    assert [type(part) for part in requests_of([spoken])[0]] == [Speech]
    words, voice = parse_speech(spoken.audios[0])
    assert words == "A pair of shoes." and voice in voices_of_tests()
    assert reference_images([drawn])[0].size == reference_images([spoken])[0].size == (8, 8)


def test_cocos_captions_may_be_said_by_another_speaker(coco, tmp_path_factory):
    class Speaker:
        voices, said = ("ann", "bob"), []

        def speak(self, text, voice):
            self.said.append((text, voice))
            return Waveform(np.full(3200, 0.1, np.float32), 16000)

    speaker, out = Speaker(), tmp_path_factory.mktemp("spoken")
    rows = respoken(read_benchmark("coco", coco, part="s2i"), speaker, out)
    assert [text for text, _ in speaker.said] == ["A pair of shoes.", "A motorcycle parked on gravel."]
    assert all(requests_of([as_task(row, "s2i")])[0][0].load().seconds == 0.2 for row in rows)
    assert respoken(rows, speaker, out) == rows and len(speaker.said) == 2, "said once"


# --- faults of the files ----------------------------------------------------------------------------------------------


def remove(path):
    return lambda root: (root / path).unlink()


def write(path, text):
    return lambda root: file(root / path, text)


FAULTS = {  # benchmark, what is done to its directory, the message
    "line without flac": ("librispeech", remove("121/1/121-1-0001.flac"),
                          r"121-1\.trans\.txt, line 1: 121-1-0001\.flac is not there; unpack the archive again"),
    "flac without line": ("librispeech", write("61/7/61-7-0001.flac", ""),
                          r"61-7-0001\.flac: has no text beside it; unpack the archive again"),
    "line without words": ("librispeech", write("61/7/61-7.trans.txt", "61-7-0000\n"),
                           r"61-7\.trans\.txt, line 1: '61-7-0000' has no words; a line is an id, a space"),
    "no transcript": ("librispeech", remove("61/7/61-7.trans.txt"),
                      r"61-7\.trans\.txt: is not there; give the folder of one split"),
    "id twice": ("librispeech", write("61/7/61-7.trans.txt", "61-7-0000 NO\n61-7-0000 YES\n"),
                 r"line 2: the id '61-7-0000' stands twice, first in .*61-7\.trans\.txt, line 1; keep one of them"),
    "not UTF-8": ("librispeech", lambda root: (root / "61/7/61-7.trans.txt").write_bytes(b"61-7-0000 \xff"),
                  r"61-7\.trans\.txt: cannot be read \('utf-8'"),
    "text without wav": ("libritts", remove("5/6/5_6_000000_000001.wav"),
                         r"000001\.normalized\.txt: 5_6_000000_000001\.wav is not there; unpack"),
    "wav without text": ("libritts", remove("5/6/5_6_000000_000001.normalized.txt"),
                         r"5_6_000000_000001\.wav: has no text beside it"),
    "empty text": ("libritts", write("5/6/5_6_000000_000001.normalized.txt", "\n"), r"normalized\.txt: is empty"),
    "empty chapter": ("libritts", lambda root: (root / "5/7").mkdir(),
                      r"5/7: holds neither texts nor \.wav files; give the folder of one split"),
    "no strategy": ("pope", remove("coco_pope_popular.json"),
                    r"coco_pope_popular\.json: is not there; give the folder that holds POPE's"),
    "malformed line": ("pope", write("coco_pope_random.json", pope_line(1, "yes") + "\n{\n"),
                       r"coco_pope_random\.json, line 2: not JSON"),
    "no object": ("pope", write("coco_pope_random.json", "[1]"), r"random\.json, line 1: a list, not an object"),
    "no key": ("pope", write("coco_pope_random.json", '{"image": ""}'), r"line 1: 'image' is '', not a text"),
    "maybe": ("pope", write("coco_pope_random.json", pope_line(1, "maybe")),
              r"random\.json, line 1: the answer 'maybe' is neither yes nor no"),
    "no COCO picture": ("pope", write("coco_pope_random.json", pope_line(1, "yes", "b.jpg")),
                        r"random\.json, line 1: names .*b\.jpg, which is not there; give COCO's val2014"),
    "question twice": ("pope", write("coco_pope_random.json", pope_line(1, "yes") + "\n" + pope_line(1, "no")),
                       r"line 2: the id 'random/1' stands twice, first in .*random\.json, line 1"),
    "no subtask": ("mme", lambda root: (root / "OCR").rename(root / "ocr2"),
                   "OCR: no such folder; give the folder that holds MME's subtasks: existence, count"),
    "empty subtask": ("mme", lambda root: [path.unlink() for path in (root / "count").glob("*.txt")],
                      r"count: holds no questions; MME has one \.txt file a picture"),
    "half a pair": ("mme", write("count/0001.txt", f"One?{ASK}\tYes\n"),
                    r"0001\.txt: holds 1 question; MME asks two a picture"),
    "three questions": ("mme", write("count/0001.txt", "One?\tYes\n" * 3), r"0001\.txt: holds 3 questions;"),
    "no tab": ("mme", write("count/0001.txt", "One? Yes\nTwo? No\n"),
               r"0001\.txt, line 1: is not a question, a tab and Yes or No"),
    "neither": ("mme", write("scene/questions_answers_YN/0002.txt", "One?\tYes\nTwo?\tTwo\n"),
                r"0002\.txt, line 2: the answer 'Two' is neither yes nor no"),
    "no MME picture": ("mme", remove("scene/images/0002.jpg"),
                       r"0002\.txt: names .*images/0002\.jpg, which is not there; the picture may end in \.jpg, \.png"),
    "no SEED file": ("seed2plus", remove(SEED_FILE), rf"{SEED_FILE}: is not there; give the folder that holds"),
    "no list": ("seed2plus", write(SEED_FILE, "{}"), "holds no list of questions"),
    "letter": ("seed2plus", write(SEED_FILE, json.dumps([seed_question(0, "E")])),
               r"question 1: the answer 'E' is outside A\.\.D, the letters of its choices"),
    "no choice": ("seed2plus", write(SEED_FILE, json.dumps([seed_question(0, "A", choice_c=None)])),
                  "question 1: 'choice_c' is None"),
    "no SEED picture": ("seed2plus", remove("text_rich/1.png"),
                        r"question 1: names .*text_rich/1\.png, which is not there; unpack text_rich\.zip"),
    "SEED id twice": ("seed2plus", write(SEED_FILE, json.dumps([seed_question(0, "A")] * 2)),
                      "question 2: the id '0' stands twice, first in .*question 1"),
    "no questions": ("seed2plus", write(SEED_FILE, "[]"), "holds no rows of seed2plus; it should hold questions in"),
    "no captions": ("coco", remove(CAPTIONS), r"captions_val2014\.json: is not there; give the folder that holds anno"),
    "broken captions": ("coco", write(CAPTIONS, coco_file()[:90]), r"captions_val2014\.json: not JSON .*again"),
    "captions of nothing": ("coco", write(CAPTIONS, "[]"), r"captions_val2014\.json: holds no list of images; unpack"),
    "no annotations": ("coco", write(CAPTIONS, '{"images": []}'), "holds no list of annotations; unpack annotations"),
    "unknown picture": ("coco", write(CAPTIONS, coco_file(captions=[(7, "A dog.")])),
                        "annotation 1: a caption of the picture 7, which is not among the images; unpack annotations"),
    "picture without words": ("coco", write(CAPTIONS, coco_file(captions=[(42, "A dog.")])),
                              "image 1: the picture 73 has no caption; unpack annotations"),
    "empty caption": ("coco", write(CAPTIONS, coco_file(captions=[(42, "\n")])), r"annotation 1: 'caption' is '\\n'"),
    "picture twice": ("coco", write(CAPTIONS, coco_file(images=(73, 42, 73))),
                      "image 3: the id 73 stands twice, first in .*image 1; unpack"),
    "no number": ("coco", write(CAPTIONS, coco_file(images=("x",))), "image 1: 'id' is 'x', not a whole number"),
    "no photograph": ("coco", remove("val2014/COCO_val2014_000000000073.jpg"),
                      r"image 1: names .*0073\.jpg, which is not there; unpack val2014\.zip beside annotations/"),
}
FIXTURES = {"seed2plus": "seed"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_its_place_and_the_mend(fault, request):
    name, spoil, message = FAULTS[fault]
    directory = request.getfixturevalue(FIXTURES.get(name, name))
    read_benchmark(name, directory)  # fine before the fault
    spoil(directory)
    with pytest.raises(BenchmarkError, match=message) as raised:
        read_benchmark(name, directory)
    assert "\n" not in str(raised.value) and isinstance(raised.value, ValueError)


# --- the call itself --------------------------------------------------------------------------------------------------


def test_the_call_names_what_does_not_fit(pope, mme, librispeech):
    with pytest.raises(BenchmarkError, match="no benchmark 'popes'; choose one of librispeech, libritts, pope, mme"):
        read_benchmark("popes", pope)
    with pytest.raises(BenchmarkError, match="no part 'rare' of pope; choose one of random, popular, adversarial"):
        read_benchmark("pope", pope, part="rare")
    with pytest.raises(BenchmarkError, match="no part 'clean' of librispeech; leave it out"):
        read_benchmark("librispeech", librispeech, part="clean")
    with pytest.raises(BenchmarkError, match="mme has no pictures apart from its own directory; leave `pictures` out"):
        read_benchmark("mme", mme, pictures=mme)
    with pytest.raises(BenchmarkError, match="limit is 0; give a positive number$"):
        read_benchmark("pope", pope, 0)
    with pytest.raises(BenchmarkError, match="limit is 3; give a positive number, an even one: MME scores two"):
        read_benchmark("mme", mme, 3)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_or_empty_directory(name, tmp_path):
    with pytest.raises(BenchmarkError, match=f"nowhere: no such folder; give the directory of {name}: "):
        read_benchmark(name, tmp_path / "nowhere")
    message = rf"{tmp_path.name}.*(holds no rows of {name}|is not there|no such folder); "
    with pytest.raises(BenchmarkError, match=message):
        read_benchmark(name, tmp_path)


@pytest.mark.parametrize("name, limit", [("librispeech", 2), ("libritts", 1), ("pope", 5), ("mme", 6),
                                         ("seed2plus", 1), ("coco", 1)])
def test_a_limit_takes_the_first_rows_of_a_fixed_order(name, limit, request):
    directory = request.getfixturevalue(FIXTURES.get(name, name))
    rows = read_benchmark(name, directory)
    assert read_benchmark(name, directory, limit) == rows[:limit]
    assert read_benchmark(name, str(directory), 10**6) == rows


def test_the_rows_are_rows_of_the_released_format(pope, tmp_path_factory):
    """They survive a jsonl file, from which `omnidiff evaluate --data` reads them."""
    rows = read_benchmark("pope", pope)
    assert read_samples(write_samples(rows, tmp_path_factory.mktemp("jsonl"))) == rows


# --- one call a benchmark ---------------------------------------------------------------------------------------------


class Ear:
    """Hears "well" in every recording."""

    def transcribe(self, waves):
        return ["well" for _ in waves]


def values(name, rows, *texts):
    """{(row, column): value} of one benchmark, by a model that writes `texts` and is silent."""
    judges = Judges(recognition=Ear(), clip_t=None, clip_i=None)
    return {(r.row, r.column): r.value for r in evaluate_benchmark(name, Model(*texts), judges, rows, QUICK)}


def test_libritts_shows_what_skipping_silent_answers_hides(libritts):
    found = values("libritts", read_benchmark("libritts", libritts), "", "")
    assert found["diffusion", "tts_wer"] == found["diffusion", "tts_silent"] == 100
    assert found["diffusion, silent answers skipped", "tts_wer"] is None, "nothing is left"
    assert found["real data (ceiling)", "tts_wer"] == pytest.approx(80), "4 of 5 words are not well"


def test_every_strategy_of_pope_has_its_five_figures(pope):
    rows = [row for row in read_benchmark("pope", pope) if row.meta["strategy"] == "adversarial"]
    found = values("pope", rows, "yes", "no", "no", "yes")
    assert len(found) == 5 and all(column.startswith("pope_adversarial_") for _, column in found)


def test_a_subtasks_points_are_not_mmes(mme):
    rows = read_benchmark("mme", mme, part="color")
    records = evaluate_benchmark("mme", Model("yes", "no", "no", "no"), None, rows, QUICK)
    assert [(r.column, r.value) for r in records] == [("mme_color", 125)], "the sum of one of ten is no MME-P"
    shown = benchmark_text(records)
    assert "ours: MME color, of 200 ↑" in shown and "paper-v1:" not in shown
    rows = read_benchmark("mme", mme)
    found = {r.column: r.value for r in evaluate_benchmark(
        "mme", Model(*(row.meta["answer"] for row in rows)), None, rows, QUICK)}
    assert len(found) == 11 and found["mme_p"] == 2000


def test_mmmu_says_how_many_questions_it_leaves_out(mmmu):
    several = mmmu_row(4, "A", 2, question="Which of <image 1> and <image 2> is older?")
    rows = read_benchmark("mmmu", mmmu(*MMMU_ROWS, several))
    record, = evaluate_benchmark("mmmu", Model("B"), None, rows, QUICK)
    assert (record.column, record.value, record.n) == ("mmmu_val", 100, 1)
    assert record.reason == "of 4 questions left out: 1 open, 2 with several pictures"
    assert "[of 4 questions left out: 1 open, 2 with several pictures] n=1 |" in benchmark_text([record])
    assert evaluate_benchmark("mmmu", Model("B"), None, rows[:1], QUICK)[0].reason == "", "nothing is left out"
    with pytest.raises(ValueError, match=r"choices and one picture \(of 3 questions left out: 1 open, 2 with several"):
        values("mmmu", rows[1:])


class Eye:
    """A text scores 1 beside a red picture, else 0; pictures score 1 beside their like."""

    def similarity(self, texts, images):
        return np.array([float(image.getpixel((0, 0)) == (255, 0, 0)) for image in images])

    def image_similarity(self, a, b):
        return np.array([float(x.getpixel((0, 0)) == y.getpixel((0, 0))) for x, y in zip(a, b)])


class Artist(Model):
    """Draws red; a caption is the first picture's second one."""

    def __init__(self):
        self.asked = []

    def generate_many(self, requests, to, task=None, decoding=None, seed=0, batch_size=16):
        self.asked.append((task, to, decoding))
        return [Reply("A dog on shoes", image=PIL.Image.new("RGB", (8, 8), "red")) for _ in requests]


def test_seed_bench_is_scored_by_letter_and_by_likelihood(seed, tiny_model):
    rows = read_benchmark("seed2plus", seed)
    records = evaluate_benchmark("seed2plus", tiny_model, None, rows, Settings(bootstrap=50, batch=4))
    assert [r.column for r in records] == ["seed2plus_letter", "seed2plus_likelihood", "seed2plus_words",
                                           "seed2plus_words_error", "seed2plus_words_unsure"]
    found = {r.column: r.value for r in records}
    assert all(r.n == 2 and r.table == "table2_vision" for r in records) and found["seed2plus_words_error"] > 0
    assert found["seed2plus_likelihood"] == evaluate_choices(tiny_model, rows, QUICK)[0][0].value
    assert "paper-v1: SEED-2-Plus % ↑" in benchmark_text(records)


def test_cocos_three_tasks_are_scored_without_a_scene(coco):
    PIL.Image.new("RGB", (8, 8), "red").save(coco / "val2014/COCO_val2014_000000000073.jpg", "PNG")
    artist, eye = Artist(), Eye()
    records = evaluate_benchmark("coco", artist, Judges(None, eye, eye), read_benchmark("coco", coco), QUICK)
    found = {(r.row, r.column): r.value for r in records}
    assert [(task, to) for task, to, _ in artist.asked] == [("captioning", "text"), ("t2i", "image"), ("s2i", "image")]
    assert {r.table for r in records} == {"table2_vision"} and all(r.n == 2 for r in records)
    assert found.keys() == {("diffusion", "caption_bleu4"), ("diffusion", "caption_cider"), *(
        (row, f"{prefix}{column}") for row in ("diffusion", "real data (ceiling)") for prefix in ("", "s2i_")
        for column in ("clip_t", "clip_i", "image_missing"))}
    assert found["diffusion", "clip_t"] == 1 and found["diffusion", "s2i_clip_i"] == 0.5
    assert found["real data (ceiling)", "clip_t"] == 0.5 and found["real data (ceiling)", "s2i_clip_i"] == 1
    assert found["diffusion", "caption_bleu4"] > 0, "any of a picture's captions is right"


def test_settings_of_decoding_go_to_their_task(coco, libritts):
    artist, settings = Artist(), {"captioning": {}, "t2i": {"steps": 4}, "s2i": {"steps": 8}}
    evaluate_benchmark("coco", artist, Judges(None, Eye(), Eye()), read_benchmark("coco", coco), QUICK, settings)
    assert [decoding for *_, decoding in artist.asked] == [None, {"steps": 4}, {"steps": 8}]
    artist = Artist()
    rows = read_benchmark("libritts", libritts)
    evaluate_benchmark("libritts", artist, Judges(Ear(), None, None), rows, QUICK, {"tts": {"steps": 0.125}})
    assert artist.asked == [("tts", "speech", {"steps": 0.125})]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmarks_tasks_are_those_that_its_rows_are_asked_as(name, request):
    if name == "mmmu":
        rows = read_benchmark(name, request.getfixturevalue(name)(*MMMU_ROWS))
    else:
        rows = read_benchmark(name, request.getfixturevalue(FIXTURES.get(name, name)))
    assert {task for row in rows for task in row.meta.get("tasks", [row.task])} == set(tasks_of(name))
    assert tasks_of("coco", "s2i") == ("s2i",) and tasks_of("mme", "color") == ("vqa",)


def test_a_part_of_coco_is_one_task(coco):
    artist = Artist()
    rows = read_benchmark("coco", coco, part="captioning")
    records = evaluate_benchmark("coco", artist, Judges(None, None, None), rows, QUICK)
    assert {r.column for r in records} == {"caption_bleu4", "caption_cider"} and len(artist.asked) == 1


def test_the_papers_rows_are_those_of_the_same_columns(librispeech, coco):
    shown = benchmark_text(evaluate_benchmark("librispeech", Model("a", "b", "c"), None,
                                              read_benchmark("librispeech", librispeech), QUICK))
    assert "paper-v1: LibriSpeech WER" in shown and "GLM-4-Voice" in shown and "LibriTTS" not in shown
    assert "CosyVoice" not in shown, "it reports none of the columns"
    judges = Judges(None, Eye(), Eye())
    for part, reported in (("t2i", True), ("s2i", False)):
        rows = read_benchmark("coco", coco, part=part)
        shown = benchmark_text(evaluate_benchmark("coco", Artist(), judges, rows, QUICK))
        assert ("| Omni-Diffusion | 0.235 | 0.667 |" in shown) == ("paper-icml: CLIP-I" in shown) == reported


def test_each_reader_has_a_protocol():
    assert set(_PROTOCOLS) == set(BENCHMARKS)
    for name in BENCHMARKS:  # the command's own list of names: it prints its help without these modules
        assert command_line().parse_args(["benchmark", name, "."]).name == name
