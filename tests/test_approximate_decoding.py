"""Less work for nearly the same answer: caches, committing sure tokens at once, early stops, the cosine schedule."""

from __future__ import annotations

import pytest
import torch
from toys import decided, prompts

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.cache import padded
from omnidiff_lite.diffusion.canvas import Canvas, answer_canvas
from omnidiff_lite.diffusion.choosing import bounded
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.diffusion.drift import drift
from omnidiff_lite.diffusion.schedule import plan
from omnidiff_lite.diffusion.stopping import finished
from omnidiff_lite.vocabulary import Vocabulary

V = Vocabulary.small(text=30, speech_codes=12, image_codes=16)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return decided(V, layers=3)


def canvases() -> list[Canvas]:
    return [answer_canvas(V, ["text", "speech", "image"], {"text": 3, "speech": 4, "image": 4}, newline=10),
            answer_canvas(V, ["image"], {"image": 9}), answer_canvas(V, ["speech"], {"speech": 6}, newline=10)]


GUIDED = {"guidance_scale": 2.0, "guidance_prompt_ids": [1, 2]}
SETTINGS = {
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual", "cache_refresh": 3},
    "dual, sampled": {"cache": "dual", "temperature": 0.7, "top_p": 0.9, "steps": 0.5, "confidence_temperature": 0.2},
    "dual, guided": {"cache": "dual", **GUIDED},
    "dual, guided as released": {"cache": "dual", **GUIDED, "guidance_alignment": "released"},
    "prefix, guided as released": {"cache": "prefix", **GUIDED, "guidance_alignment": "released"},
    "dual, blocks": {"cache": "dual", "block_length": 4, "threshold": 0.3, "algorithm": "confidence"},
    "entropy bound": {"entropy_bound": 1.0},
    "entropy bound, margin": {"entropy_bound": 0.5, "algorithm": "margin", "temperature": 0.7},
    "entropy bound, blocks": {"entropy_bound": 2.0, "block_length": 4},
    "cosine": {"schedule": "cosine", "steps": 4},
    "early stop": {"early_stop": True, "temperature": 1.5},
    "all": {"cache": "dual", "cache_refresh": 2, "entropy_bound": 0.5, "early_stop": True, "schedule": "cosine",
            "threshold": -0.1, "temperature": 0.5},
}
ENDS = (V.im_end, V.end_of_audio)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_is_one_by_one_and_leaves_no_mask(model, name):
    questions, config = prompts(9, 3, 6), DecodingConfig(seed=5, **SETTINGS[name])
    together = decode(model, questions, config, canvas=canvases(), ends=ENDS)
    assert not (together.ids == V.mask).any()
    for i, (question, canvas) in enumerate(zip(questions, canvases())):
        alone = decode(model, question, config.replace(seed=5 + i), canvas=canvas, ends=ENDS)
        n = len(canvas)
        assert torch.equal(together.ids[i, :n], alone.ids[0]) and (together.ids[i, n:] == V.pad).all()
        assert torch.equal(together.decided[i, :n], alone.decided[0])
        torch.testing.assert_close(together.confidence[i, :n], alone.confidence[0], rtol=1e-4, atol=1e-4,
                                   equal_nan=True)


# --- caches ---------------------------------------------------------------------------------------------------------


FREE = {"alone": {}, "guided": GUIDED, "blocks": {"block_length": 4},
        "sampled": {"temperature": 0.7, "top_p": 0.9, "steps": 0.5}}
CACHED = {f"{name} {cache}": {**settings, "cache": cache} for cache in ("prefix", "dual")
          for name, settings in FREE.items()}


@pytest.mark.parametrize("name", CACHED)
def test_a_refresh_every_step_is_no_cache(model, name):
    config = DecodingConfig(cache_refresh=1, **CACHED[name])
    cached = decode(model, prompts(9, 3, 6), config, canvas=canvases())
    none = decode(model, prompts(9, 3, 6), config.replace(cache="none"), canvas=canvases())
    assert torch.equal(cached.ids, none.ids) and torch.equal(cached.decided, none.decided)
    assert torch.equal(cached.confidence.nan_to_num(9), none.confidence.nan_to_num(9))
    found = drift(model, prompts(9, 3, 6), config, canvas=canvases())
    assert (found.tokens, found.logits) == (0, 0)


@pytest.mark.parametrize("name", CACHED)
def test_one_layer_has_nothing_to_approximate(name):
    """Keys and values of the first layer hang on their own token alone: what is not run again is what it was."""
    model, config = decided(V, layers=1), DecodingConfig(cache_refresh=100, **CACHED[name])
    cached = decode(model, prompts(9, 3, 6), config, canvas=canvases())
    none = decode(model, prompts(9, 3, 6), config.replace(cache="none"), canvas=canvases())
    assert torch.equal(cached.ids, none.ids) and torch.equal(cached.decided, none.decided)
    found = drift(model, prompts(9, 3, 6), config, canvas=canvases())
    assert found.tokens == 0 and found.logits < 1e-4


def test_several_layers_drift_and_less_with_more_refreshes(model):
    config = DecodingConfig(cache="dual", length=24, allowed_ids=V.text_range)
    often, never = (drift(model, prompts(9), config.replace(cache_refresh=n)) for n in (2, 100))
    assert 0 < often.typical < never.typical and never.logits > 0
    cached, exact = (decode(model, prompts(9), config.replace(cache=cache, cache_refresh=100)).ids
                     for cache in ("dual", "none"))
    assert 0 < never.tokens == pytest.approx((cached != exact).float().mean().item())
    with pytest.raises(ConfigError, match="drift compares a cache with none"):
        drift(model, prompts(9), config.replace(cache="none"))


def test_cached_passes_run_fewer_positions(model, monkeypatch):
    sizes: list[int] = []
    forward = Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, *a, **k: sizes.append(k["inputs_embeds"].shape[1])
                        or forward(self, *a, **k))
    config = DecodingConfig(length=8, cache_refresh=4, allowed_ids=V.text_range)
    decode(model, prompts(20), config.replace(cache="prefix"))
    assert sizes[0] == sizes[4] == 28 and len(sizes) == 8
    assert set(sizes) <= {28, 9, 8}  # the answer and, while its first is masked, the prompt's last, which predicts it
    sizes.clear()
    decode(model, prompts(20), config.replace(cache="dual"))
    assert sizes[0] == sizes[4] == 28 and sizes[1] <= 9
    assert sizes[-1] <= 3  # a mask, the position it is read at, and the token fixed last


def test_short_rows_repeat_their_first_column():
    wanted = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    assert padded(wanted).tolist() == [[1, 3, 4], [2, 2, 2]]


# --- how many at once -----------------------------------------------------------------------------------------------


def test_entropies_but_the_largest_are_summed():
    sure, entropy = torch.tensor([-0.3, -0.1, -0.2, -0.9]), torch.tensor([0.3, 0.1, 0.2, 0.9])
    assert [bounded(sure, entropy, b) for b in (0.0, 0.11, 0.31, 0.61)] == [1, 2, 3, 4]  # 0, .1, .1 + .2, .1 + .2 + .3
    assert bounded(sure, torch.zeros(4), 0.0) == 4  # what is certain costs nothing
    assert bounded(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1]), 0.05) == 1  # another order than entropy's own


def test_an_entropy_bound_saves_passes(model):
    config = DecodingConfig(length=16, allowed_ids=V.text_range)
    passes = [decode(model, prompts(4), config.replace(entropy_bound=b)).passes for b in (0.0, 1.0, 5.0, 1e9)]
    assert passes == sorted(passes, reverse=True) and passes[0] == 16 and passes[-1] == 1
    assert 1 < passes[2] < 16


def test_blocks_done_early_make_room_for_the_next(model):
    config = DecodingConfig(length=12, block_length=4, allowed_ids=V.text_range, algorithm="confidence", threshold=0.0)
    result = decode(model, prompts(4), config)
    assert result.passes == 3 and result.decided[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_the_cosine_fixes_few_at_first():
    def counts(schedule: str) -> list[int]:
        left, found = 64, []
        for step in plan(64, 64, 8, schedule=schedule):
            found.append(step.count(left))
            left -= found[-1]
        assert left == 0
        return found

    assert counts("linear") == [7, 8, 8, 8, 8, 8, 8, 9]
    cosine = counts("cosine")
    assert cosine == sorted(cosine) and cosine[0] == 1 and cosine[-1] >= 11


# --- early stop -----------------------------------------------------------------------------------------------------


def test_an_answer_is_over_behind_its_end():
    ends, no = torch.tensor([V.im_end, V.pad]), torch.zeros(5, dtype=torch.bool)
    m = V.mask

    def over(ids: list[int], given: torch.Tensor = no) -> bool:
        ids = torch.tensor(ids)
        return finished(ids, ids == m, given, ends)

    assert over([1, 2, V.im_end, m, m]) and over([1, V.pad, V.pad, m, V.pad])
    assert not over([1, m, V.im_end, m, m]) and not over([1, 2, 3, m, m]) and not over([m, m, m, m, V.pad])
    marker = torch.tensor([False, False, True, False, False])
    assert not over([1, V.im_end, V.begin_of_audio, m, m], marker)  # the text's end says nothing of the speech
    assert over([1, V.im_end, V.begin_of_audio, V.pad, m], marker)
    assert not over([1, 2, V.im_end, m, m], marker), "an end given is no decision"


def test_an_early_stop_leaves_only_what_is_not_read(model):
    config = DecodingConfig(length=10, block_length=1, allowed_ids=[3])
    assert decode(model, prompts(4), config.replace(early_stop=True)).passes == 10
    ended = decode(model, prompts(4), config.replace(early_stop=True), ends=[3])
    assert ended.passes == 1 and ended.ids[0].tolist() == [3] + [V.pad] * 9
    assert ended.decided[0].tolist() == [0] * 10 and torch.equal(ended.history[-1], ended.ids)


def test_where_only_pads_come_all_come_at_once(model):
    config = DecodingConfig(length=10, allowed_ids=[V.pad])
    assert decode(model, prompts(4), config).passes == 10
    stopped = decode(model, prompts(4), config.replace(early_stop=True))
    assert stopped.passes == 1 and (stopped.ids == V.pad).all()
