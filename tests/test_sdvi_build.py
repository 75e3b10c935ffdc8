"""SDVI at scale: any synthesiser may speak, a killed run resumes, what cannot be spoken is left out."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from omnidiff_lite.chat import IMAGE, Sample, build_messages
from omnidiff_lite.cli import main
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.jsonl import read_samples
from omnidiff_lite.data.sdvi import build_sdvi, recording
from omnidiff_lite.media import Waveform
from omnidiff_lite.world import synthesisers
from omnidiff_lite.world.synthesisers import Espeak, synthesiser
from omnidiff_lite.world.voices import VoiceError


class Tone:
    """Stands in for a cloning synthesiser: each voice a pitch, each text a length."""

    voices, answer_voice = [f"clip{n}.wav" for n in range(5)], "fixed.wav"

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def speak(self, text: str, voice: str) -> Waveform:
        if text == "unspeakable":
            raise VoiceError("no words in 'unspeakable'")
        self.said.append((text, voice))
        return Waveform(np.sin(np.arange(1600 + 160 * len(text)) * (len(voice) + 1) / 50).astype(np.float32), 16000)


@pytest.fixture()
def asked(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def sample(question: str, answer: str) -> Sample:
        return Sample([{"role": "user", "content": f"{question}\n{IMAGE}"}, {"role": "assistant", "content": answer}],
                      [str(tmp_path / "a.png")], [], "vqa")

    return [sample("What is it?\nA. a cat\nB. a dog\nAnswer with the letter.", "B"), sample("What is 3 + 4?", "7"),
            sample("Who is it?", "unspeakable"), sample("Where?", " ".join(["far"] * 101)), sample("When?", "At noon.")]


def lenient() -> BrokenLog:
    return BrokenLog(share=1.0)


def test_spoken_vqa_by_the_papers_steps(asked, tmp_path):
    speaker, log = Tone(), lenient()
    samples = read_samples(build_sdvi("svqa", asked, tmp_path / "out", speaker, log=log))
    assert [(s.meta["question"], s.meta["answer"]) for s in samples] == [
        ("What is it?", "a dog"), ("When?", "At noon.")]
    assert all(s.task == "svqa" and len(s.audios) == 2 and len(s.images) == 1 for s in samples)
    assert [voice for text, voice in speaker.said if text in ("a dog", "At noon.")] == ["fixed.wav"] * 2
    assert list(log.known.values()) == ["no words in 'unspeakable'"]


def test_speech_to_image_with_espeak(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    drawn = [Sample([], [str(tmp_path / "a.png")], [], "t2i", {"caption": f"a small tree {n}"}) for n in range(3)]
    samples = read_samples(build_sdvi("s2i", drawn, tmp_path / "out", synthesiser(), n=2))
    assert [s.meta["caption"] for s in samples] == ["a small tree 0", "a small tree 1"] and samples[0].task == "s2i"
    assert len(Espeak().voices) == 1000, "as many as the paper's clips"


def test_a_killed_run_goes_on_and_ends_like_an_unbroken_one(asked, tmp_path):
    class Killed(Exception):
        pass

    class Tiring(Tone):
        def speak(self, text, voice):
            if text == "When?":
                raise Killed
            return super().speak(text, voice)

    Tiring.__name__ = "Tone"
    whole = build_sdvi("svqa", asked, tmp_path / "whole", Tone(), log=lenient())
    with pytest.raises(Killed):
        build_sdvi("svqa", asked, tmp_path / "killed", Tiring(), log=lenient())
    path = tmp_path / "killed/svqa.jsonl"
    assert len(path.read_text().splitlines()) == 1
    with path.open("a") as file:
        file.write('{"messages": [{"ro')  # cut short by the kill
    again = Tone()
    build_sdvi("svqa", asked, tmp_path / "killed", again, log=lenient())
    assert path.read_text() == whole.read_text()
    assert again.said[0][0] == "When?", "what was made before was not spoken again"
    assert build_sdvi("svqa", asked, tmp_path / "killed", Tone(), n=2, log=lenient()).read_text() == whole.read_text()


def test_a_voice_depends_on_the_sample_and_the_seed_alone(asked, tmp_path):
    rows = {name: [json.loads(line)["audios"] for line in
                   build_sdvi("svqa", samples, tmp_path / name, Tone(), seed=seed, log=lenient()
                              ).read_text().splitlines()]
            for name, samples, seed in (("all", asked, 0), ("last", asked[-1:], 0))}
    assert rows["all"][-1] == rows["last"][0]


def test_two_processes_may_make_one_recording_at_once(tmp_path, monkeypatch):
    """The second one begins and ends between the first one's writing and its renaming."""
    save, firsts = Waveform.save, [True, False]

    def meanwhile(wave, path, format=None):
        save(wave, path, format)
        if firsts.pop(0):
            recording("hi", "clip1.wav", tmp_path, Tone())

    monkeypatch.setattr(Waveform, "save", meanwhile)
    monkeypatch.setattr("os.getpid", itertools.count().__next__)
    name = recording("hi", "clip1.wav", tmp_path, Tone())
    assert [path.name for path in (tmp_path / "audios").iterdir()] == [name.removeprefix("audios/")]


def test_another_corpus_or_seed_or_task_is_refused(asked, tmp_path):
    build_sdvi("svqa", asked, tmp_path, Tone(), log=lenient(), corpus="llava in a")
    with pytest.raises(DataError, match="svqa.jsonl was begun with another seed: give another folder"):
        build_sdvi("svqa", asked, tmp_path, Tone(), seed=1, corpus="llava in a")
    with pytest.raises(DataError, match="svqa.jsonl was begun with another corpus: give another folder"):
        build_sdvi("svqa", asked, tmp_path, Tone(), corpus="llava in b")
    with pytest.raises(DataError, match="SDVI has no task 'asr'; choose one of svqa, s2i"):
        build_sdvi("asr", asked, tmp_path, Tone())


def test_samples_that_it_is_not_made_from_are_refused_and_so_is_a_result_of_nothing(asked, tmp_path):
    heard = Sample(build_messages("asr", answer="hm"), [], ["a.wav"], "asr", {"text": "hm"})
    for task, takes in (("svqa", "vqa, captioning, text_qa"), ("s2i", "t2i")):
        with pytest.raises(DataError, match=f"row 1: a sample of task 'asr', and {task} is made from {takes}; give"):
            build_sdvi(task, [heard], tmp_path, Tone())
    with pytest.raises(DataError, match="svqa.jsonl: none of the samples could be made into svqa; give questions"):
        build_sdvi("svqa", asked[1:2], tmp_path / "sums", Tone())
    with pytest.raises(DataError, match=r"none of the samples .*, or mend what .*unspoken\.jsonl names"):
        build_sdvi("svqa", asked[2:3], tmp_path / "dumb", Tone())


def test_a_synthesiser_comes_by_an_entry_point(monkeypatch):
    """As an installed package with CosyVoice2 in it would offer one."""
    point = SimpleNamespace(name="tone", load=lambda: Tone)
    monkeypatch.setattr(synthesisers, "entry_points",
                        lambda group: [point] if group == "omnidiff_lite.synthesisers" else [])
    assert isinstance(synthesiser("tone"), Tone) and isinstance(synthesiser(), Espeak)
    with pytest.raises(VoiceError, match="no synthesiser 'cosyvoice2'; there are espeak, tone"):
        synthesiser("cosyvoice2")


def test_the_command_speaks_a_corpus(tmp_path, capsys):
    import io
    import tarfile

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/JourneyDB_000.tar", "w") as tar:
        for name, data in (("1.jpg", buffer.getvalue()), ("1.txt", b"a red wall")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert main(["data", "--corpus", "blip3o_journeydb", str(tmp_path / "in"), "--sdvi", "s2i", "--out",
                 str(tmp_path / "sdvi")]) == 0
    sample, = read_samples(capsys.readouterr().out.strip())
    assert sample.meta["caption"] == "a red wall" and sample.images[0].startswith("tar:")
    (tmp_path / "in").rename(tmp_path / "other")
    assert main(["data", "--corpus", "blip3o_journeydb", str(tmp_path / "other"), "--sdvi", "s2i", "--out",
                 str(tmp_path / "sdvi")]) == 1
    assert "s2i.jsonl was begun with another corpus" in capsys.readouterr().err
