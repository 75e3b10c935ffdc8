"""Speech out: token ids -> mel -> wave, by its own rules; the released numbers are in test_parity_report.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from omnidiff_lite.config import Budget, VocoderConfig
from omnidiff_lite.media import Waveform
from omnidiff_lite.parity import GOLDEN
from omnidiff_lite.parity.tokenizers import GLM_DECODER, flow_decoder
from omnidiff_lite.tokenizers.flow import Flow
from omnidiff_lite.tokenizers.flow_encoder import block_mask
from omnidiff_lite.tokenizers.mel import RATE, frame_count, linear_magnitude, log_mel, mel_filters
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.tokenizers.vocoder import GriffinLim
from omnidiff_lite.training.speech_decoder import train_speech_decoder
from omnidiff_lite.weights import CheckpointError

QUICK = dataclasses.replace(GLM_DECODER, flow=dataclasses.replace(GLM_DECODER.flow, steps=3),
                            vocoder=VocoderConfig(kind="griffin-lim", iterations=4))

TINY_YAML = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 22050
spk_embed_dim: 192
llm: !new:cosyvoice.llm.llm.TransformerLM
    llm_input_size: !ref <not_there>
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 32
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: 64
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        attention_heads: 4
        linear_units: 48
        num_blocks: 2
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            channels: [16, 16]
            attention_head_dim: 8
            n_blocks: 1
            num_mid_blocks: 2
            num_heads: 2
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    base_channels: 32
    sampling_rate: !ref <sample_rate>
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        cond_channels: 16
"""


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return GOLDEN.tensors("glmdec_tiny")


@pytest.fixture(scope="module")
def flow() -> Flow:
    return flow_decoder()


@pytest.fixture(scope="module")
def quick() -> SpeechDecoder:
    return SpeechDecoder(QUICK).eval()


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance


# --- as released -----------------------------------------------------------------------------------------------------

def test_guidance_matters(golden, flow):
    """Or the parity report's row of the mel would say little."""
    unguided = flow.sample(golden["flow.token"], golden["flow.noise"], guidance=0.0)
    assert (unguided - golden["flow.mel_10"]).abs().max() > 0.05


def test_a_released_directory_loads_with_the_sizes_of_its_yaml(golden, tmp_path):
    for part, file in (("flow", "flow.pt"), ("hift", "hift.pt")):
        torch.save(GOLDEN.tensors("glmdec_tiny", f"weights.{part}."), tmp_path / file)
    (tmp_path / "config.yaml").write_text(TINY_YAML)
    decoder = SpeechDecoder.from_pretrained(tmp_path)
    assert decoder.config == GLM_DECODER
    assert_near(decoder.mel(golden["flow.token"][0], seed=42)[None], golden["flow.mel_10"], 2e-3)  # its fixed seed


# --- lengths and masks -----------------------------------------------------------------------------------------------

def test_tokens_to_frames():
    assert [frame_count(n) for n in (1, 10, 25)] == [6, 68, 172]


def test_a_token_sees_the_past_and_its_own_block():
    rows = ["".join("x" if seen else "." for seen in row) for row in block_mask(5, 2)]
    assert rows == ["xx...", "xx...", "xxxx.", "xxxx.", "xxxxx"]


@pytest.mark.parametrize("tokens", [1, 9, 10, 23])
def test_any_number_of_tokens_decodes(quick, tokens):
    wave = quick.decode(list(range(tokens)))
    assert wave.rate == 22050 and wave.samples.dtype == np.float32
    assert wave.samples.shape == (256 * frame_count(tokens),)
    assert np.isfinite(wave.samples).all() and np.abs(wave.samples).max() <= 1


def test_a_later_block_does_not_change_an_earlier_one(flow):
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 10:] += 30
    hidden, other = (flow.encoder(flow.input_embedding(i)) for i in (ids, changed))
    assert torch.allclose(hidden[:, :10], other[:, :10], atol=1e-6)
    assert not torch.allclose(hidden[:, 10:], other[:, 10:], atol=1e-2)


# --- repeatability ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config", [QUICK, dataclasses.replace(QUICK, vocoder=GLM_DECODER.vocoder)],
                         ids=["griffin-lim", "hift"])
def test_a_seed_fixes_the_wave_and_the_global_generator_is_left_alone(config):
    decoder = SpeechDecoder(config).eval()
    before = torch.get_rng_state()
    first = decoder.decode([1, 2, 3], seed=5).samples
    again = decoder.decode([1, 2, 3], seed=5).samples
    other = decoder.decode([1, 2, 3], seed=6).samples
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_many_at_once_are_what_each_is_alone(quick):
    batch = [[1, 2, 3], [4], [5, 6, 7]]
    for ids, wave in zip(batch, quick.decode_many(batch, seed=3)):
        alone = quick.decode(ids, seed=3)
        assert wave.samples.shape == alone.samples.shape
        assert np.abs(wave.samples - alone.samples).max() < 0.02 * np.abs(alone.samples).max()


# --- streaming and speakers ------------------------------------------------------------------------------------------

def test_a_prompt_is_continued(flow, quick):
    mel = quick.mel(range(10))
    rest = quick.mel(range(10, 25), prompt_ids=range(10), prompt_mel=mel)
    assert mel.shape == (80, 68) and rest.shape == (80, 172 - 68)
    other = quick.mel(range(10, 25), prompt_ids=range(10), prompt_mel=mel + 3)
    assert not torch.allclose(rest, other, atol=1e-3), "the mel of the prompt must matter"
    assert len(quick.decode(range(10, 25), prompt_ids=range(10), prompt_mel=mel).samples) == 256 * rest.shape[-1]


def test_a_speaker_is_a_direction(quick):
    speaker = torch.randn(192, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(quick.mel([1, 2], speaker=speaker), quick.mel([1, 2], speaker=2 * speaker), atol=1e-4)
    assert not torch.allclose(quick.mel([1, 2], speaker=speaker), quick.mel([1, 2]), atol=1e-3)


def test_without_noise_the_seed_is_idle(quick):
    assert torch.equal(quick.mel([1, 2, 3], seed=0, temperature=0.0), quick.mel([1, 2, 3], seed=1, temperature=0.0))


# --- errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ids, message", [
    ([], "at least 1"), ([[1, 2]], r"expected \[n\]"), ([3, 64], r"expected 0\.\.63")])
def test_ids_that_cannot_be_spoken_are_a_clear_error(quick, ids, message):
    with pytest.raises(ValueError, match=message):
        quick.decode(ids)
    with pytest.raises(ValueError, match=message):
        quick.decode_many([[1], ids])


def test_a_prompt_that_does_not_fit_is_a_clear_error(quick):
    with pytest.raises(ValueError, match="both"):
        quick.decode([1], prompt_ids=[2])
    with pytest.raises(ValueError, match="only fill"):
        quick.decode([1], prompt_ids=[2], prompt_mel=torch.zeros(80, 13))


def test_directories_that_hold_no_decoder_are_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no flow.pt"):
        SpeechDecoder.from_pretrained(tmp_path, QUICK)
    (tmp_path / "config.yaml").write_text("flow: {encoder: {num_blocks: many}}")
    with pytest.raises(CheckpointError, match="config.yaml"):
        SpeechDecoder.from_pretrained(tmp_path)


# --- mel and Griffin-Lim ---------------------------------------------------------------------------------------------

def singing(seconds: float = 1.0) -> torch.Tensor:
    """A voice-like sweep: 12 harmonics of a pitch that glides from 110 to 220 Hz, with a swell."""
    t = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * torch.pi * 110 * (t + t.square() / (2 * seconds))
    tone = sum(torch.sin(k * phase) / k for k in range(1, 13))
    return 0.2 * tone * torch.sin(torch.pi * t / seconds).clamp(min=0.05)


def test_mel_bins_peak_where_the_tone_is():
    t = torch.arange(RATE) / RATE
    filters = mel_filters()
    for hertz in (200, 1000, 4000):
        peak = log_mel(0.5 * torch.sin(2 * torch.pi * hertz * t))[:, 40].argmax()
        centre = filters[peak].argmax() * RATE / 1024
        assert abs(centre - hertz) < 0.06 * hertz + 22, f"{hertz} Hz came out at {centre} Hz"
    assert log_mel(torch.zeros(RATE)).max() == pytest.approx(np.log(1e-5), abs=0.2)
    assert log_mel(torch.zeros(1000)).shape == (80, 3)
    with pytest.raises(ValueError, match="385|384"):
        log_mel(torch.zeros(300))


def test_the_linear_spectrum_gives_its_mel_back():
    mel = log_mel(singing())
    back = (mel_filters() @ linear_magnitude(mel)).clamp(min=1e-5).log()
    assert (back - mel).abs().mean() < 0.06


def test_griffin_lim_gives_the_sound_back():
    mel = log_mel(singing())
    wave = GriffinLim(30)(mel, torch.Generator().manual_seed(0))
    assert wave.shape == (256 * mel.shape[-1],)
    error = (log_mel(wave) - mel).abs()[mel > -6].mean()
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(1)) * wave.std()
    worse = (log_mel(noise) - mel).abs()[mel > -6].mean()
    assert error < 0.35 and worse > 1.0


# --- disk and training -----------------------------------------------------------------------------------------------

def test_what_is_saved_loads(quick, tmp_path):
    quick.save_pretrained(tmp_path)
    again = SpeechDecoder.from_pretrained(tmp_path)
    assert again.config == QUICK
    assert np.array_equal(again.decode([1, 2, 3]).samples, quick.decode([1, 2, 3]).samples)
    quick.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert SpeechDecoder.from_pretrained(tmp_path / "half").flow.input_embedding.weight.dtype == torch.float32


def chirps(ids: np.ndarray) -> Waveform:
    """A voice of four sounds: token i is 80 ms of a chord on 200 (1 + i) Hz."""
    t = np.arange(1764) / RATE
    sounds = [sum(np.sin(2 * np.pi * 200 * (1 + i) * k * t) for k in (1, 2, 3)) * 0.1 for i in range(4)]
    return Waveform(np.concatenate([sounds[i] for i in ids]).astype(np.float32), RATE)


def test_training_learns_which_token_sounds_how():
    config = dataclasses.replace(QUICK, codes=4)
    rng = np.random.default_rng(0)
    tokens = [rng.integers(4, size=20) for _ in range(8)]
    before = torch.get_rng_state()
    budget = Budget(steps=100, batch=4, learning_rate=1e-2)
    decoder, history = train_speech_decoder(config, tokens, [chirps(i) for i in tokens], budget, crop=8, progress=False)
    torch.set_rng_state(before)
    unseen = rng.integers(4, size=20)
    wanted = log_mel(torch.from_numpy(chirps(unseen).samples))[:, :frame_count(20)]
    error = (decoder.mel(unseen) - wanted).abs().mean()
    mixed = (decoder.mel((unseen + 1) % 4) - wanted).abs().mean()
    assert history.loss[-10:].mean() < 0.5 * history.loss[:10].mean()
    assert error < 0.8 * mixed, "the wrong tokens must sound worse than the right ones"


def test_tokens_of_another_wave_are_a_clear_error():
    ids = np.zeros(20, dtype=np.int64)
    with pytest.raises(ValueError, match="utterance 1: 20 tokens are 1.60 s"):
        train_speech_decoder(QUICK, [ids, ids], [chirps(ids), chirps(ids[:5])], Budget(steps=1))
    with pytest.raises(ValueError, match="one list a wave"):
        train_speech_decoder(QUICK, [ids], [], Budget(steps=1))
