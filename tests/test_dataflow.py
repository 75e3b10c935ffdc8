"""Data at full size: rows by number from files, the stream over ranks and workers, broken samples, vanished shards."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
import toys

from omnidiff_lite.chat import build_messages
from omnidiff_lite.data import media, tokenize
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.errors import DataError, GoneError
from omnidiff_lite.data.packing import WINDOW, PackedStream, pack_row
from omnidiff_lite.data.raw import Encoder, raw_samples
from omnidiff_lite.data.rows import open_rows
from omnidiff_lite.data.shards import read_shards, write_index, write_shard
from omnidiff_lite.data.sources import open_samples
from omnidiff_lite.data.tokenize import tokenize_files
from omnidiff_lite.media import Waveform
from omnidiff_lite.training.batches import answer_weights
from omnidiff_lite.training.feed import feeding, save_position
from omnidiff_lite.training.trainer import train_stage

SIZES, LENGTH = (32, 16), 96
PARTS = toys.ToyParts()
IDS = {"pad": PARTS.vocabulary.pad, "context_of_audio": PARTS.vocabulary.context_of_audio}


def text_row(number: int) -> dict:
    return {"messages": build_messages("text_qa", f"q{number}", f"a{number}")}


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture()
def folder(tmp_path):
    """20 written questions, and 12 recordings with their words; told apart by their numbers."""
    (tmp_path / "clips").mkdir()
    rows = []
    for number in range(12):
        loud = (number + 1) / 16
        Waveform(np.tile(np.float32([loud, -loud]), 1600), 16000).save(tmp_path / f"clips/{number}.wav")
        rows.append({"messages": build_messages("asr", answer=f"w{number}"), "audios": [f"clips/{number}.wav"]})
    lines(tmp_path / "speech.jsonl", rows)
    lines(tmp_path / "text.jsonl", [text_row(number) for number in range(20)])
    return tmp_path


def sources(folder: Path, workers: int = 0, log: BrokenLog | None = None):
    return raw_samples([folder / "text.jsonl", folder / "speech.jsonl"], Encoder(PARTS, SIZES, workers),
                       log or BrokenLog())


def stream(data, seed: int = 0, rows: int = 4) -> PackedStream:
    return PackedStream(data, {"text_qa": 0.5, "asr": 0.5}, LENGTH, rows, seed, max_tail_pads=4, **IDS)


def same(ours, theirs) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in zip(ours, theirs, strict=True)
               for name in ("input_ids", "labels", "segment_ids", "frames"))


# --- rows of a file ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ending", ["\n", "", "\r\n"])
def test_lines_are_found_by_number_and_blank_ones_passed_over(tmp_path, ending):
    path = tmp_path / "a.jsonl"
    first, second, third = (json.dumps(text_row(number)) for number in range(3))
    path.write_bytes(f"{first}\n \t \n{second}\r\n\r\n{third}{ending}  ".encode())
    rows = open_rows(path)
    assert [rows.sample(n).messages[0]["content"] for n in (2, 0, 1)] == ["q2", "q0", "q1"] and len(rows) == 3
    assert rows.where(2) == f"{path}, line 5"


def test_lines_longer_than_a_block_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("omnidiff_lite.data.rows.BLOCK", 7)
    rows = open_rows(lines(tmp_path / "a.jsonl", [text_row(0), " " * 20, *[text_row(n) for n in range(1, 5)], "", " "]))
    assert len(rows) == 5 and rows.where(1).endswith("line 3")
    assert [rows.sample(n).messages[1]["content"] for n in range(5)] == [f"a{n}" for n in range(5)]


def test_a_malformed_line_is_named(tmp_path):
    rows = open_rows(lines(tmp_path / "a.jsonl", [text_row(0), '{"messages": [']))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON .*write one complete object a line"):
        rows.sample(1)


def shard(path: Path, groups: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in groups.items():
            for ending, data in members.items():
                info = tarfile.TarInfo(f"part/{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def picture(red: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def captioned(key: str, name: str = "png") -> bytes:
    return json.dumps({"messages": build_messages("captioning", answer=key), "images": [f"{key}.{name}"]}).encode()


def test_a_tar_shards_samples_are_read_without_unpacking(tmp_path):
    path = shard(tmp_path / "s.tar", {key: {"json": captioned(key), "png": picture(red)} for key, red in
                                      (("a", 10), ("b", 20), ("c", 30))})
    rows = open_rows(path)
    assert len(rows) == 3 and rows.sample(1).messages[1]["content"] == "b"
    encoded = Encoder(PARTS, SIZES).encode([rows.sample(n) for n in (2, 0)])
    assert [set(PARTS.vocabulary.codes_of_image(e.ids)) for e in encoded] == [{30}, {10}]


@pytest.mark.parametrize("members, message", [
    ({"png": b""}, r"sample 1: has no \.json member among part/a\.png; give its messages"),
    ({"json": captioned("a", "jpg"), "png": b""}, r"sample 1: images names 'a\.jpg', which is not among its members"),
    ({"json": b"{"}, r"sample 1 \(part/a\.json\): not JSON")])
def test_a_tar_shards_faults_are_named(tmp_path, members, message):
    with pytest.raises(DataError, match=r"s\.tar, " + message):
        open_rows(shard(tmp_path / "s.tar", {"a": members})).sample(0)


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"s\.tar: not a readable tar file .*make or fetch the shard again"):
        open_rows(tmp_path / "s.tar")


# --- the stream -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_rows_with_nothing_lost_and_nothing_twice(folder, ranks):
    whole = stream(sources(folder))
    parts = [stream(sources(folder)) for _ in range(ranks)]
    for step in range(3):
        rows = {n: row for rank, part in enumerate(parts) for own in [range(rank, 4, ranks)]
                for n, row in zip(own, part.batch(step, own), strict=True)}
        assert sorted(rows) == [0, 1, 2, 3] and same([rows[n] for n in range(4)], whole.batch(step))


def test_every_sample_comes_once_an_epoch(folder):
    times = Counter((d.task, d.index) for row in stream(sources(folder))._window(0) for d in row)
    assert len(times) == 32
    for task, size in (("text_qa", 20), ("asr", 12)):
        counts = [n for (of, _), n in times.items() if of == task]
        assert {n - WINDOW // 2 // size for n in counts} <= {0, 1} and sum(counts) == WINDOW // 2


def test_workers_change_nothing(folder, monkeypatch):
    alone = stream(sources(folder)).batch(0)
    monkeypatch.setattr(media, "load_speech_ref", lambda *_: pytest.fail("decoded in this process"))  # not in workers
    assert same(stream(sources(folder, workers=2)).batch(0), alone)


def test_a_killed_worker_stops_the_stream_and_no_sample_is_to_blame(folder):
    log = BrokenLog()
    media._pool(2)[0].submit(os.getpid).result()
    media._pool(2)[0].submit(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(DataError, match="was killed .*memory"):
        stream(sources(folder, workers=2, log=log)).batch(0)
    assert not log.known


def test_order_depends_on_the_seed_alone(folder):
    assert stream(sources(folder)).draws(5) == stream(sources(folder)).draws(5)
    assert stream(sources(folder)).draws(5) != stream(sources(folder), seed=1).draws(5)


def test_shards_in_memory_and_raw_give_the_same_rows(folder):
    """Of written samples, whose length is known exactly beforehand."""
    tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES, shard_rows=7)
    shards, raw = read_shards([folder / "ids"]), sources(folder)
    held = {"text_qa": raw["text_qa"].fetch(range(20))}
    rows = [PackedStream(data, {"text_qa": 1}, 64, 4, 0, max_tail_pads=4, **IDS).batch(3)
            for data in (shards, raw, held)]
    assert same(rows[0], rows[1]) and same(rows[0], rows[2])


def test_a_position_leads_to_the_same_rows_without_the_windows_before(folder, tmp_path):
    unbroken, data = stream(sources(folder), rows=1), sources(folder)
    far = len(unbroken._window(0)) + len(unbroken._window(1)) + 3  # in the third window
    save_position(tmp_path, far, unbroken.position(far))
    later = stream(data, rows=1)
    measured = []
    for task in data:
        object.__setattr__(later.data[task], "measure",
                           lambda n, pad, real=data[task].measure: measured.append(len(n)) or real(n, pad))
    with feeding(later, [0], far, far + 2, tmp_path) as feed:
        assert same(feed.rows(far) + feed.rows(far + 1), unbroken.batch(far) + unbroken.batch(far + 1))
    assert sum(measured) == WINDOW, "two windows were not planned again"


def test_a_feed_gives_any_step_and_raises_what_reading_raises(folder):
    straight = stream(sources(folder))
    with feeding(stream(sources(folder)), [0, 2], 0, 9, folder) as feed:
        for step in (0, 1, 2, 7, 3):
            assert same(feed.rows(step), straight.batch(step, [0, 2]))
        (folder / "text.jsonl").unlink()
        with pytest.raises(GoneError, match=r"text\.jsonl: the file is gone .*put it back and run again"):
            for step in range(4, 9):
                feed.rows(step)


def test_training_from_shards_resumes_in_mid_epoch_like_an_unbroken_run(tmp_path):
    samples = [sample for of_task in toys.datasets().values() for sample in of_task]
    shards = [tmp_path / f"shard-{n}.safetensors" for n in range(4)]
    for n, path in enumerate(shards):
        write_shard(path, samples[n::4], toys.VOCABULARY.pad, {})
    write_index(tmp_path, shards, {})

    def run(out: str, stop: int | None = None):
        return train_stage(toys.preset(), 1, toys.denoiser(), read_shards([tmp_path]), tmp_path / out, progress=False,
                           stop_after=stop)

    whole = run("whole")
    run("stopped", 3)
    resumed = run("stopped")
    assert whole["loss"].tolist() == resumed["loss"].tolist() and len(resumed) == 6
    assert (whole["tokens"] > 0).all() and whole["efficiency"].between(0.5, 1).all()


def test_the_log_tells_how_long_a_step_waited_for_data(tmp_path, monkeypatch):
    """Rows come a second late; the first step has none that were made ahead."""
    real = PackedStream.batch
    monkeypatch.setattr(PackedStream, "batch", lambda *args: (time.sleep(1), real(*args))[1])
    log = train_stage(toys.preset(), 1, toys.denoiser(), toys.datasets(), tmp_path, progress=False).iloc[0]
    assert log["data_seconds"] >= 1 and log["data_share"] == pytest.approx(log["data_seconds"] / log["seconds"])


# --- broken samples ---------------------------------------------------------------------------------------------------

def test_broken_samples_are_named_and_left_out(folder):
    (folder / "clips/3.wav").write_bytes(b"no sound")
    with (folder / "clips/5.wav").open("r+b") as file:
        file.truncate(44 + 100)  # the header promises more: found during decoding
    lines(folder / "text.jsonl", [text_row(0), "{", text_row(1)])
    log = BrokenLog(folder / "broken.jsonl", most=10, share=0.9)
    packed = stream(sources(folder, log=log))
    for step in range(8):
        packed.batch(step)
    known = [json.loads(line) for line in (folder / "broken.jsonl").read_text().splitlines()]
    assert {Path(entry["where"].split(",")[0]).name + entry["where"].split(",")[1] for entry in known} == {
        "speech.jsonl line 4", "speech.jsonl line 6", "text.jsonl line 2"}
    assert any("3.wav: not a readable recording" in entry["reason"] for entry in known)
    assert BrokenLog(folder / "broken.jsonl").known == {e["where"]: e["reason"] for e in known}, (
        "a resumed run knows them")


def test_each_process_has_a_log_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    BrokenLog(tmp_path / "broken.jsonl").skip("a.jsonl, line 1", "is silent")
    assert [path.name for path in tmp_path.iterdir()] == ["broken-2.jsonl"]


def test_past_the_limits_the_run_stops_with_the_cause():
    number = BrokenLog(most=2, share=1.0)
    number.saw(1000)
    for n in range(2):
        number.skip(f"a.jsonl, line {n}", "is silent")
    number.skip("a.jsonl, line 0", "is silent")  # known already
    with pytest.raises(DataError, match=r"3 samples are broken and 2 are allowed, "
                                        r"the last one a.jsonl, line 7: no picture"):
        number.skip("a.jsonl, line 7", "no picture")
    share = BrokenLog(share=0.01)
    share.saw(99)
    share.skip("a.jsonl, line 1", "is silent")
    share.saw(1)
    with pytest.raises(DataError, match=r"2 of 100 samples are broken and a share of 0\.01 is allowed"):
        share.skip("a.jsonl, line 2", "is silent")


# --- tokenize ---------------------------------------------------------------------------------------------------------

def test_tokenize_keeps_finished_shards_and_makes_the_rest(folder):
    out = folder / "ids"
    index = tokenize_files([folder / "text.jsonl", folder / "speech.jsonl"], out, toys.ToyParts, SIZES, shard_rows=5)
    assert [entry["samples"] for entry in index["shards"]] == [5, 5, 5, 5, 5, 5, 2]
    assert index["shards"][4]["tasks"] == {"asr": 5}
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    (out / "index.json").unlink()
    (out / "shard-00002.safetensors").unlink()
    (out / "shard-00006.safetensors.123.partial").write_bytes(b"cut")  # what a killed process leaves
    again = tokenize_files([folder / "text.jsonl", folder / "speech.jsonl"], out, toys.ToyParts, SIZES, shard_rows=5)
    assert again == index
    kept = {path.name for path in out.glob("shard-*.safetensors") if path.stat().st_mtime_ns == before[path.name]}
    assert kept == before.keys() - {"shard-00002.safetensors"}


def test_a_killed_run_leaves_no_worker_and_goes_on(folder):
    """Killed in the midst of the work, by a signal that nothing can catch."""
    script = folder / "run.py"
    script.write_text(textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import toys
        from omnidiff_lite.data.tokenize import tokenize_files

        class Slow(toys.ToyParts):
            def _frames(self, waves, batch_size):
                time.sleep(600 * bool(self.seen))  # each worker makes one shard, and is at work on its second
                return super()._frames(waves, batch_size)

        if __name__ == "__main__":
            tokenize_files([{str(folder / 'speech.jsonl')!r}], {str(folder / 'ids')!r}, Slow, (32, 16), processes=2,
                           shard_rows=2)
    """))
    owner = subprocess.Popen([sys.executable, script])
    wait_until(lambda: list((folder / "ids").glob("shard-*.safetensors")), 300)
    workers = psutil.Process(owner.pid).children(recursive=True)
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers),
               60)
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "ids").glob("shard-*.safetensors")}
    assert 0 < len(made) <= 2 and not (folder / "ids/index.json").exists()
    index = tokenize_files([folder / "speech.jsonl"], folder / "ids", toys.ToyParts, SIZES, shard_rows=2)
    assert sum(entry["samples"] for entry in index["shards"]) == 12
    assert all((folder / "ids" / name).stat().st_mtime_ns == when for name, when in made.items()), "they were kept"
    assert len(read_shards([folder / "ids"])["asr"]) == 12


def test_workers_that_load_media_end_with_a_killed_owner(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent("""
        import os, time
        from omnidiff_lite.data import media

        if __name__ == "__main__":
            print(media._pool(2)[0].submit(os.getpid).result(), flush=True)
            time.sleep(600)
    """))
    owner = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.communicate()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 60)


class Killed(toys.ToyParts):
    """In a worker, the second shard ends it as a lack of memory would."""

    def _frames(self, waves, batch_size):
        if self.seen and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._frames(waves, batch_size)


def test_a_killed_worker_is_named_and_the_same_command_goes_on(folder):
    with pytest.raises(DataError, match="a worker was killed .*memory.*; finished shards are kept: .* fewer --workers"):
        tokenize_files([folder / "speech.jsonl"], folder / "ids", Killed, SIZES, processes=2, shard_rows=2)
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "ids").glob("shard-*.safetensors")}
    assert 0 < len(made) <= 2
    index = tokenize_files([folder / "speech.jsonl"], folder / "ids", toys.ToyParts, SIZES, shard_rows=2)
    assert sum(entry["samples"] for entry in index["shards"]) == 12
    assert all((folder / "ids" / name).stat().st_mtime_ns == when for name, when in made.items()), "they were kept"


def wait_until(true, seconds: float) -> None:
    deadline = time.time() + seconds
    while not true():
        assert time.time() < deadline, "it takes too long"
        time.sleep(0.1)


def test_processes_make_the_same_shards(folder):
    paths = [folder / "text.jsonl", folder / "speech.jsonl"]
    alone = tokenize_files(paths, folder / "one", toys.ToyParts, SIZES, shard_rows=8)
    assert tokenize_files(paths, folder / "two", toys.ToyParts, SIZES, processes=2, shard_rows=8) == alone


def test_a_source_is_searched_for_its_lines_once(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(tokenize, "open_rows", lambda path: opened.append(path) or open_rows(path))
    index = tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES, shard_rows=5)
    assert len(index["shards"]) == 4 and opened == [folder / "text.jsonl"]


def test_a_shard_made_again_under_its_name_is_read_anew(tmp_path):
    path = tmp_path / "shard.safetensors"
    for number in (1, 5, 3):
        samples = toys.copying(number, seed=number)
        write_shard(path, samples, toys.VOCABULARY.pad, {})
        write_index(tmp_path, [path], {})
        found = read_shards([tmp_path])["text_qa"].fetch(range(number))
        assert all(np.array_equal(ours.ids, given.ids) for ours, given in zip(found, samples, strict=True))


def test_a_folder_of_another_run_is_refused(folder):
    tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES)
    lines(folder / "text.jsonl", [text_row(7)])
    with pytest.raises(DataError, match="ids holds shards that were made from another sources: give another folder"):
        tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES)


def test_tokenize_leaves_broken_samples_out_and_stops_past_the_limit(folder):
    (folder / "clips/3.wav").unlink()
    (folder / "clips/4.wav").write_bytes(b"no sound")
    index = tokenize_files([folder / "speech.jsonl"], folder / "ids", toys.ToyParts, SIZES, shard_rows=6, share=0.5)
    assert index["broken"] == 2 and [entry["samples"] for entry in index["shards"]] == [4, 6]
    reasons = (folder / "ids/broken.jsonl").read_text()
    assert ("line 4" in reasons and "3.wav, which is not there" in reasons
            and "4.wav: not a readable recording" in reasons)
    with pytest.raises(DataError, match=r"2 of 12 samples are broken and a share of 0\.01"):
        tokenize_files([folder / "speech.jsonl"], folder / "more", toys.ToyParts, SIZES, shard_rows=6)


def test_a_full_disk_is_named(folder, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnidiff_lite.data.shards.save_file", full)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: cannot be written .*No space left.*"
                                        r"make room and run"):
        tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES)


# --- vanished shards --------------------------------------------------------------------------------------------------

def test_a_vanished_or_cut_shard_is_named_before_and_during_a_run(folder):
    tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES, shard_rows=5)
    packed = PackedStream(read_shards([folder / "ids"]), {"text_qa": 1}, 64, 4, 0, **IDS)
    lost = folder / "ids/shard-00001.safetensors"
    data = lost.read_bytes()
    os.truncate(lost, len(data) - 40)
    with pytest.raises(GoneError, match=r"shard-00001\.safetensors: has \d+ bytes, the index says"):
        read_shards([folder / "ids"])
    lost.unlink()
    with pytest.raises(GoneError, match=r"shard-00001\.safetensors: the file is gone .*"
                                        r"goes on from the last checkpoint"):
        for step in range(10):
            packed.batch(step)
    with pytest.raises(GoneError, match=r"shard-00001\.safetensors: is gone, .*"
                                        r"delete it and run omnidiff tokenize again"):
        read_shards([folder / "ids"])
    lost.write_bytes(data)
    assert len(read_shards([folder / "ids"])["text_qa"]) == 20


def test_an_unfinished_folder_and_a_task_that_comes_twice_are_refused(folder):
    tokenize_files([folder / "text.jsonl"], folder / "ids", toys.ToyParts, SIZES)
    with pytest.raises(DataError, match="'text_qa' is in .*ids and in a file as it is; tokenize the file as well"):
        open_samples([folder / "ids", folder / "text.jsonl"], PARTS, SIZES, folder)
    (folder / "ids/index.json").unlink()
    with pytest.raises(DataError, match="no index of encoded shards .*run it to its end"):
        open_samples([folder / "ids"], PARTS, SIZES, folder)


# --- packing ----------------------------------------------------------------------------------------------------------

def test_a_samples_loss_weight_does_not_depend_on_what_it_is_packed_with():
    one, others = toys.copying(1, seed=3)[0], toys.copying(5, seed=4)
    ids = {"pad": toys.VOCABULARY.pad, "context_of_audio": toys.VOCABULARY.context_of_audio}
    for evenness in (0.0, 0.5, 1.0):
        alone = answer_weights(pack_row([one], [2], 96, **ids), evenness)
        beside = pack_row([*others[:2], one, *others[2:]], [1, 4, 2, 3, 1, 2], 96, **ids)
        weights = answer_weights(beside, evenness)[beside.segment_ids == 2]
        assert weights.tolist() == alone[:len(weights)].tolist()
