"""Records travel through JSON unchanged; the paper's numbers keep their version; tables keep sources apart."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from omnidiff_lite import plots
from omnidiff_lite.evaluation.records import (Record, RecordError, measured, missing, over_seeds, paper_records,
                                              read_records, with_provenance, write_records)
from omnidiff_lite.evaluation.statistics import Estimate, ratio_interval
from omnidiff_lite.evaluation.tables import cell_text, comparison, row_label, save_table, to_markdown

KEYS = {"table", "row", "column", "value", "low", "high", "n", "seeds", "source", "provenance"}


@pytest.fixture
def ours() -> list[Record]:
    return measured("table1_speech", "diffusion", 0, {"asr_wer": Estimate(7.13, 6.02, 8.29, 200)})


def test_a_record_has_the_agreed_keys_and_survives_the_file(tmp_path, ours):
    stamped = with_provenance(ours, {"preset": "smoke", "seconds": 1.5})
    path = write_records(tmp_path / "metrics" / "speech.json", [*stamped, missing("t", "r", "c", "no judge")])
    written = json.loads(path.read_text())
    assert set(written[0]) == KEYS and set(written[1]) == KEYS | {"reason"}
    assert read_records(path)[0] == stamped[0]
    assert [r.table for r in read_records(path.parent, table="t")] == ["t"]
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("wrong, message", [
    ({"value": None}, "no reason"),
    ({"value": 1.0}, "needs n"),
    ({"value": float("nan"), "n": 3}, "not finite"),
    ({"value": 1.0, "n": 3, "low": 0.0}, "both ends"),
    ({"value": 1.0, "source": "hearsay"}, "none of paper-v1"),
])
def test_a_record_that_says_too_little_is_refused(wrong, message):
    with pytest.raises(RecordError, match=message):
        Record("t", "r", "c", **wrong)


def test_a_file_that_holds_no_records_is_named(tmp_path):
    (tmp_path / "x.json").write_text('[{"tabel": 1}]')
    with pytest.raises(RecordError, match="x.json: not a list of records"):
        read_records(tmp_path)
    with pytest.raises(RecordError, match="no such file"):
        read_records(tmp_path / "y.json")


def paper(table: str, row: str, column: str, source: str) -> Record:
    (found,) = [r for r in paper_records(table) if (r.row, r.column, r.source) == (row, column, source)]
    return found


def test_the_papers_two_versions_stay_apart():
    assert paper("table1_speech", "Omni-Diffusion", "librispeech_wer", "paper-v1").value == 7.05
    assert paper("table1_speech", "Omni-Diffusion", "librispeech_wer", "paper-icml").value == 6.69
    assert paper("table2_vision", "Omni-Diffusion", "mme_p", "paper-v1").value == 1216.7
    assert paper("table3_sampling", "text-to-image, 10 steps", "latency_s", "paper-icml").value == 1.29
    assert paper("spoken_mme", "speech + image -> text", "mme_p", "paper-icml").value == 997.1
    assert paper("ablation_position_penalty", "without", "clip_t", "paper-icml").value == 0.222


def test_an_unreported_cell_says_so():
    record = paper("table1_speech", "CosyVoice", "librispeech_wer", "paper-v1")
    assert record.value is None and record.reason == "not reported" and cell_text(record) == "–"


def test_table_3_has_no_wer_of_pictures_and_holds_the_autoregressive_rows():
    records = paper_records("table3_sampling")
    assert not [r for r in records if "image" in r.row and r.column == "libritts_wer"]
    assert paper("table3_sampling", "GLM-4-Voice", "rtf", "paper-icml").value == 0.685


@pytest.mark.parametrize("table", ["digest_claims", "table9", "table4_training_data", "versions"])
def test_what_the_paper_does_not_measure_is_no_paper_record(table):
    with pytest.raises(RecordError, match="no numbers"):
        paper_records(table)


def test_several_seeds_become_one_record():
    runs = [measured("t", "diffusion", seed, {"x": Estimate(value, value - 9, value + 9, 50)})
            for seed, value in enumerate([1.0, 2.0, 3.0])]
    (merged,) = over_seeds(runs)
    assert merged.value == 2 and merged.n == 3 and merged.seeds == (0, 1, 2) and merged.high < 2 + 9
    (absent,) = over_seeds([runs[0], [missing("t", "diffusion", "x", "diverged")]])
    assert absent.value is None and absent.reason == "diverged"


def test_a_table_groups_its_columns_by_source(ours):
    frame = comparison(paper_records("table1_speech") + ours)
    assert list(frame.columns.get_level_values(0).unique()) == ["paper-v1", "paper-icml", "ours"]
    assert frame.loc["Omni-Diffusion", ("paper-v1", "LibriSpeech WER % ↓")] == "7.05"
    assert frame.loc["Omni-Diffusion", ("paper-icml", "LibriSpeech WER % ↓")] == "6.69"
    assert frame.loc["Omni-Diffusion", ("ours", "ASR WER % ↓")] == "7.1 [6.0, 8.3] n=200"
    assert frame.loc["AnyGPT", ("ours", "ASR WER % ↓")] == ""


def test_two_records_for_one_cell_are_an_error(ours):
    with pytest.raises(ValueError, match="two records"):
        comparison(ours + ours)


def test_a_value_without_an_interval_says_why(tmp_path):
    (record,) = measured("t", "diffusion", 0, {"asr_wer": ratio_interval([0] * 8, [5] * 8)})
    assert cell_text(record) == "0.0 [no interval: all items are alike] n=8"
    assert read_records(write_records(tmp_path / "t.json", [record])) == [record]
    (merged,) = over_seeds([[record], [replace(record, value=1.0)]])
    assert merged.low is not None and not merged.reason
    figure = plots.intervals(pd.DataFrame([{"label": "x", "value": record.value, "low": record.low,
                                            "high": record.high}]))
    assert len(figure.axes[0].get_yticks()) == 1


def test_missing_cells_show_their_reason():
    assert cell_text(missing("t", "r", "c", "needs Whisper")) == "– (needs Whisper)"


def test_our_rows_of_table_3_stand_beside_the_papers():
    assert row_label("diffusion: text-to-image, 10 steps") == "text-to-image, 10 steps"
    assert row_label("autoregressive twin: text-to-image") == "autoregressive twin: text-to-image"


def test_saved_tables_carry_the_caption_and_the_numbers(tmp_path, ours):
    markdown, csv = save_table(paper_records("table1_speech") + ours, "table1", tmp_path)
    text = markdown.read_text()
    assert "is not the paper's number on the public data" in text and "| Omni-Diffusion |" in text
    frame = pd.read_csv(csv)
    assert frame[frame.source == "ours"].value.tolist() == [7.13]
    assert to_markdown(comparison(ours)).splitlines()[0] == "|  | ours: ASR WER % ↓ |"


def test_the_curves_of_several_runs_share_an_axis_a_task():
    runs = {name: pd.DataFrame({"step": range(4), "loss_asr": [2.0, 1.5, None, 1.0], "loss_tts": [3.0, 2.0, 2.0, 1.0]})
            for name in ("together", "alone")}
    axes = plots.task_curves(runs, ["asr", "tts"], smooth=1).axes[:2]
    assert [axis.get_title() for axis in axes] == ["asr", "tts"]
    assert [len(line.get_xdata()) for line in axes[0].lines] == [3, 3], "a step without the task is left out"
    assert [line.get_label() for line in axes[1].lines] == list(runs)
