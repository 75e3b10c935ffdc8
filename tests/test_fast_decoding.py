"""Less work for the same answer: the fast decoder against the plain one, with every saving on and off."""

from __future__ import annotations

import pytest
import torch
from toys import decided, prompts

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError, DenoiserSize
from omnidiff_lite.diffusion.canvas import Canvas, Span, answer_canvas
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.diffusion.head import Head
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.diffusion.result import DecodeResult
from omnidiff_lite.plan.exact_speed import exact_speed, vocabulary
from omnidiff_lite.vocabulary import Vocabulary

ALGORITHMS = ("random", "confidence", "margin", "entropy")
V = Vocabulary.small(text=30, speech_codes=120, image_codes=160)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return decided(V)


def canvases() -> list[Canvas]:
    """Positions of one, two and three modalities, with and without markers."""
    return [answer_canvas(V, ["text", "speech", "image"], {"text": 3, "speech": 4, "image": 4}, newline=10),
            answer_canvas(V, ["image"], {"image": 9}), answer_canvas(V, ["speech"], {"speech": 6}, markers=False)]


def assert_same(one: DecodeResult, other: DecodeResult) -> None:
    assert torch.equal(one.ids, other.ids) and torch.equal(one.decided, other.decided)
    assert one.lengths == other.lengths and len(one.history) == len(other.history)
    assert all(torch.equal(a, b) for a, b in zip(one.history, other.history))
    torch.testing.assert_close(one.confidence, other.confidence, rtol=1e-4, atol=1e-5, equal_nan=True)


RELEASED = {
    "plain": {},
    "filters": {"top_p": 0.9, "top_k": 5},
    "sampled": {"temperature": 0.8, "top_p": 0.95},
    "noisy order": {"confidence_temperature": 0.3, "steps": 0.5},
    "repetition": {"repetition_penalty": 1.5, "top_p": 0.9, "temperature": 0.5},
    "ramp": {"position_penalty": 2.0, "position_free": 5, "temperature": 0.5},
    "fixed": {"position_penalty": 0.5, "position_penalty_mode": "fixed", "position_free": 5},
    "few steps": {"steps": 4, "schedule": "cosine"},
    "blocks": {"block_length": 4},
    "blocks, sampled": {"block_length": 4, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.5, "steps": 0.5},
    "blocks, noisy order": {"block_length": 4, "confidence_temperature": 0.3, "steps": 0.5},
    "blocks, ramp": {"block_length": 4, "position_penalty": 2.0, "position_free": 5},
    "blocks, guided": {"block_length": 4, "guidance_scale": 2.0, "guidance_prompt_ids": [1, 2, 3, 4]},
    "blocks, guided as released": {"block_length": 4, "guidance_scale": 1.0, "guidance_prompt_ids": [1, 2],
                                   "guidance_alignment": "released"},
    "token by token": {"block_length": 1},
    "guided": {"guidance_scale": 2.0, "guidance_prompt_ids": [1, 2, 3, 4]},
    "guided as released": {"guidance_scale": 1.0, "guidance_prompt_ids": [1, 2], "guidance_alignment": "released"},
}


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_plain_decoder_gives_the_same_canvases(model, name, algorithm):
    config, questions = DecodingConfig(seed=5, algorithm=algorithm, **RELEASED[name]), prompts(9, 3, 6)
    assert_same(decode(model, questions, config, canvas=canvases()),
                decode_plain(model, questions, config, canvas=canvases()))
    free = config.replace(prefill={0.25: V.begin_of_audio})
    assert_same(decode(model, questions, free, lengths=[7, 14, 10]),
                decode_plain(model, questions, free, lengths=[7, 14, 10]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_bfloat16_an_answer_alone_is_the_plain_decoders(algorithm):
    """Ties are many there; both decide them in float32. In a batch padding changes the sums, and so the rounding."""
    coarse = decided(V).to(torch.bfloat16)
    for name, canvas in zip(("plain", "sampled", "ramp"), canvases(), strict=True):
        config = DecodingConfig(seed=5, algorithm=algorithm, **RELEASED[name])
        ours, plain = (how(coarse, prompts(9), config, canvas=canvas) for how in (decode, decode_plain))
        assert torch.equal(ours.ids, plain.ids) and torch.equal(ours.decided, plain.decided)


@pytest.mark.parametrize("name", RELEASED)
def test_the_whole_head_gives_the_same_canvases(model, name):
    config = DecodingConfig(seed=3, **RELEASED[name])
    assert_same(decode(model, prompts(9, 3, 6), config, canvas=canvases()),
                decode(model, prompts(9, 3, 6), config.replace(head="full"), canvas=canvases()))


def test_only_the_rows_of_the_head_that_may_occur_are_read(model):
    """A head whose other rows are not numbers gives the same answer."""
    canvas, config = answer_canvas(V, ["image"], {"image": 9}), DecodingConfig(temperature=1.0, top_p=0.9)
    expected = decode(model, prompts(5), config, canvas=canvas).ids
    broken = Denoiser(model.config)
    broken.load_state_dict(model.state_dict())
    broken.lm_head.weight.data[:V.image_range.start] = torch.nan
    assert torch.equal(decode(broken, prompts(5), config, canvas=canvas).ids, expected)
    full = config.replace(head="full")
    calls: list[int] = []
    broken.lm_head.register_forward_hook(lambda *_: calls.append(1))
    decode(broken, prompts(5), config, canvas=canvas)
    assert not calls
    assert decode(broken, prompts(5), full, canvas=canvas).passes == len(calls)


def test_what_does_not_change_is_not_embedded_again(model, monkeypatch):
    seen: list[int] = []
    embed = Denoiser.embed
    monkeypatch.setattr(Denoiser, "embed", lambda self, ids, *more: seen.append(ids.numel()) or embed(self, ids, *more))
    decode(model, prompts(9), DecodingConfig(length=6, allowed_ids=V.text_range))
    assert seen == [9, 6] + [1] * 6  # the prompt, the masks, then what each step fixed


def test_of_blocks_only_the_one_at_hand_is_scored(model, monkeypatch):
    """Later masks cannot be fixed in this step; where their ranks count, all are scored."""
    rows: list[int] = []
    run = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, hidden, at: rows.append(len(hidden)) or run(self, hidden, at))
    config = DecodingConfig(length=6, block_length=3, allowed_ids=V.text_range)
    decode(model, prompts(9), config)
    assert rows == [3, 2, 1, 3, 2, 1]
    rows.clear()
    decode(model, prompts(9), config.replace(position_penalty=2.0, position_free=2))
    assert rows == [6, 5, 4, 3, 2, 1]


def test_passes_are_counted(model):
    config = DecodingConfig(length=8, steps=4, allowed_ids=V.text_range)
    assert decode(model, prompts(4, 4), config).passes == 4
    assert decode_plain(model, prompts(4, 4), config).passes == 8  # one by one


def test_a_step_that_draws_no_position_is_no_pass(model):
    config = DecodingConfig(length=4, steps=4, algorithm="random")
    found = [decoder(model, prompts(4), config) for decoder in (decode, decode_plain)]
    assert [(result.passes, len(result.history)) for result in found] == [(3, 4)] * 2


def test_histories_are_sequences(model):
    result = decode(model, prompts(4), DecodingConfig(length=6, allowed_ids=V.text_range))
    assert len(result.history[1:3]) == 2 and torch.equal(result.history[-1], result.ids)
    assert torch.equal(result.history[2], decode_plain(model, prompts(4), DecodingConfig(
        length=6, allowed_ids=V.text_range)).history[2])
    with pytest.raises(IndexError):
        result.history[6]


@pytest.mark.parametrize("changes", [
    {"cache": "dual"}, {"threshold": 0.5, "algorithm": "confidence"}, {"entropy_bound": 1.0}, {"early_stop": True}])
def test_the_plain_decoder_refuses_what_the_release_lacks(model, changes):
    with pytest.raises(ConfigError, match="plain decoder"):
        decode_plain(model, prompts(4), DecodingConfig(length=4, **changes))


def test_a_span_of_a_single_id(model):
    canvas = Canvas(torch.full((4,), V.mask), (Span("end", 0, 4),), {"end": (range(7, 8),)})
    for algorithm in ALGORITHMS:
        config = DecodingConfig(algorithm=algorithm, top_k=3, top_p=0.5)
        assert_same(decode(model, prompts(4), config, canvas=canvas),
                    decode_plain(model, prompts(4), config, canvas=canvas))


@pytest.mark.parametrize("limited", [True, False])
def test_both_decoders_are_timed_on_the_same_answer(limited):
    size = DenoiserSize(hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=1, rope_theta=1e4)
    found = exact_speed(600, 12, steps=3, repeats=2, limited=limited, size=size)
    assert found.same and len(found.plain) == len(found.fast) == 2 and found.ratio > 0
    assert abs(vocabulary(176264).size - 176264) < 100
