"""Every recorded number of the released implementation, as rows of the parity report; and that a row can fail.

What a row compares is stated by its check in `omnidiff_lite/parity/`. Here each must pass; and each must fail once a
weight, or a recorded input if there is no weight, is wrong.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnidiff_lite.parity import CASES, GOLDEN, Golden, ParityError, count, report
from omnidiff_lite.parity.__main__ import main
from omnidiff_lite.parity.compare import OWN, RELEASED, Case, each
from omnidiff_lite.parity.denoiser import MASK, SAMPLES, decoded, sample_case

Damage = Callable[[Path], None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_released_implementation(case):
    row = case.run()
    assert row.passed, row


def test_one_row_compares_with_the_kit_itself_and_is_counted_apart():
    assert [str(case) for case in CASES if case.against != RELEASED] == ["flow: 27 tokens, 60 frames known"]
    table = report(cases=[case_of([(1, 1)]), case_of([(1, 2)]), case_of([(1, 1)], against=OWN)])
    assert table.against.tolist() == [RELEASED, RELEASED, OWN]
    assert count(table) == ("1 of 2 comparisons with the released implementation passed; "
                            "1 of 1 with the kit's own loop")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_trace_of_a_recorded_run_counts_what_was_decided(name):
    result = decoded(name)
    assert (result.decided >= 0).sum() == (result.ids != MASK).sum() - len(sample_case(name)[1].prefill)


# --- a wrong weight -------------------------------------------------------------------------------------------------


def negated(name: str, *tensors: str) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / f"{name}.safetensors"
        state = load_file(file)
        file.unlink()
        save_file(state | {tensor: -state[tensor] for tensor in tensors}, file, metadata={"format": "pt"})
    return damage


def rewritten(pattern: str, old: str, new: str) -> Damage:
    def damage(directory: Path) -> None:
        for file in directory.glob(pattern):
            text = file.read_text()
            assert old in text
            file.write_text(text.replace(old, new, 1))
    return damage


def labels_moved(directory: Path) -> None:
    """By two places: masks, rates and counts of the rows are then those of other tokens."""
    file = directory / "forward_process.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"labels": tree["labels"][-2:] + tree["labels"][:-2]}))


WRONG: dict[str, Damage] = {
    "denoiser": negated("dream_tiny", "model.layers.0.self_attn.v_proj.weight"),
    "speech adapter": negated("dream_tiny", "model.audio_projection.mlp.0.weight"),
    "decoding": negated("dream_tiny", "model.layers.1.mlp.down_proj.weight"),
    "MAGVIT-v2": negated("magvit_tiny", "weights.encoder.conv_in.weight", "weights.decoder.conv_in.weight"),
    "quantizer": negated("magvit_tiny", "lfq.z"),
    "front end": negated("frontend", "a.fbank", "cmvn"),
    "positions": negated("sensevoice_tiny", "pos.f32"),
    "SenseVoice": negated("sensevoice_tiny",
                          "weights.audio_model.model.encoder.encoders.0.self_attn.linear_out.weight"),
    "speech lengths": negated("sensevoice_tiny", "short.feature_lengths"),
    "GLM tokenizer": negated("glmtok_tiny", "weights.conv1.weight"),
    "flow": negated("glmdec_tiny", "weights.flow.input_embedding.weight",
                    "weights.flow.decoder.estimator.down_blocks.0.0.block1.block.0.weight"),
    "HiFT": negated("glmdec_tiny", "weights.hift.conv_pre.weight_g", "weights.hift.f0_predictor.condnet.0.weight_g"),
    "names at full size": rewritten("keys/*.txt", ".weight", ".wait"),
    "vocabulary": rewritten("vocab_layout.json", "151684", "151683"),
    "prompts": rewritten("vocab_layout.json", "Convert the speech", "Convert speech"),
    "training layout": rewritten("forward_process.json", "151686", "151687"),
    "masking": labels_moved,
    "packing": rewritten("packing.json", "14", "15"),
}


def test_every_part_has_its_wrong_weight():
    assert set(WRONG) == {case.part for case in CASES}


@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_weight_fails_the_rows_of_its_part(part, tmp_path):
    shutil.copytree(GOLDEN.directory, tmp_path, dirs_exist_ok=True)
    WRONG[part](tmp_path)
    wrong = Golden(tmp_path)
    assert [str(case) for case in CASES if case.part == part and case.run(wrong).passed] == []


# --- the report -----------------------------------------------------------------------------------------------------


def case_of(pairs: list, tolerance: float = 0.0, relative: bool = False, against: str = RELEASED) -> Case:
    return Case("a part", "a case", "something", tolerance, lambda golden: pairs, relative, against)


def test_a_row_tells_what_was_reached():
    near = case_of([(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))], 1.0).run()
    assert near.passed and near.reached == "5.0e-01"
    assert case_of([(torch.tensor([0.0, 4.5]), torch.tensor([3.0, 4.0]))], 1.0, relative=True).run().error == \
        pytest.approx(9.25**0.5 / 5)
    exact = case_of(list(each([1, 2, 3], torch.tensor([[1, 2], [3, 4]])))).run()
    assert not exact.passed and exact.reached == "3 of 4 equal"


@pytest.mark.parametrize("pairs", [
    [], [(torch.zeros(2), torch.zeros(3))], [(torch.tensor(torch.nan), torch.zeros(()))]])
def test_nothing_compared_another_shape_and_nan_all_fail(pairs):
    assert not case_of(pairs, 1.0).run().passed


def test_nothing_compared_exactly_fails():
    assert not case_of([]).run().passed


def test_an_exception_is_a_row_that_failed_and_the_others_go_on():
    def broken(golden):
        raise IndexError("no such layer\nand more")

    table = report(cases=[Case("a part", "broken", "something", 0, broken), case_of([(1, 1)])])
    assert table.passed.tolist() == [False, True] and table.reached[0] == "IndexError: no such layer"


def test_the_table_and_the_command(tmp_path, capsys):
    seen = []
    table = report(cases=CASES[:2], progress=seen.append)
    assert table.columns.tolist() == ["part", "case", "compared", "against", "tolerance", "reached", "passed"]
    assert len(seen) == len(table) == 2 and table.passed.all()
    with pytest.raises(ParityError, match=r"dream_forward.safetensors is missing.*git checkout"):
        report(Golden(tmp_path))
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is missing" in error and error.count("\n") == 1
