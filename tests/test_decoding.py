"""Decoding: what must hold for any settings."""

from __future__ import annotations

import pytest
import torch
from toys import decided, prompts

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import S2I_SYSTEM, T2I_PROMPTS, ChatEncoder
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion import filters
from omnidiff_lite.diffusion.canvas import Canvas, Span, answer_canvas, inpainting_canvas
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.diffusion.guidance import combine, unconditional_prompt
from omnidiff_lite.diffusion.schedule import plan
from omnidiff_lite.tokenizers.text import extend, train_text_tokenizer
from omnidiff_lite.vocabulary import Vocabulary

V = Vocabulary.small(text=30, speech_codes=12, image_codes=16)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return decided(V)


# --- the schedule; every canvas of the released sampler is in test_parity_report.py ---------------------------------


def transfers(length: int, steps: int) -> list[int]:
    left, counts = length, []
    for step in plan(length, length, steps):
        counts.append(step.count(left))
        left -= counts[-1]
    return counts


def test_schedule():
    assert transfers(50, 25) == [1] + [2] * 23 + [3]  # recorded from the released sampler
    assert transfers(260, 260) == [1] * 260 and sum(transfers(260, 10)) == 260
    assert len(plan(48, 48, 48, block_length=16)) == 48
    assert [(s.start, s.stop) for s in plan(10, 10, 10, block_length=4) if s.last] == [(0, 4), (4, 8), (8, 10)]
    # Quirks of the released code that its results depend on: see the recorded behaviours.
    assert plan(48, 48, 24, block_length=1) == [] and len(plan(100, 53, 100, block_length=53)) == 52
    assert len(plan(129, 128, 129, block_length=32)) == 128  # begin-of-audio pre-filled: the last block is missing


@pytest.mark.parametrize("length", [20, 37, 43, 64])
def test_blocks_share_all_steps_among_them(length):
    """The released cut loses some: of 43 tokens' 10 steps five blocks of 8 and one of 3 got 5."""
    for steps in (length, length // 2, length // 4):
        steps_of = plan(length, length, steps, block_length=8, spread=True)
        assert len(steps_of) == steps and {s.start for s in steps_of} == set(range(0, length, 8))
    assert len(plan(length, length, 1, block_length=8, spread=True)) == -(-length // 8)  # at least one in each


# --- filters --------------------------------------------------------------------------------------------------------


def kept(logits: torch.Tensor) -> list[int]:
    return (logits[0] > filters.DROPPED).nonzero().flatten().tolist()


def test_top_p_keeps_the_token_that_crosses():
    logits = torch.tensor([[0.5, 0.1, 0.25, 0.15]]).log()
    assert kept(filters.keep_top_p(logits, 0.6)) == [0, 2]
    assert kept(filters.keep_top_p(logits, 0.1)) == [0]


def test_top_k_keeps_ties():
    assert kept(filters.keep_top_k(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), 2)) == [1, 2, 3]
    assert kept(filters.keep_top_k(torch.tensor([[1.0, 3.0]]), 50)) == [0, 1]


def test_repetition_is_penalised_once_an_id_and_never_id_0():
    logits = torch.tensor([[2.0, 2.0, -2.0, 3.0]])
    said = filters.said(torch.tensor([[1, 1, 2, 0, 3]]), torch.tensor([[True, True, True, True, False]]))
    assert said.tolist() == [[1, 1, 2, -1, -1]]
    assert torch.equal(filters.repetition_penalty(logits, torch.full((1, 2), -1), 2.0), logits)
    assert filters.repetition_penalty(logits, said, 2.0).tolist() == [[2.0, 1.0, -4.0, 3.0]]


def test_position_penalties():
    logits, rank = torch.tensor([[4.0, -4.0]]).repeat(6, 1), torch.arange(6)
    ramp = filters.ramp_penalty(logits, rank, torch.full((6,), 6), largest=3.0, free=2)
    torch.testing.assert_close(4 / ramp[:, 0], torch.tensor([1, 1, 1, 1.5, 2, 2.5]))
    torch.testing.assert_close(-ramp[:, 1] / 4, torch.tensor([1, 1, 1, 1.5, 2, 2.5]))
    assert torch.equal(filters.ramp_penalty(logits, rank, torch.full((6,), 6), largest=3.0, free=6), logits)
    fixed = filters.fixed_penalty(logits, rank, torch.full((6,), 6), gamma=0.5, free=4)
    assert fixed[:, 0].tolist() == [4, 4, 4, 4, 2, 2] and fixed[:, 1].tolist() == [-4, -4, -4, -4, -2, -2]


def test_confidences():
    p, token = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([1])
    assert filters.confidence(p, token, "confidence").item() == pytest.approx(0.3)
    assert filters.confidence(p, token, "margin").item() == pytest.approx(0.2)
    assert filters.confidence(p, token, "entropy").item() == pytest.approx((p * p.log()).sum().item())


def test_draws_follow_the_distribution_and_never_hit_an_impossible_token():
    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]).expand(20000, -1)
    tokens = filters.draw(p, torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(tokens.bincount(minlength=6) / 20000, p[0], atol=0.015, rtol=0)
    edges = filters.draw(p[:2], torch.tensor([0.0, 1.0]))
    assert set(edges.tolist()) <= {1, 3, 4}


# --- a batch is what its members are alone --------------------------------------------------------------------------


SETTINGS = {
    "entropy": {"repetition_penalty": 1.3, "top_p": 0.9},
    "blocks": {"algorithm": "margin", "block_length": 4},
    "ramp": {"position_penalty": 2.0, "position_free": 5, "algorithm": "confidence"},
    "fixed": {"position_penalty": 0.5, "position_penalty_mode": "fixed", "position_free": 5},
    "random": {"algorithm": "random", "steps": 4},
    "sampled": {"temperature": 1.0, "top_k": 10, "confidence_temperature": 0.3, "steps": 0.5},
    "threshold": {"threshold": 0.5, "algorithm": "confidence"},
    "prefill": {"prefill": {0.25: V.begin_of_audio}},
    "guided": {"guidance_scale": 2.0, "guidance_prompt_ids": [1, 2, 3, 4]},
    "guided as released": {"guidance_scale": 2.0, "guidance_prompt_ids": [1, 2], "guidance_alignment": "released"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_of_unequal_sequences_is_one_by_one(model, name):
    questions, lengths = prompts(9, 3, 6), [7, 12, 10]
    config = DecodingConfig(seed=5, **SETTINGS[name])
    together = decode(model, questions, config, lengths=lengths)
    for i, (question, length) in enumerate(zip(questions, lengths)):
        alone = decode(model, question, config.replace(seed=5 + i), lengths=length)
        assert torch.equal(together.ids[i, :length], alone.ids[0])
        assert (together.ids[i, length:] == V.pad).all()
        assert torch.equal(together.decided[i, :length], alone.decided[0])
        torch.testing.assert_close(together.confidence[i, :length], alone.confidence[0], equal_nan=True)
        for own, canvas in zip(alone.history, together.history):
            assert torch.equal(canvas[i, :length], own[0])


def test_prompts_come_in_many_forms(model):
    question, config = prompts(5)[0], DecodingConfig(length=6)
    expected = decode(model, question, config).ids
    assert expected.shape == (1, 6)
    for form in (question[None], [question], question.tolist(), [question.tolist()]):
        assert torch.equal(decode(model, form, config).ids, expected)
    for embeds in (model.embed(question), model.embed(question[None]), [model.embed(question)]):
        assert torch.equal(decode(model, None, config, prompt_embeds=embeds).ids, expected)
    assert decode(model, torch.zeros(0, dtype=torch.long), config).ids.shape == (1, 6)  # no prompt at all


def test_half_precision_models_decode(model):
    half = Denoiser(model.config).to(torch.bfloat16)
    result = decode(half, prompts(5, 3), DecodingConfig(length=6))
    assert result.confidence.dtype == torch.float32 and not (result.ids == V.mask).all()


# --- trace ----------------------------------------------------------------------------------------------------------


def test_the_trace_tells_what_happened(model):
    result = decode(model, prompts(4), DecodingConfig(length=8, steps=4, allowed_ids=V.text_range))
    assert len(result.history) == 4 and torch.equal(result.history[-1], result.ids)
    for step, canvas in enumerate(result.history):
        assert torch.equal(canvas != V.mask, result.decided <= step)
    assert (result.confidence <= 0).all()  # a negative entropy


def test_a_predicted_mask_stays_masked(model):
    result = decode(model, prompts(4), DecodingConfig(length=6, allowed_ids=[V.mask]))
    assert (result.ids == V.mask).all() and (result.decided == -1).all() and result.confidence.isnan().all()


# --- settings that bound the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [range(3, 6), [3, 4, 5], torch.tensor([3, 4, 5])])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_allowed_ids(model, ids, temperature):
    config = DecodingConfig(length=20, allowed_ids=ids, temperature=temperature, top_p=0.9, top_k=50,
                            repetition_penalty=1.5, algorithm="margin")
    assert set(decode(model, prompts(4), config).ids[0].tolist()) <= {3, 4, 5}


def test_a_canvas_bounds_each_span(model):
    canvas = answer_canvas(V, ["text", "speech", "image"], {"text": 5, "speech": 6, "image": 9}, newline=10)
    ids = decode(model, prompts(4), DecodingConfig(temperature=1.5), canvas=canvas).ids[0]
    for modality, start, stop in canvas.spans:
        allowed = {i for part in canvas.allowed[modality] for i in part}
        assert set(ids[start:stop].tolist()) <= allowed
    known = canvas.ids != V.mask
    assert torch.equal(ids[known], canvas.ids[known])


def test_allowed_ids_by_modality_go_before_the_canvas(model):
    canvas = answer_canvas(V, ["text", "image"], {"text": 4, "image": 4})
    config = DecodingConfig(allowed_ids={"image": V.image_range[2:4]})
    ids = decode(model, prompts(4), config, canvas=canvas).ids[0]
    assert set(ids[5:9].tolist()) <= set(V.image_range[2:4])
    assert set(ids[:4].tolist()) <= {*V.text_range, V.im_end, V.pad}
    with pytest.raises(ConfigError, match="allowed_ids names image"):
        decode(model, prompts(4), config.replace(length=4))


def test_inpainting_keeps_known_tokens_of_an_oblong_picture(model):
    codes = torch.arange(15).view(3, 5)
    hole = torch.zeros(3, 5, dtype=torch.bool)
    hole[1:, 2:4] = True
    canvas = inpainting_canvas(V, codes, hole)
    result = decode(model, prompts(4), DecodingConfig(), canvas=canvas)
    picture = (result.ids[0, 1:16] - V.image_range.start).view(3, 5)
    assert torch.equal(picture[~hole], codes[~hole]) and len(result.history) == hole.sum()
    assert all(int(i) in V.image_range for i in result.ids[0, 1:16])


def test_blocks_go_left_to_right(model):
    result = decode(model, prompts(4), DecodingConfig(length=12, block_length=4, allowed_ids=V.text_range))
    assert all(int(d) // 4 == place // 4 for place, d in enumerate(result.decided[0]))


def test_prefill_puts_a_token_at_its_fraction(model):
    result = decode(model, prompts(4, 4), DecodingConfig(prefill={0.25: V.begin_of_audio}, steps=1), lengths=[8, 12])
    assert result.ids[0, 2] == result.ids[1, 3] == V.begin_of_audio
    assert result.decided[0, 2] == result.decided[1, 3] == -1


def test_threshold_fixes_at_once_what_is_sure(model):
    config = DecodingConfig(length=12, algorithm="confidence", allowed_ids=V.text_range)
    slow = decode(model, prompts(4), config)
    assert len(decode(model, prompts(4), config.replace(threshold=0.0)).history) == 1
    assert torch.equal(decode(model, prompts(4), config.replace(threshold=1.1)).ids, slow.ids)
    middle = decode(model, prompts(4), config.replace(threshold=slow.confidence.median().item()))
    assert 1 < len(middle.history) < 12 and not (middle.ids == V.mask).any()


def test_sampling_is_seeded(model):
    config = DecodingConfig(length=16, temperature=1.5)
    draws = [decode(model, prompts(4), config.replace(seed=s)).ids for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    state = torch.get_rng_state()
    decode(model, prompts(4), config)
    assert torch.equal(torch.get_rng_state(), state)  # the global random state is left alone


# --- guidance -------------------------------------------------------------------------------------------------------


def test_guidance_weights():
    conditional, unconditional = torch.randn(2, 3, 5).unbind()
    torch.testing.assert_close(combine(conditional, unconditional, 1.0, "aligned"), conditional)
    torch.testing.assert_close(combine(conditional, unconditional, 0.0, "released"), conditional)
    torch.testing.assert_close(combine(conditional, unconditional, 2.0, "released"),
                               combine(conditional, unconditional, 3.0, "aligned"))


@pytest.mark.parametrize("alignment", ["aligned", "released"])
def test_guidance_by_the_same_prompt_changes_nothing(model, alignment):
    question, config = prompts(6)[0], DecodingConfig(length=8)
    guided = config.replace(guidance_scale=3.0, guidance_prompt_ids=question, guidance_alignment=alignment)
    assert torch.equal(decode(model, question, guided).ids, decode(model, question, config).ids)


def test_aligned_guidance_reads_both_sides_at_the_same_answer_position(model):
    """One step, everything decided at once: compare with the two sides run apart."""
    long, short, n = *prompts(9, 4), 6
    config = DecodingConfig(length=n, steps=1, guidance_scale=2.5, guidance_prompt_ids=short)
    masks = torch.full((n,), V.mask)
    sides = [model(torch.cat([p, masks])[None]).logits[0, len(p) - 1:-1] for p in (long, short)]
    expected = combine(*sides, 2.5, "aligned").argmax(-1)
    assert torch.equal(decode(model, long, config).ids[0], expected)
    misaligned = config.replace(guidance_alignment="released", guidance_scale=1.5)
    assert not torch.equal(decode(model, long, misaligned).ids[0], expected)


def test_each_sequence_may_have_its_own_unconditional_prompt(model):
    questions, blanks = prompts(6, 4), [[1, 2, 3], [4]]
    config = DecodingConfig(length=5, guidance_scale=2.0)
    together = decode(model, questions, config.replace(guidance_prompt_ids=blanks))
    for i in range(2):
        alone = decode(model, questions[i], config.replace(guidance_prompt_ids=blanks[i]))
        assert torch.equal(together.ids[i], alone.ids[0])


def test_unconditional_prompts():
    tokenizer = train_text_tokenizer(["user assistant system a red circle"] * 4, 300)
    encoder = ChatEncoder(extend(tokenizer, 4, 4), tokenizer)
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    text = tokenizer.decode(unconditional_prompt("s2i", encoder))
    assert text == f"<|im_start|>system\n{S2I_SYSTEM}<|im_end|>\n" + turn.format("")
    assert tokenizer.decode(unconditional_prompt("t2i", encoder)) == turn.format(T2I_PROMPTS[0] + "\n")
    fixed = unconditional_prompt("t2i", encoder)
    filled = unconditional_prompt("t2i", encoder, len(fixed) + 7, torch.Generator().manual_seed(0))
    end = len(fixed) - fixed[::-1].index(encoder.vocabulary.im_end) - 1
    assert len(filled) == len(fixed) + 7 and filled[:end] == fixed[:end] and filled[end + 7:] == fixed[end:]
    assert len({*filled[end:end + 7]}) == 7 and all(i in encoder.vocabulary.text_range for i in filled[end:end + 7])
    with pytest.raises(ValueError, match="below the"):
        unconditional_prompt("t2i", encoder, 3)
    with pytest.raises(ValueError, match="'asr' has no unconditional prompt"):
        unconditional_prompt("asr", encoder)


# --- configuration --------------------------------------------------------------------------------------------------


def test_released_and_paper_settings():
    s2i = DecodingConfig.released("s2i")
    assert (s2i.length, s2i.steps, s2i.repetition_penalty, s2i.position_penalty) == (260, 260, 1.5, 2.0)
    assert (s2i.guidance_scale, s2i.guidance_alignment, s2i.top_p, s2i.top_k) == (2.0, "released", 0.9, 50)
    assert DecodingConfig.released("svqa").prefill == {0.2: 151684}
    assert DecodingConfig.released("mme").length == 8 and DecodingConfig.released("asr").step_count(50) == 25
    t2i = DecodingConfig.paper("t2i")
    assert (t2i.length, t2i.algorithm) == (256, "entropy")
    assert (t2i.position_penalty, t2i.position_penalty_mode) == (0.5, "fixed")
    assert DecodingConfig.paper("svqa", V).prefill == {0.25: V.begin_of_audio}
    assert DecodingConfig.paper("tts").step_count(35) == 17
    with pytest.raises(ConfigError, match="'dubbing'; choose one of"):
        DecodingConfig.paper("dubbing")


@pytest.mark.parametrize("wrong", [
    {"length": 0}, {"steps": 0}, {"algorithm": "maskgit"}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0},
    {"eps": 1.0}, {"repetition_penalty": 0.0}, {"position_penalty": 0.0}, {"position_penalty_mode": "late"},
    {"position_free": -1}, {"prefill": {1.0: 5}}, {"guidance_alignment": "left"}, {"block_length": 0},
    {"threshold": 0.5, "algorithm": "random"}, {"threshold": 0.5}, {"confidence_temperature": -1.0}, {"cache": "fifo"},
    {"cache": "dual", "algorithm": "random"}, {"cache_refresh": 0}, {"entropy_bound": -0.1},
    {"entropy_bound": 0.1, "algorithm": "random"}, {"schedule": "sine"}, {"head": "half"}, {"early_stop": 1},
])
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: expected"):
        DecodingConfig(**wrong)


def test_settings_that_do_not_fit_the_call(model):
    with pytest.raises(ConfigError, match="unknown decoding setting 'step'; did you mean 'steps'"):
        DecodingConfig().replace(step=3)
    for config, keywords, message in [
        (DecodingConfig(), {}, "length is None"),
        (DecodingConfig(length=4, guidance_scale=2.0), {}, "needs guidance_prompt_ids"),
        (DecodingConfig(length=4, guidance_prompt_ids=[1] * 9, guidance_scale=1.0, guidance_alignment="released"), {},
         "at least as long as the unconditional one"),
        (DecodingConfig(length=4, guidance_prompt_ids=[[1]] * 3, guidance_scale=2.0), {}, "3 prompts for 1"),
        (DecodingConfig(length=4, allowed_ids=[V.size]), {}, "must lie in 0"),
        (DecodingConfig(length=4, allowed_ids=[]), {}, "nothing could be decoded"),
        (DecodingConfig(), {"lengths": [3, 4]}, "2 answers .* for 1 prompts"),
        (DecodingConfig(), {"lengths": [0]}, "at least 1 token"),
    ]:
        with pytest.raises(ConfigError, match=message):
            decode(model, prompts(4), config, **keywords)
    with pytest.raises(ConfigError, match="prompt_ids or prompt_embeds"):
        decode(model, None, DecodingConfig(length=3))


def test_a_canvas_brings_its_own_markers(model):
    canvas = Canvas(torch.full((4,), V.mask), (Span("text", 0, 4),), {"text": (V.text_range,)})
    ids = decode(model, prompts(3), DecodingConfig(prefill={0.5: V.begin_of_audio}), canvas=canvas).ids
    assert V.begin_of_audio not in ids
