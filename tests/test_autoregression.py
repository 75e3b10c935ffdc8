"""The autoregressive twin: left to right, cached, on the diffusion model's canvases, and behind the same pipeline."""

from __future__ import annotations

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from toys import decided, prompts

from omnidiff_lite.autoregression import decode_autoregressive
from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.canvas import Canvas, Span, answer_canvas, inpainting_canvas
from omnidiff_lite.diffusion.guidance import combine
from omnidiff_lite.diffusion.settings import DecodingConfig
from omnidiff_lite.media import Image, Speech, Text, Waveform
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.pipeline.system import token_mask
from omnidiff_lite.vocabulary import Vocabulary

V = Vocabulary.small(text=30, speech_codes=12, image_codes=16)
NO_END = [i for i in range(V.size) if i not in (V.pad, V.im_end)]


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return decided(V, is_causal=True)


def greedy(model: Denoiser, prompt: torch.Tensor, n: int, allowed: list[int]) -> list[int]:
    """The plain loop: the whole sequence again for each token, the likeliest allowed one each time."""
    ids, choices = prompt.tolist(), torch.tensor(allowed)
    for _ in range(n):
        with torch.no_grad():
            last = model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(choices[last[choices].argmax()]))
    return ids[len(prompt):]


def drawing(text: int = 5, side: int = 3) -> Canvas:
    """Some text, then a picture."""
    return answer_canvas(V, ["text", "image"], {"text": text, "image": side * side}, newline=10)


# --- what is decoded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_decoding_is_the_plain_loop(model, attention):
    model.set_attn_implementation(attention)
    questions, config = prompts(9, 3, 6), DecodingConfig(length=8, allowed_ids=NO_END)
    result = decode_autoregressive(model, questions, config)
    model.set_attn_implementation("sdpa")
    assert result.ids.tolist() == [greedy(model, question, 8, NO_END) for question in questions]
    assert result.decided.tolist() == [list(range(8))] * 3 and result.lengths == [8] * 3


SETTINGS = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3, "top_p": 0.9},
    "sampled": {"temperature": 1.0, "top_k": 10, "top_p": 0.95},
    "hot": {"temperature": 2.0, "algorithm": "margin"},
    "guided": {"temperature": 0.7, "guidance_scale": 2.0, "guidance_prompt_ids": [1, 2, 3, 4]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_cache_changes_nothing(model, name):
    canvases = [drawing(), answer_canvas(V, ["speech"], {"speech": 12}), inpainting_canvas(
        V, torch.arange(16).view(4, 4), torch.eye(4).bool())]
    config = DecodingConfig(seed=3, **SETTINGS[name])
    cached, plain = (decode_autoregressive(model, prompts(4, 7, 2), config, canvas=canvases, ends=[V.im_end],
                                           use_cache=cache) for cache in (True, False))
    assert torch.equal(cached.ids, plain.ids) and cached.lengths == plain.lengths
    torch.testing.assert_close(cached.confidence, plain.confidence, equal_nan=True, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_of_unequal_sequences_is_one_by_one(model, name):
    questions, canvases = prompts(9, 3, 6), [drawing(5), drawing(9, 2), answer_canvas(V, ["text"], {"text": 14})]
    config = DecodingConfig(seed=5, **SETTINGS[name])
    model = copy.deepcopy(model).double()  # sums in another order differ, in float32 by more than the bound below
    together = decode_autoregressive(model, questions, config, canvas=canvases, ends=[V.im_end])
    for i, (question, canvas) in enumerate(zip(questions, canvases)):
        alone = decode_autoregressive(model, question, config, canvas=canvas, seeds=[5 + i], ends=[V.im_end])
        n = len(canvas)
        assert torch.equal(together.ids[i, :n], alone.ids[0]) and (together.ids[i, n:] == V.pad).all()
        assert together.lengths[i] == alone.lengths[0]
        assert torch.equal(together.decided[i, :n], alone.decided[0])
        torch.testing.assert_close(together.confidence[i, :n], alone.confidence[0], equal_nan=True)
        for own, both in zip(alone.history, together.history):
            assert torch.equal(both[i, :n], own[0])


def test_sampling_is_seeded(model):
    config = DecodingConfig(length=16, temperature=1.5, allowed_ids=NO_END)
    state = torch.get_rng_state()
    draws = [decode_autoregressive(model, prompts(4), config.replace(seed=s)).ids for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)  # the global random state is left alone
    cold = [decode_autoregressive(model, prompts(4), config.replace(seed=s, temperature=0.0)).ids for s in (0, 1)]
    assert torch.equal(*cold)


def test_sampling_follows_the_distribution(model):
    question, n = prompts(4)[0], 4000
    config = DecodingConfig(length=1, temperature=0.8, top_k=5)
    drawn = decode_autoregressive(model, question.repeat(n, 1), config).ids.flatten()
    logits = model(question[None]).logits[0, -1] / 0.8
    top = logits.topk(5)
    frequency = (drawn[:, None] == top.indices).float().mean(0)
    torch.testing.assert_close(frequency, top.values.softmax(-1), atol=0.03, rtol=0)


def test_prompts_come_as_embeddings_too_and_in_half_precision(model):
    config = DecodingConfig(length=6)
    expected = decode_autoregressive(model, prompts(5), config).ids
    embeds = [model.embed(question) for question in prompts(5)]
    assert torch.equal(decode_autoregressive(model, None, config, prompt_embeds=embeds).ids, expected)
    half = Denoiser(model.config).to(torch.bfloat16)
    assert decode_autoregressive(half, prompts(5, 3), config).confidence.dtype == torch.float32


def test_repetition_is_penalised_among_what_was_drawn(model):
    question, factor, said = prompts(4)[0], 3.0, []
    for _ in range(8):
        logits = model(torch.tensor([question.tolist() + said])).logits[0, -1, :5]
        for token in {*said} - {0}:
            logits[token] *= factor if logits[token] < 0 else 1 / factor
        said.append(int(logits.argmax()))
    config = DecodingConfig(length=8, allowed_ids=range(5), repetition_penalty=factor)
    assert decode_autoregressive(model, question, config).ids[0].tolist() == said
    free = decode_autoregressive(model, question, config.replace(repetition_penalty=1.0))
    assert free.ids[0].tolist() != said


def test_what_is_given_is_not_repeated_by_a_first_draw(model):
    canvas = Canvas(torch.tensor([3, 5, V.mask]), (Span("text", 2, 3),), {"text": (range(3, 4), range(5, 6))})
    config = DecodingConfig(repetition_penalty=3.0)
    penalised, free = (decode_autoregressive(model, prompts(4), settings, canvas=canvas).confidence[0, 2:]
                       for settings in (config, config.replace(repetition_penalty=1.0)))
    assert torch.equal(penalised, free)


# --- the canvas -----------------------------------------------------------------------------------------------------


def test_a_canvas_bounds_each_span_and_keeps_what_is_given(model):
    canvas = answer_canvas(V, ["text", "speech", "image"], {"text": 5, "speech": 6, "image": 9}, newline=10)
    result = decode_autoregressive(model, prompts(4), DecodingConfig(temperature=1.5), canvas=canvas, ends=[V.im_end])
    ids = result.ids[0]
    for modality, start, stop in canvas.spans:
        assert set(ids[start:stop].tolist()) <= {i for part in canvas.allowed[modality] for i in part}
    known = canvas.ids != V.mask
    assert torch.equal(ids[known], canvas.ids[known]) and (result.decided[0, known] == -1).all()
    assert len(V.codes_of_image(ids)) == 9 and result.lengths == [len(canvas)]


def test_allowed_ids_by_modality_go_before_the_canvas(model):
    config = DecodingConfig(allowed_ids={"image": V.image_range[2:4]})
    ids = decode_autoregressive(model, prompts(4), config, canvas=drawing()).ids[0]
    assert set(ids[6:15].tolist()) <= set(V.image_range[2:4])


def test_given_tokens_are_seen_as_soon_as_they_are_passed(model):
    question, hole = prompts(4)[0], torch.tensor([[False, True], [False, True]])
    canvas = inpainting_canvas(V, torch.tensor([[1, 2], [3, 4]]), hole)
    result = decode_autoregressive(model, question, DecodingConfig(), canvas=canvas)
    seen, image = [*question.tolist(), V.begin_of_image], list(V.image_range)
    for given in (1, 3):
        seen.append(image[given])
        seen += greedy(model, torch.tensor(seen), 1, image)
    assert result.ids[0, :5].tolist() == seen[4:] and result.decided[0].tolist() == [-1, -1, 2, -1, 4, -1, -1]
    assert len(result.history) == 5 and torch.equal(result.history[-1], result.ids), "nothing is run for what is given"


@pytest.mark.parametrize("end", [V.im_end, V.pad])
def test_an_answer_ends_at_an_end_id(model, end):
    """Only the end is allowed from the third place on."""
    spans = (Span("text", 0, 2), Span("end", 2, 8))
    canvas = Canvas(torch.full((8,), V.mask), spans, {"text": (V.text_range,), "end": (range(end, end + 1),)})
    longer = Canvas(torch.full((5,), V.mask), (Span("text", 0, 5),), {"text": (V.text_range,)})
    result = decode_autoregressive(model, prompts(4), DecodingConfig(), canvas=canvas, ends=[V.im_end])
    assert result.ids[0, 2:].tolist() == [end] + [V.pad] * 5 and result.lengths == [3]
    assert len(result.history) == 3 and torch.equal(result.history[-1], result.ids)
    assert result.decided[0].tolist() == [0, 1, 2] + [-1] * 5
    both = decode_autoregressive(model, prompts(4, 6), DecodingConfig(), canvas=[canvas, longer], ends=[V.im_end])
    assert len(both.history) == 5 and both.lengths == [3, 5], "it goes on until all are over"
    if end == V.im_end:
        assert decode_autoregressive(model, prompts(4), DecodingConfig(), canvas=canvas).lengths == [8]


def test_what_is_given_follows_an_early_end(model):
    canvas = drawing(text=6)
    spans, ends = canvas.spans, {**canvas.allowed, "text": (range(V.im_end, V.im_end + 1),)}
    result = decode_autoregressive(model, prompts(4), DecodingConfig(), canvas=Canvas(canvas.ids, spans, ends),
                                   ends=[V.im_end])
    ids = result.ids[0].tolist()
    assert ids[1:7] == [V.im_end] + [V.pad] * 4 + [V.begin_of_image] and len(V.codes_of_image(ids)) == 9
    assert result.decided[0, 2:7].tolist() == [-1] * 5 and result.lengths == [len(canvas)]


# --- guidance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment, scale", [("aligned", 2.5), ("released", 1.5)])
def test_guidance_weighs_both_prompts_at_the_same_place(model, alignment, scale):
    long, short = prompts(9, 4)
    config = DecodingConfig(length=6, guidance_scale=scale, guidance_prompt_ids=short, guidance_alignment=alignment,
                            allowed_ids=NO_END)
    sides = [long.tolist(), short.tolist()]
    for _ in range(6):
        logits = combine(*(model(torch.tensor([side])).logits[0, -1] for side in sides), 2.5, "aligned")
        token = NO_END[int(logits[NO_END].argmax())]
        sides = [side + [token] for side in sides]
    assert decode_autoregressive(model, long, config).ids[0].tolist() == sides[0][9:]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told(model):
    for config, keywords, message in [
        (DecodingConfig(), {}, "length is None"),
        (DecodingConfig(length=4, guidance_scale=2.0), {}, "needs guidance_prompt_ids"),
        (DecodingConfig(length=4, guidance_scale=2.0, guidance_prompt_ids=[]), {}, "at least one token"),
        (DecodingConfig(length=4, allowed_ids=[V.size]), {}, "must lie in 0"),
        (DecodingConfig(), {"lengths": [3, 4]}, "2 answers .* for 1 prompts"),
    ]:
        with pytest.raises(ConfigError, match=message):
            decode_autoregressive(model, prompts(4), config, **keywords)
    with pytest.raises(ConfigError, match="at least one token"):
        decode_autoregressive(model, prompts(4, 0), DecodingConfig(length=4))
    with pytest.raises(ConfigError, match="prompt_ids or prompt_embeds"):
        decode_autoregressive(model, None, DecodingConfig(length=4))
    with pytest.raises(ConfigError, match="needs a causal denoiser"):
        decode_autoregressive(decided(V), prompts(4), DecodingConfig(length=4))


# --- the pipeline ---------------------------------------------------------------------------------------------------


RNG = np.random.default_rng(0)
SOUND = Waveform((0.1 * RNG.standard_normal(8000)).astype(np.float32), 16000)
PICTURE = PIL.Image.fromarray(RNG.integers(0, 255, (50, 80, 3), dtype=np.uint8))
PARTS = {"text": Text("a red circle"), "speech": Speech(SOUND), "image": Image(PICTURE)}


@pytest.fixture(scope="module")
def twin(tiny_model) -> OmniDiffusion:
    torch.manual_seed(0)
    config = DenoiserConfig(**{**tiny_model.denoiser.config.to_diff_dict(), "is_causal": True})
    causal = Denoiser(config)
    torch.nn.init.normal_(causal.lm_head.weight, std=0.5)
    return OmniDiffusion(causal, tiny_model.tokenizers, tiny_model.settings)


@pytest.mark.parametrize("inputs, outputs", [
    (("text",), ("text",)), (("text",), ("speech",)), (("text",), ("image",)), (("speech",), ("text", "speech")),
    (("speech", "image"), ("text", "speech")), (("image", "text"), ("text", "speech", "image"))])
def test_the_twin_answers_in_the_form_asked_for(twin, inputs, outputs):
    answer = twin.generate([PARTS[name] for name in inputs], to=outputs, decoding={"steps": 2})
    assert [answer.text is not None, answer.speech is not None, answer.image is not None] == [
        name in outputs for name in ("text", "speech", "image")]
    assert answer.text is None or answer.text.strip(), "an answer in text says something"
    assert answer.image is None or answer.image.size == (64, 64)
    assert twin.tokenizers.vocabulary.mask not in answer.ids and len(answer.trace[0].ids) == len(answer.ids)


def test_a_batch_of_requests_is_one_by_one(twin):
    requests = [[Speech(SOUND)], [Speech(Waveform(np.tile(SOUND.samples, 3), 16000))],
                [Speech(SOUND), Image(PICTURE)]]
    together = twin.generate_many(requests, to=("text", "speech"), seed=7, batch_size=3)
    for i, request in enumerate(requests):
        alone = twin.generate(request, to=("text", "speech"), seed=7 + i)
        assert np.array_equal(together[i].ids, alone.ids) and together[i].text == alone.text


def test_pre_filling_does_not_cut_the_twins_text(twin):
    begin = twin.tokenizers.vocabulary.begin_of_audio
    asked = [twin.generate(Speech(SOUND), to=("text", "speech"), decoding={"prefill": prefill}).ids
             for prefill in ({0.25: begin}, {})]
    assert np.array_equal(*asked)


def test_the_released_style_and_guidance_reach_the_twin(twin):
    assert len(twin.generate("a red circle", to="text", decoding="released").ids) >= 1
    free, guided = (twin.generate("a red circle", to="image", decoding={"guidance_scale": scale}).trace[1].confidence
                    for scale in (1.0, 4.0))
    assert free[1] != guided[1], "the first image token"


def test_the_twin_inpaints_and_keeps_what_is_not_covered(twin):
    mask = np.zeros((50, 80), bool)
    mask[:, 45:] = True
    answer = twin.inpaint(PICTURE, mask, prompt="a red circle")
    before, after = twin.image_codes([PICTURE], 64)[0], twin.tokenizers.vocabulary.codes_of_image(answer.ids)
    hidden = token_mask(mask, PICTURE.size, 64, 16).flatten().tolist()
    assert len(after) == 16 and all(a == b for a, b, h in zip(after, before, hidden) if not h)


def test_a_saved_twin_is_still_a_twin(twin, tmp_path):
    twin.save_pretrained(tmp_path / "system", dtype=torch.float32)
    loaded = OmniDiffusion.from_pretrained(tmp_path / "system", device="cpu")
    assert loaded.denoiser.config.is_causal
    asked = [twin_.generate([PARTS["image"]], to="text", seed=1).ids for twin_ in (twin, loaded)]
    assert np.array_equal(*asked)
