"""Packing: rows and the endless stream; the released packing is in test_parity_report.py."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import toys

from omnidiff_lite.data.packing import (
    WINDOW, PackedRow, PackedStream, PackingError, efficiency, first_fit, pack_row)
from omnidiff_lite.data.samples import InMemory

PAD, AUDIO = toys.VOCABULARY.pad, toys.VOCABULARY.context_of_audio
IDS = {"pad": PAD, "context_of_audio": AUDIO}


def stream(seed: int = 0, mix: dict[str, float] | None = None, rows: int = 4, **options: int) -> PackedStream:
    return PackedStream(toys.datasets(), mix or {"text_qa": 0.5, "asr": 0.5}, length=64, rows=rows, seed=seed,
                        **{"max_tail_pads": 4, **IDS, **options})


def window_of_draws(packed: PackedStream, windows: int = 1) -> list:
    """All draws of the first windows, which end at a row but not at a step."""
    return [draw for window in range(windows) for row in packed._window(window) for draw in row]


# --- one row --------------------------------------------------------------------------------------------------------

def test_first_fit_takes_the_first_row_with_room():
    assert first_fit([6, 5, 4, 5, 1], 10) == [[0, 2], [1, 3], [4]]
    with pytest.raises(PackingError, match="11 tokens does not fit a row of 10"):
        first_fit([3, 11], 10)


def test_a_row_holds_its_samples_side_by_side_with_tail_pads_and_unseen_padding():
    row = pack_row([toys.sample("text_qa", [1], [2, 3]), toys.sample("t2i", [4], [5])], [1, 2], 14, **IDS)
    start, end = toys.VOCABULARY.im_start, toys.VOCABULARY.im_end
    assert row.input_ids.tolist() == [start, 1, 2, 3, end, PAD, start, 4, 5, end, PAD, PAD, PAD, PAD]
    assert row.labels.tolist() == [-100, -100, 2, 3, end, PAD, -100, -100, 5, end, PAD, PAD, -100, -100]
    assert row.segment_ids.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1, -1]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 0]
    assert row.tasks == ("text_qa", "t2i")
    assert efficiency([row]) == 12 / 14


def test_frames_stand_where_the_audio_context_is():
    samples = toys.hearing(2)
    row = pack_row(samples, [1, 1], 32, **IDS)
    assert (row.input_ids[row.frame_positions] == AUDIO).all()
    assert np.array_equal(row.frames, np.concatenate([s.frames for s in samples]))
    with pytest.raises(PackingError, match="3 places for speech frames but 0 frames"):
        pack_row([toys.sample("asr", [AUDIO] * 3, [1])], [1], 32, **IDS)


def test_packed_samples_get_the_logits_that_they_get_alone():
    model = toys.denoiser().eval()
    samples = toys.copying(2) + toys.hearing(2)
    pads = [1, 2, 3, 4]
    row = pack_row(samples, pads, 64, **IDS)
    together = logits(model, row)
    for number, (one, tail) in enumerate(zip(samples, pads)):
        alone = logits(model, pack_row([one], [tail], len(one.ids) + tail, **IDS))
        torch.testing.assert_close(together[torch.from_numpy(row.segment_ids == number)], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def logits(model, row: PackedRow) -> torch.Tensor:
    frames = torch.zeros(1, len(row.input_ids), toys.SPEECH_DIM)
    frames[0, row.frame_positions] = torch.from_numpy(row.frames).float()
    ids, segments, positions = (torch.from_numpy(a)[None] for a in (row.input_ids, row.segment_ids, row.position_ids))
    return model(ids, speech_frames=frames, segment_ids=segments, position_ids=positions).logits[0]


# --- the stream -----------------------------------------------------------------------------------------------------

def test_a_batch_follows_from_seed_and_step_alone():
    straight, jumping = stream(), stream()
    batches = [straight.batch(step) for step in range(90)]  # several windows
    for step in (89, 0, 41):
        for ours, theirs in zip(batches[step], jumping.batch(step), strict=True):
            assert np.array_equal(ours.input_ids, theirs.input_ids) and np.array_equal(ours.labels, theirs.labels)
    assert not np.array_equal(batches[0][0].input_ids, stream(seed=1).batch(0)[0].input_ids)


def test_every_token_of_every_draw_appears_once():
    packed = stream()
    for step in (0, 33, 70):
        seen = []
        for row in packed.batch(step):
            for number in range(len(row.tasks)):
                where = row.segment_ids == number
                seen.append((row.tasks[number], row.input_ids[where].tolist(), row.labels[where].tolist()))
            assert (row.labels[row.segment_ids < 0] == -100).all()
        drawn = [(d.task, [*packed.data[d.task][d.index].ids.tolist(), *[PAD] * d.pads],
                  [*packed.data[d.task][d.index].labels.tolist(), *[PAD] * d.pads]) for d in packed.draws(step)]
        assert seen == drawn


def test_steps_use_up_the_rows_of_the_windows_in_order():
    packed = stream(rows=1)
    rows = len(packed._window(0)) + len(packed._window(1))
    assert Counter(d for step in range(rows) for d in packed.draws(step)) == Counter(window_of_draws(packed, 2))


def test_no_sample_comes_twice_within_an_epoch():
    packed = stream()  # 512 draws of each task per window, 64 samples each: 8 whole epochs
    times = Counter((d.task, d.index) for d in window_of_draws(packed))
    assert set(times.values()) == {WINDOW // 2 // 64} and len(times) == 128
    uneven = stream(mix={"text_qa": 0.7, "asr": 0.3})
    times = Counter(d.index for d in window_of_draws(uneven) if d.task == "asr")
    assert set(times.values()) == {4, 5}  # 307 draws of 64: some five times, none six


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_repeats_count_how_often_each_sample_was_drawn(steps):
    packed = stream(mix={"text_qa": 0.7, "asr": 0.3})
    drawn = Counter(draw.task for step in range(steps) for draw in packed.draws(step))
    assert stream(mix={"text_qa": 0.7, "asr": 0.3}).repeats(steps) == {
        task: drawn[task] / len(packed.data[task]) for task in ("asr", "text_qa")}
    assert steps < 200 or len(packed._rows_until) > 2, "more than one window"


def test_tasks_come_in_the_shares_of_the_mix():
    packed = stream(mix={"text_qa": 6, "asr": 2})
    counts = Counter(draw.task for draw in window_of_draws(packed, 3))
    assert counts["text_qa"] / counts["asr"] == pytest.approx(3, rel=0.01)


def test_tail_pads_are_uniform_from_one_up():
    counts = Counter(draw.pads for draw in window_of_draws(stream(), 2))
    assert sorted(counts) == [1, 2, 3, 4] and min(counts.values()) > 0.8 * max(counts.values())
    assert {draw.pads for draw in window_of_draws(stream(max_tail_pads=0))} == {0}


def test_a_sample_that_holds_the_pad_id_gets_no_tail_pads():
    data = {"text_qa": [toys.sample("text_qa", [1, PAD], [2]), toys.sample("text_qa", [1], [2])]}
    packed = PackedStream(data, {"text_qa": 1}, 64, 1, 0, **IDS)
    assert {draw.pads == 0 for draw in window_of_draws(packed) if draw.index == 0} == {True}
    assert {draw.pads > 0 for draw in window_of_draws(packed) if draw.index == 1} == {True}


def test_rows_are_well_filled():
    assert efficiency([row for step in range(30) for row in stream().batch(step)]) > 0.93


def test_samples_too_long_are_left_out_and_counted():
    data = {"text_qa": toys.copying(10) + [toys.sample("text_qa", [1] * 70, [2])]}
    with pytest.warns(UserWarning, match="text_qa: 1 of 11 samples are longer than a row of 64"):
        packed = PackedStream(data, {"text_qa": 1}, 64, 4, 0, **IDS)
    assert len(packed.data["text_qa"]) == 10


@pytest.mark.parametrize("mix, message", [
    ({"vqa": 1}, "'vqa' is in the mix but it has no samples"),
    ({"asr": 0}, "shares of at least 0 with a positive sum"),
    ({"asr": 2, "text_qa": -1}, "shares of at least 0"),
])
def test_a_mix_that_cannot_be_drawn_is_refused(mix, message):
    with pytest.raises(PackingError, match=message):
        stream(mix=mix)


class Unmeasured(InMemory):
    """Samples whose lengths are known only once they are read."""

    def __init__(self, samples):
        super().__init__(samples)
        self.known, self.lengths = self.lengths, None

    def measure(self, numbers, pad):
        return self.known[np.asarray(numbers)], np.zeros(len(numbers), bool)


def test_samples_that_turn_out_too_long_end_the_run_not_hang_it():
    packed = PackedStream({"text_qa": Unmeasured(toys.copying(3 * WINDOW))}, {"text_qa": 1}, 4, 4, 0, **IDS)
    with pytest.raises(PackingError, match="none of the samples of text_qa fits a row of 4 tokens"):
        packed.batch(0)
    one = Unmeasured(toys.copying(3 * WINDOW - 1) + [toys.sample("text_qa", [], [2])])
    rows = PackedStream({"text_qa": one}, {"text_qa": 1}, 4, 4, 0, max_tail_pads=0, **IDS).batch(0)
    assert [row.tasks for row in rows] == [("text_qa",)] * 4, "the one that fits comes once an epoch"


def test_a_row_too_short_for_every_sample_is_refused():
    with pytest.raises(PackingError, match="none of its 64 samples fits a row of 8 tokens"):
        PackedStream(toys.datasets(), {"asr": 1}, 8, 4, 0, **IDS)
