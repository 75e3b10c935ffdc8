"""How full rows are on the paper's mix, with the lengths that the plan assumes and the full preset's row length."""

import re

import pytest

from omnidiff_lite.artifacts import CLONE
from omnidiff_lite.config import load_preset
from omnidiff_lite.plan.packing import fewest_rows, filled_rows, filled_text

FULL = load_preset("full")


@pytest.mark.parametrize("tokens, length, rows", [([5, 5, 5], 10, 2), ([6, 6, 6], 10, 3), ([4] * 6, 10, 3),
                                                  ([4] * 6 + [2] * 3, 10, 3), ([10], 10, 1), ([3] * 7, 10, 3)])
def test_the_bound_is_that_of_hand_packed_rows(tokens, length, rows):
    assert fewest_rows(tokens, length) == rows


def test_rows_are_filled_to_95_percent_where_any_packing_can():
    assert filled_rows(FULL, 3).share >= 0.95
    for stage in (1, 2, 3):
        assert filled_rows(FULL, stage, length=2 * FULL.training.length).share >= 0.95


def test_where_pictures_leave_gaps_no_packing_fills_more():
    """Stages 1 and 2: three pictures of 1,026 tokens do not fit a row of 3,072."""
    for stage in (1, 2):
        filled = filled_rows(FULL, stage)
        assert filled.most < 0.95 and filled.share >= 0.99 * filled.most


def test_the_readmes_figures_are_those_of_the_plan():
    readme = (CLONE / "README.md").read_text()
    for preset in (FULL, load_preset("full", {"training.length": 2 * FULL.training.length})):
        told = filled_text(preset)
        figures = re.search(r"filled to (.*) % in stages 1 to 3", told)[1]
        assert f"{figures} %" in readme, told
    assert filled_text(load_preset("cpu")).startswith("Rows of 224 tokens do not hold every sample")
