"""Masked cross-entropy: the released shift, what counts, and that projecting only scored positions changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from omnidiff_lite.diffusion.loss import masked_cross_entropy, scored_positions, token_losses

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 6, 11, generator=GENERATOR)
LABELS = torch.tensor([[-100, -100, 3, 4, 5, -100], [-100, 7, 8, -100, -100, -100]])
MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)


def by_hand(places: list[tuple[int, int]], shift: int = 1) -> torch.Tensor:
    return torch.stack([-F.log_softmax(LOGITS[b, j - shift], -1)[LABELS[b, j]] for b, j in places])


def test_label_j_is_scored_with_logits_before_it():
    expected = by_hand([(0, 2), (0, 4), (1, 1)])
    torch.testing.assert_close(masked_cross_entropy(LOGITS, LABELS, MASK), expected.mean())
    torch.testing.assert_close(masked_cross_entropy(LOGITS, LABELS, MASK, reduction="sum"), expected.sum())
    unshifted = by_hand([(0, 2), (0, 4), (1, 1)], shift=0)
    torch.testing.assert_close(masked_cross_entropy(LOGITS, LABELS, MASK, shift=False), unshifted.mean())


def test_without_a_mask_every_label_counts_and_the_first_position_cannot():
    everything = by_hand([(0, 2), (0, 3), (0, 4), (1, 1), (1, 2)])
    torch.testing.assert_close(masked_cross_entropy(LOGITS, LABELS), everything.mean())
    first = torch.tensor([[1, -100, -100, -100, -100, -100]]).expand(2, -1)
    assert masked_cross_entropy(LOGITS, first) == 0


def test_losses_stand_at_their_own_tokens():
    losses = masked_cross_entropy(LOGITS, LABELS, MASK, reduction="none")
    assert losses.shape == LABELS.shape
    torch.testing.assert_close(losses[[0, 0, 1], [2, 4, 1]], by_hand([(0, 2), (0, 4), (1, 1)]))
    assert (losses != 0).sum() == 3


def test_no_label_gives_zero_with_a_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = masked_cross_entropy(logits, torch.full_like(LABELS, -100))
    loss.backward()
    assert loss == 0 and logits.grad.abs().sum() == 0


def test_scored_positions_serve_the_models_chosen_logits():
    positions, targets = scored_positions(LABELS, MASK)
    assert positions.nonzero().tolist() == [[0, 1], [0, 3], [1, 0]] and targets.tolist() == [3, 5, 7]
    losses = token_losses(LOGITS[positions].bfloat16(), targets)
    assert losses.dtype == torch.float32 and losses.shape == (3,)


def test_unknown_reduction():
    with pytest.raises(ValueError, match="'average' is none of"):
        masked_cross_entropy(LOGITS, LABELS, reduction="average")
