"""The command line: help that fits a screen with an example, errors in one line, a user's own folder end to end."""

import json

import numpy as np
import PIL.Image
import pytest
from known import JUDGES, KnownModel, Reply

from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.cli import COMMANDS, command_line, main
from omnidiff_lite.cli_registry import overrides
from omnidiff_lite.data.shards import read_shards
from omnidiff_lite.evaluation.records import read_records


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"example: omnidiff {name}" in text and len(text.splitlines()) <= 40


def test_broken_samples_are_allowed_to_each_process_that_trains(capsys):
    """`tokenize` counts those of all its workers together."""
    for name, each in (("train", True), ("tokenize", False)):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert ("allowed in each process that trains" in " ".join(capsys.readouterr().out.split())) == each


@pytest.fixture
def results(tmp_path, monkeypatch, tiny_preset, tiny_tokenizers):
    """A results folder with tokenizers in it, and a preset file of their sizes."""
    import yaml

    from omnidiff_lite.config import to_dict

    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path / "results"))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**to_dict(tiny_preset), "name": "tiny"}))
    tiny_tokenizers.save_pretrained(Artifacts.of("tiny").tokenizers)
    return path


def test_a_users_own_folder_is_tokenized_and_trained_on(results, tmp_path, capsys):
    """World samples written as files stand in for a user's recordings and pictures; then the same without meta."""
    for task in ("captioning", "asr"):
        assert main(["data", "--task", task, "--n", "4", "--out", str(tmp_path / task)]) == 0
        jsonl = tmp_path / task / "samples.jsonl"
        rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
        jsonl.write_text("".join(json.dumps({k: r[k] for k in ("messages", "images", "audios")}) + "\n" for r in rows))
        assert main(["tokenize", str(jsonl), "--preset", str(results), "--out", str(tmp_path / f"{task}-ids")]) == 0
    samples = read_shards([tmp_path / "asr-ids"])
    assert list(samples) == ["asr"] and all(len(s.frames) > 4 for s in samples["asr"].fetch(range(4)))

    capsys.readouterr()
    change = ["--set", "training.stage1.steps=2", "--set", "training.stage1.mix.text_qa=0",
              "--set", "training.stage1.rows=2", "--set", "training.stage1.mix.t2i=0"]
    files = [str(tmp_path / f"{task}-ids") for task in ("captioning", "asr")]
    assert main(["train", "--preset", str(results), "--stage", "1", "--data", *files, *change]) == 0
    assert "last loss" in capsys.readouterr().out
    assert list((Artifacts.of("tiny").work / "train").glob("stage1-*/denoiser/model.safetensors"))
    (origin,) = (Artifacts.of("tiny").work / "train").glob("stage1-*/provenance.json")
    assert json.loads(origin.read_text())["overrides"]["training.stage1.mix.t2i"] == 0
    assert main(["train", "--preset", str(results), "--stage", "1", "--data", *files, *change]) == 0, "it resumes"
    raw = str(tmp_path / "captioning" / "samples.jsonl")
    assert main(["train", "--preset", str(results), "--stage", "1", "--data", raw, "--fresh", *change]) == 0


def test_a_timing_is_shown_and_filed_under_its_own_name(results, capsys):
    """Two runs that differ in precision leave two files."""
    for dtype in ("bfloat16", "float32"):
        assert main(["bench", "--preset", str(results), "--dtype", dtype, "--tasks", "tts", "--repeats", "1"]) == 0
        assert "text-to-speech, 0.5L steps" in capsys.readouterr().out
    files = sorted(Artifacts.of("tiny").metrics.glob("*.json"))
    assert [path.name for path in files] == ["bench_tiny_cpu_bfloat16.json", "bench_tiny_cpu_float32.json"]
    assert {r.provenance["dtype"] for r in read_records(files[1])} == {"float32"}


def test_a_denoiser_of_ones_own_is_scored_in_the_checkpoints_system(tmp_path, monkeypatch, capsys):
    """On the shipped smoke checkpoint: settings reach the decoding, and all of it the records' provenance."""
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(CLONE / "results"))
    own, out = CLONE / "results/smoke/checkpoint/denoiser", tmp_path / "scores.json"
    asked = ["evaluate", "text_qa", "--items", "3", "--set", "decoding.text_qa.steps=1", "--out", str(out)]
    assert main([*asked, "--denoiser", str(own)]) == 0
    record, = read_records(out)
    assert (record.column, record.n, record.provenance["task"]) == ("text_qa_right", 3, "text_qa")
    assert record.provenance["overrides"] == {"decoding.text_qa.steps": 1}
    assert record.provenance["denoiser"] == str(own)
    capsys.readouterr()
    assert main([*asked, "--denoiser", str(CLONE / "results/cpu/checkpoint/denoiser")]) == 1
    assert "the denoiser has" in capsys.readouterr().err
    assert main([*asked, "--denoiser", str(tmp_path)]) == 1 and str(tmp_path) in capsys.readouterr().err


@pytest.fixture
def pope(tmp_path):
    """Two questions of POPE about one picture."""
    (tmp_path / "pope" / "val2014").mkdir(parents=True)
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "pope" / "val2014" / "a.jpg")
    (tmp_path / "pope" / "coco_pope_popular.json").write_text("".join(json.dumps(
        {"question_id": n, "image": "a.jpg", "text": "Is there a dog?", "label": label}) + "\n"
        for n, label in enumerate(("yes", "no"))))
    return tmp_path / "pope"


def test_a_benchmark_is_shown_beside_the_paper_and_filed_as_an_evaluation_is(results, pope, monkeypatch, capsys):
    model = KnownModel(Reply("yes"), Reply("yes"))
    monkeypatch.setattr("omnidiff_lite.evaluation.suite.finished_system", lambda preset, artifacts: (model, JUDGES))
    out = pope / "out" / "pope.json"
    assert main(["benchmark", "pope", str(pope), "--part", "popular", "--preset", str(results), "--out", str(out),
                 "--set", "decoding.vqa.steps=3"]) == 0
    shown = capsys.readouterr().out
    assert model.calls[0]["decoding"] == {"steps": 3}
    head, *rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("|")]
    assert head[1:3] == ["paper-v1: POPE % ↑", "paper-icml: POPE % ↑"] and head[3].startswith("ours: pope popular acc")
    (ours,) = [row for row in rows if row[0] == "| Omni-Diffusion"]
    assert ours[1:3] == ["76.6", "76.4"] and ours[3].startswith("50.0 [") and ours[3].endswith(" n=2")
    assert "on the benchmark's own files" in shown and shown.endswith(f"{out}\n")
    records = read_records(out)
    assert len(records) == 5 and {r.source for r in records} == {"ours"}, "the paper's rows are not ours to file"
    origin = records[0].provenance
    assert (origin["preset"], origin["benchmark"], origin["part"]) == ("tiny", "pope", "popular")
    assert origin["overrides"] == {"decoding.vqa.steps": 3} and origin["libraries"]["torch"]


@pytest.mark.parametrize("arguments, words", [
    (["bench", "--preset", "laptop"], "no preset 'laptop'"),
    (["bench", "--dtype", "int8"], "choose one of bfloat16"),
    (["bench", "--device", "meta"], "on cpu or cuda"),
    (["reproduce", "--preset", "laptop"], "no preset 'laptop'"),
    (["train", "--stage", "2"], "run notebook 03"),
    (["train", "--stage", "1"], "run notebook 02"),
    (["train", "--stage", "1", "--set", "training.gama=1"], "did you mean 'gamma'"),
    (["table", "1"], "07_table1_speech"),
    (["table", "1", "--preset", "nonsense"], "no preset 'nonsense'"),
    (["train", "--stage", "1", "--set", "training.gamma=["], "is no value"),
    (["evaluate", "asr"], "run notebook 05"),
    (["evaluate", "asr", "--set", "decoding.asr.stepz=4"], "unknown key 'stepz'; did you mean 'steps'"),
    (["evaluate", "asr", "--set", "decoding.asr.temperature=-1"], "temperature: expected at least 0"),
    (["evaluate", "asr", "--set", "training.gamma=0.3"], "training.gamma has no effect on evaluating asr"),
    (["train", "--stage", "1", "--set", "training.gamma=3"], "training.gamma: expected 0 to 1, got 3"),
    (["ablate", "no_such_study"], "no study 'no_such_study'"),
    (["ablate", "steps_speech"], "run notebook 05"),
    (["ablate", "tail_pads", "--set", "training.stage1.rows=0"], "training.stage1.rows: expected at least 1"),
    (["benchmark", "pope", "nowhere"], "nowhere: no such folder; give the directory of pope"),
    (["benchmark", "libritts", "nowhere", "--set", "decoding.tts.stepz=4"], "unknown key 'stepz'; did you mean"),
    (["benchmark", "libritts", "nowhere", "--set", "decoding.asr.steps=4"],
     "decoding.asr.steps has no effect on evaluating tts: change keys of evaluation, judges or decoding.tts"),
    (["benchmark", "pope", "nowhere", "--set", "world.max_seconds=4"], "world.max_seconds has no effect on"),
    (["benchmark", "coco", "nowhere", "--part", "t2i", "--set", "decoding.s2i.steps=4"],
     "no effect on evaluating t2i:"),
    (["benchmark", "coco", "nowhere", "--part", "vqa"], "no part 'vqa' of coco; choose one of captioning, t2i, s2i"),
    (["benchmark", "coco", "nowhere", "--part", "t2i", "--speaker", "ann"], "which is not asked for; leave it out"),
    (["generate"], "no input"),
    (["generate", "--text", "hi"], "make reproduce"),
    (["tokenize", "no.jsonl", "--out", "x.safetensors"], "no.jsonl"),
])
def test_errors_are_one_line_with_the_mend(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith(f"omnidiff {arguments[0]}: ")


@pytest.mark.parametrize("arguments", [
    ["data", "--task", "asr", "--n", "-3"], ["evaluate", "asr", "--items", "-1"],
    ["benchmark", "pope", "x", "--items", "0"], ["bench", "--items", "0"], ["bench", "--repeats", "0"],
    ["ablate", "steps_speech", "--seeds", "0"]])
def test_a_number_of_nothing_is_refused(capsys, arguments):
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"argument {arguments[-2]}: expected at least" in capsys.readouterr().err


def test_a_changed_value_may_have_spaces_in_it():
    options = command_line().parse_args(["train", "--stage", "1", "--set", "evaluation.steps=[64, 16]", "--set",
                                         "judges.recognition=my models/whisper", "--set", "training.gamma=0.3"])
    assert overrides(options) == {"evaluation.steps": [64, 16], "judges.recognition": "my models/whisper",
                                  "training.gamma": 0.3}


def test_a_users_own_references_are_read_off_the_messages():
    from omnidiff_lite.chat import Sample, build_messages
    from omnidiff_lite.evaluation.suite import with_references

    sample = with_references(Sample(build_messages("vqa", "what is it", answer="a ring"), ["a.png"], task="vqa"))
    assert sample.meta["answer"] == "a ring" and sample.meta["question"] == "what is it"
    assert with_references(Sample(build_messages("t2i", "a ring", answer=""), ["a.png"], task="t2i")
                           ).meta["caption"] == "a ring"
    assert np.all(with_references(Sample([], meta={"answer": "kept"})).meta["answer"] == "kept")
