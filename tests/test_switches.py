"""The switches of the training studies: off, they give the paper's training; on, each does what it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import toys
import torch
from test_trainer import assert_same, batch, run

from omnidiff_lite.adapters import NO_ANSWER
from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.config import ConfigError
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.packing import PackedStream, pack_row
from omnidiff_lite.diffusion.corruption import bound_weight, mask_rate
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.evaluation.log_likelihood import log_likelihoods
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.training.batches import choose_scored, collate, time_weights
from omnidiff_lite.training.step import AnswerLoss, target_weights
from omnidiff_lite.training.trainer import validate
from omnidiff_lite.weights import CheckpointError

V = toys.VOCABULARY
STEP, HEADS = {"step_embedding": True}, {"output_heads": "modality"}
VARIANTS = {"step embedding": STEP, "heads": HEADS, "both": STEP | HEADS}
each_variant = pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS)


def switched(seed: int = 0, switches: dict | None = None, **fields) -> Denoiser:
    """The toy denoiser with switches on."""
    torch.manual_seed(seed)
    size = dataclasses.replace(toys.SIZE, **(switches or {}))
    return Denoiser(DenoiserConfig.from_size(size, V, speech_dim=toys.SPEECH_DIM, **fields))


def decided(switches: dict) -> Denoiser:
    """Drawn wide, so that no decision hangs on rounding, and every part has its say."""
    model = switched(switches=switches, initializer_range=0.5).eval()
    head = model.lm_head if isinstance(model.lm_head, torch.nn.Linear) else model.lm_head.shared
    head.weight.data /= 3
    return model


def packed(samples: list[EncodedSample], pads: int = 1, length: int = 64):
    return pack_row(samples, [pads] * len(samples), length, pad=V.pad, context_of_audio=V.context_of_audio)


def shared_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("lm_head.shared", "lm_head"): tensor for name, tensor in state.items()}


# --- the weight of a masked token -----------------------------------------------------------------------------------


def test_the_bound_weighs_a_token_by_how_fast_masks_come():
    """rate' / rate: 1 / t, or (pi / 2) / tan(pi t / 2); and as autograd has the slope."""
    t = torch.tensor([0.001, 0.25, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    assert bound_weight(t.detach()).tolist() == pytest.approx([1000, 4, 2, 1 / 0.9])
    assert bound_weight(t.detach(), "cosine")[2].item() == pytest.approx(math.pi / 2)
    for schedule in ("linear", "cosine", "cubic"):
        rate = mask_rate(t, schedule)
        slope, = torch.autograd.grad(rate.sum(), t)
        torch.testing.assert_close(bound_weight(t.detach(), schedule), slope / rate.detach())
    assert bound_weight(torch.tensor([0.0, 1e-9])).tolist() == pytest.approx([1000, 1000])


@pytest.mark.parametrize("weight", ["plain", "bound"])
def test_the_gradient_of_a_step_is_that_of_its_weighted_loss(tmp_path, weight):
    """By hand: the mean over the masked tokens, or rate' / rate times each over all tokens of the answers."""
    preset = toys.preset(training__loss_weight=weight, training__precision="fp32", training__stage1__steps=1)
    log, _ = run(tmp_path, preset=preset)
    config, model, tasks = preset.training, toys.denoiser().train(), ("asr", "text_qa")
    stream = PackedStream(toys.datasets(), config.stage1.mix, config.length, config.stage1.rows, 0, pad=V.pad,
                          context_of_audio=V.context_of_audio, max_tail_pads=config.max_tail_pads)
    total, tokens = 0, 0
    for number, row in enumerate(stream.batch(0)):
        seed = (0, 1, 0, number)
        mask, factor = choose_scored(row, config, model.config, seed), time_weights(row, config, model.config, seed)
        losses = AnswerLoss(model, "fp32")(collate([row], [mask], tasks, model.config))
        weights = factor[torch.from_numpy(row.labels) != IGNORE][mask[torch.from_numpy(row.labels) != IGNORE]]
        total += (losses * weights).sum()
        tokens += (mask if weight == "plain" else row.labels >= 0).sum()
    (total / tokens).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert log["gradient_norm"].iloc[0] == pytest.approx(norm, rel=1e-4)


def test_each_answer_is_weighed_by_its_own_time():
    config = toys.preset(training__loss_weight="bound").training
    model, row = toys.denoiser(), packed([toys.sample("text_qa", [1], [2, 3]), toys.sample("text_qa", [1], [4])])
    weights, segments = time_weights(row, config, model.config, (0,)), torch.from_numpy(row.segment_ids)
    (first,), (second,) = (weights[segments == n].unique().tolist() for n in (0, 1))
    assert first != second and min(first, second) >= 1
    plain = dataclasses.replace(config, loss_weight="plain")
    assert time_weights(row, plain, model.config, (0,)).unique().tolist() == [1]
    causal = toys.denoiser(is_causal=True).config
    assert time_weights(row, config, causal, (0,)).unique().tolist() == [1], "the twin's loss needs no bound"
    chosen = torch.from_numpy(row.labels >= 0)
    whole = collate([row], [chosen], ["text_qa"], model.config, factors=[weights])
    assert target_weights(whole).tolist() == [first] * 4 + [second] * 3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cubic"])
def test_the_weighted_loss_is_the_likelihood_bound_on_average(schedule):
    """An answer of three tokens: over many draws the mean is what all masks, each with its probability, give."""
    model = decided({})
    sample = EncodedSample(np.array([1, 2, 3, 7, 5], np.int32), np.array([IGNORE, IGNORE, 3, 7, 5], np.int32),
                           np.zeros((0, toys.SPEECH_DIM)), "text_qa")
    exact = -log_likelihoods(model, [sample])[0].value
    row = packed([sample], pads=0, length=5)
    config = toys.preset(training__loss_weight="bound", training__schedule=schedule).training
    sums = {}
    for hidden in itertools.product((False, True), repeat=3):
        mask = torch.tensor([False, False, *hidden])
        with torch.no_grad():
            sums[hidden] = AnswerLoss(model, "fp32")(collate([row], [mask], ["text_qa"], model.config)).sum().item()
    draws = []
    for seed in range(6000):
        mask, weights = (choose(row, config, model.config, (seed,)) for choose in (choose_scored, time_weights))
        draws.append((weights[2].item(), sums[tuple(mask[2:].tolist())]))
    weighted, plain = np.array([w * loss for w, loss in draws]), np.array([loss for _, loss in draws])
    error = weighted.std() / math.sqrt(len(weighted))
    assert error < 0.05 * exact and abs(weighted.mean() - exact) < 3 * error
    assert abs(plain.mean() - exact) > 5 * error, "without the weight it is another number"


def test_a_time_for_each_token_bounds_nothing(tmp_path):
    with pytest.raises(ConfigError, match="'bound' needs training.time 'sequence'"):
        run(tmp_path, preset=toys.preset(training__loss_weight="bound", training__time="token"))


def test_validation_compares_runs_of_all_settings():
    model, data = toys.denoiser(), {"text_qa": toys.copying(9)}
    paper = validate(toys.preset(), model, data)
    for change in ({"gamma": 0.0}, {"time": "token"}, {"schedule": "cosine"}, {"loss_weight": "bound"}):
        other = toys.preset(**{f"training__{key}": value for key, value in change.items()})
        assert validate(other, model, data).equals(paper)


# --- step embedding and heads by modality ---------------------------------------------------------------------------


@each_variant
def test_a_seed_gives_what_is_shared_alike_and_the_files_hold_the_rest(switches, tmp_path):
    base, model = toys.denoiser(), switched(switches=switches)
    own = shared_names(model.state_dict())
    assert all(torch.equal(own[name], tensor) for name, tensor in base.state_dict().items())
    assert len(own) > len(base.state_dict())
    model.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(ConfigError, match="the released layout has no step embedding"):
        model.save_pretrained(tmp_path / "released", layout="released")
    with pytest.raises(CheckpointError, match="unexpected"):
        Denoiser.from_pretrained(tmp_path, config=base.config)


@each_variant
def test_gradients_reach_every_new_weight(switches):
    model = switched(switches=switches)
    AnswerLoss(model, "fp32")(batch(model, toys.copying(2))).sum().backward()
    new = [(name, p) for name, p in model.named_parameters() if name.startswith(("step_embedding", "lm_head.adapters"))]
    assert len(new) == 2 * ("step_embedding" in switches) + 6 * ("output_heads" in switches)
    assert all(p.grad.abs().sum() > 0 for _, p in new)


def test_each_head_moves_the_ids_of_its_modality_and_no_others():
    model, ids = decided(HEADS), torch.arange(8)[None]
    before = model(ids).logits[0, 0]
    for number, span in enumerate((range(V.first_speech), V.speech_range, V.image_range)):
        other = decided(HEADS)
        other.lm_head.adapters[number][2].weight.data.zero_()
        changed = (other(ids).logits[0, 0] != before).nonzero().flatten().tolist()
        assert changed == list(span)
    for adapter in other.lm_head.adapters:
        adapter[2].weight.data.zero_()
    torch.testing.assert_close(other.lm_head(other(ids).hidden), other.lm_head.shared(other(ids).hidden))


def test_the_share_is_of_each_answer_with_its_tail_pads():
    """Five of its own and two of another answer's tokens; prompts and padding have none."""
    row = packed([toys.sample("text_qa", [1, 2], [3, 4, 5]), toys.sample("text_qa", [1], [6])], length=16)
    answers = torch.from_numpy(row.labels >= 0)
    mask = answers & (torch.tensor(row.input_ids) < 5)  # 3 and 4 of the first answer, none of the second
    share = collate([row], [mask], ["text_qa"], toys.denoiser().config).masked_share[0]
    assert (share[~answers] == NO_ANSWER).all()
    torch.testing.assert_close(share[answers], torch.tensor([0.4] * 5 + [0.0] * 3))


def test_without_a_share_and_outside_answers_nothing_is_embedded():
    model, ids = decided(STEP), torch.arange(8)[None]
    none, some = torch.full((1, 8), NO_ANSWER), torch.full((1, 8), 0.5)
    assert torch.equal(model(ids, masked_share=none).logits, model(ids).logits)
    assert not torch.allclose(model(ids, masked_share=some).logits, model(ids).logits, atol=0.1)
    assert torch.equal(toys.denoiser()(ids, masked_share=some).logits, toys.denoiser()(ids).logits)
    with pytest.raises(ConfigError, match="a causal denoiser masks nothing"):
        switched(switches=STEP, is_causal=True)


def test_decoding_tells_the_share_that_is_masked_as_training_does():
    """At each pass, of each answer; the first decision is that of the training layout."""
    model, passes = decided(STEP), []
    model.step_embedding.register_forward_pre_hook(lambda module, given: passes.append(given[0].clone()))
    questions, lengths = [torch.tensor([1, 2, 3]), torch.tensor([4])], [4, 8]
    result = decode(model, questions, DecodingConfig(steps=4), lengths=lengths)
    masks = [torch.tensor(lengths)] + [(canvas == V.mask).sum(1) for canvas in result.history[:-1]]
    assert len(passes) == 4
    for shares, left in zip(passes, masks):
        expected = (left / torch.tensor(lengths)).tolist()
        for row, share, length in zip(shares, expected, lengths):
            assert row[row != NO_ANSWER].tolist() == [pytest.approx(share)] * length
    answer = decode(model, questions[0], DecodingConfig(steps=1), lengths=4).ids[0]
    sample = EncodedSample(np.array([1, 2, 3, 0, 0, 0, 0]), np.array([IGNORE] * 3 + [0] * 4),
                           np.zeros((0, toys.SPEECH_DIM)), "text_qa")
    row = packed([sample], pads=0, length=7)
    rows = collate([row], [torch.from_numpy(row.labels >= 0)], ["text_qa"], model.config)
    logits = model(rows.input_ids, masked_share=rows.masked_share).logits[0]
    assert torch.equal(answer, logits[2:6].argmax(-1))
    assert not torch.equal(answer, model(rows.input_ids).logits[0, 2:6].argmax(-1)), "the share says nothing"


@each_variant
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_a_batch_decodes_as_one_by_one(switches, guided):
    model, generator = decided(switches), torch.Generator().manual_seed(7)
    questions = [torch.randint(toys.WORDS, (n,), generator=generator) for n in (9, 3, 6)]
    config = DecodingConfig(seed=5, steps=5)
    config = config.replace(guidance_scale=2.0, guidance_prompt_ids=[1, 2]) if guided else config
    together = decode(model, questions, config, lengths=[7, 12, 10])
    for i, (question, length) in enumerate(zip(questions, (7, 12, 10))):
        alone = decode(model, question, config.replace(seed=5 + i), lengths=length)
        assert torch.equal(together.ids[i, :length], alone.ids[0])
        torch.testing.assert_close(together.confidence[i, :length], alone.confidence[0], equal_nan=True)


@each_variant
@pytest.mark.parametrize("settings", [
    {"allowed_ids": list(V.image_range)}, {"guidance_scale": 2.0, "guidance_prompt_ids": [1, 2]},
    {"guidance_scale": 2.0, "guidance_prompt_ids": [1], "guidance_alignment": "released"},
    {"cache": "prefix", "cache_refresh": 1}], ids=lambda settings: "+".join(settings))
def test_the_fast_decoder_gives_what_the_plain_one_gives(switches, settings):
    """Neither the slices of the output head nor what is kept from pass to pass may leave a switch out."""
    model, questions, config = decided(switches), [torch.tensor([1, 2, 3]), torch.tensor([4])], DecodingConfig(steps=4)
    config = config.replace(**settings)
    plain = config.replace(cache="none") if "cache" in settings else config
    if "released" in settings.values():
        questions = questions[:1]
    ours, theirs = decode(model, questions, config, lengths=6), decode_plain(model, questions, plain, lengths=6)
    assert torch.equal(ours.ids, theirs.ids)
    torch.testing.assert_close(ours.confidence, theirs.confidence, equal_nan=True, atol=1e-4, rtol=1e-4)


@each_variant
def test_packed_rows_train_as_one_by_one(switches):
    model, samples = decided(switches), toys.copying(3)
    config = toys.preset().training
    row = packed(samples)
    mask = choose_scored(row, config, model.config, (3,))
    together = AnswerLoss(model, "fp32")(collate([row], [mask], ["text_qa"], model.config))
    alone, start = [], 0
    for sample in samples:
        stop = start + len(sample.ids) + 1
        own = torch.nn.functional.pad(mask[start:stop], (0, 64 - (stop - start)))
        alone.append(AnswerLoss(model, "fp32")(collate([packed([sample])], [own], ["text_qa"], model.config)))
        start = stop
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("switches, settings", [
    (STEP, {}), (HEADS, {}), (STEP | HEADS, {"optimizer": "muon"}), ({}, {"loss_weight": "bound"}),
    (STEP, {"loss_weight": "bound", "schedule": "cosine"})], ids=str)
def test_stop_and_resume_equals_a_straight_run(tmp_path, switches, settings):
    preset = toys.preset(**{f"training__{key}": value for key, value in settings.items()})
    whole = run(tmp_path / "whole", preset=preset, model=switched(switches=switches))
    run(tmp_path / "parts", preset=preset, model=switched(switches=switches), stop_after=3)
    assert_same(run(tmp_path / "parts", preset=preset, model=switched(switches=switches)), whole)
    start, end = switched(switches=switches).state_dict(), whole[1].state_dict()
    new = [name for name in start if name.startswith(("step_embedding", "lm_head.adapters"))]
    assert all(not torch.equal(end[name], start[name]) for name in new), "they train"


def test_a_switch_makes_another_run(tmp_path):
    run(tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match="training.loss_weight was 'plain', is 'bound'"):
        run(tmp_path, preset=toys.preset(training__loss_weight="bound"))
    with pytest.raises(CheckpointError, match="denoiser.step_embedding was False, is True"):
        run(tmp_path, model=switched(switches=STEP))
    assert (Path(tmp_path) / "data.csv").exists()
