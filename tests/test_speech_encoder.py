"""SenseVoice: from the wave to the frames, files in both layouts, and a head that learns to read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omnidiff_lite.config import Budget, SpeechEncoderConfig
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.parity import GOLDEN
from omnidiff_lite.parity.tokenizers import SENSEVOICE, speech_encoder
from omnidiff_lite.tokenizers.characters import ctc_loss, decode, encode, normalise, steps_needed, transcribe
from omnidiff_lite.tokenizers.speech_encoder import OMNI_PREFIX, SpeechEncoder
from omnidiff_lite.tokenizers.speech_features import fbank, read_statistics, statistics
from omnidiff_lite.training.judges import train_recognition_judge
from omnidiff_lite.training.speech_encoder import train_speech_encoder
from omnidiff_lite.training.utterances import draw, padded_length, shown, vary_speed
from omnidiff_lite.weights import CheckpointError

FRONTEND, TINY = GOLDEN.tensors("frontend"), GOLDEN.tensors("sensevoice_tiny")
RELEASED = GOLDEN.tensors("sensevoice_tiny", "weights.audio_model.model.")
SMALL = SpeechEncoderConfig(dim=32, heads=2, ffn=64, blocks=2, tp_blocks=1, dropout=0.0, ctc_vocabulary=32, ctc_steps=2)


def noise(n: int, rate: int = 16000) -> Waveform:
    return Waveform(0.1 * np.random.default_rng(n).standard_normal(n).astype(np.float32), rate)


# --- front end -------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:At least one mel filter")  # as in the release: the shrunk FFT leaves some empty
@pytest.mark.parametrize("samples, frames", [(1, 1), (200, 1), (399, 1), (400, 1), (559, 1), (560, 2), (16000, 98)])
def test_frames_of_a_clip(samples, frames):
    """1 + (n - 400) // 160; below 25 ms the window shrinks to the clip."""
    bank = fbank(noise(samples))
    assert bank.shape == (frames, 80) and bank.isfinite().all()


@pytest.mark.parametrize("seconds, frames", [(1, 17), (10, 167), (30, 500)])
def test_a_frame_lasts_60_ms(seconds, frames):
    assert SpeechEncoder(SMALL).features(noise(16000 * seconds)).shape == (frames, 560)


def test_other_rates_are_resampled():
    time = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    fast, slow = fbank(Waveform(tone, 48000)), fbank(Waveform(tone[::3].copy(), 16000))
    loud = slow > slow.max() - 8  # of the tone itself: the floor is filter ripple
    assert fast.shape == slow.shape and (fast - slow)[loud].abs().max() < 0.05


def test_features_are_repeatable():
    encoder = SpeechEncoder(SMALL)
    assert torch.equal(encoder.features(noise(8000)), encoder.features(noise(8000)))


def test_statistics_make_unit_features():
    stacked = torch.randn(500, 560) * 3 + 7
    shift, scale = statistics(stacked)
    normal = (stacked + shift) * scale
    assert normal.mean(0).abs().max() < 1e-4 and (normal.std(0) - 1).abs().max() < 1e-4


def am_mvn(cmvn: torch.Tensor) -> str:
    rows = [" ".join(f"{v:.7g}" for v in row.tolist()) for row in cmvn]
    size = cmvn.shape[1]
    return (f"<Nnet>\n<Splice> {size} {size}\n[ 0 ]\n<AddShift> {size} {size}\n<LearnRateCoef> 0 [ {rows[0]} ]\n"
            f"<Rescale> {size} {size}\n<LearnRateCoef> 0 [ {rows[1]} ]\n</Nnet>\n")


def test_released_statistics_file(tmp_path):
    (tmp_path / "am.mvn").write_text(am_mvn(FRONTEND["cmvn"]))
    torch.testing.assert_close(read_statistics(tmp_path / "am.mvn"), FRONTEND["cmvn"])
    (tmp_path / "am.mvn").write_text("<Nnet>\n<AddShift> 2 2\n")
    with pytest.raises(CheckpointError, match="am.mvn.*AddShift"):
        read_statistics(tmp_path / "am.mvn")


# --- encoder ---------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_padding_does_not_touch_valid_frames():
    encoder, lengths = speech_encoder(), torch.tensor([9, 14])
    features = TINY["short.features"].clone()
    features[0, 9:] = 1e3
    padded, alone = encoder(features, lengths)[0, :13], encoder(features[:1, :9], lengths[:1])[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_batch_equals_one_by_one():
    torch.manual_seed(0)
    encoder = SpeechEncoder(SMALL).eval()
    waves = [noise(16000), noise(300), noise(30000, 22050), noise(41234)]
    together = encoder.encode(waves, batch_size=3)
    assert [len(rows) for rows in together] == [len(encoder.features(w)) + 4 for w in waves]
    for rows, wave in zip(together, waves):
        torch.testing.assert_close(rows, encoder.encode([wave])[0], atol=1e-4, rtol=1e-4)
    assert [len(p) for p in encoder.recognise(waves)] == [2 * (len(rows) - 4) for rows in together]
    assert encoder.encode([]) == []


# --- checkpoints -----------------------------------------------------------------------------------------------------

def test_save_and_load(tmp_path):
    encoder = SpeechEncoder(SMALL).eval()
    encoder.cmvn.copy_(FRONTEND["cmvn"])
    encoder.save_pretrained(tmp_path)
    again = SpeechEncoder.from_pretrained(tmp_path)
    assert again.config == SMALL and not again.training
    assert torch.equal(again.encode([noise(8000)])[0], encoder.encode([noise(8000)])[0])


def write_released(directory: Path, prefix: str = "", others: dict[str, torch.Tensor] | None = None) -> None:
    """A SenseVoiceSmall of the golden sizes, or an Omni-Diffusion checkpoint around it."""
    save_file({prefix + n: t for n, t in RELEASED.items()} | (others or {}), directory / "model.safetensors")
    (directory / "config.yaml").write_text(json.dumps({
        "encoder_conf": {"output_size": 32, "attention_heads": 4, "linear_units": 48, "num_blocks": 3, "tp_blocks": 2,
                         "kernel_size": 11, "sanm_shfit": 0},
        "frontend_conf": {"n_mels": 40, "lfr_m": 1, "lfr_n": 1, "window": "hamming"}}))


@pytest.mark.parametrize("prefix", ["", OMNI_PREFIX])
@torch.no_grad()
def test_released_layouts(tmp_path, prefix):
    others = {"model.embed_tokens.weight": torch.zeros(3, 3)} if prefix else {}
    write_released(tmp_path, prefix, others)
    (tmp_path / "am.mvn").write_text(am_mvn(FRONTEND["cmvn"][:, :40]))
    encoder = SpeechEncoder.from_pretrained(tmp_path)
    encoded = encoder(TINY["short.features"], TINY["short.feature_lengths"])
    torch.testing.assert_close(encoded[0, :13], TINY["short.f32.encoder_out"][0, :13], atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder.cmvn, FRONTEND["cmvn"][:, :40])


@pytest.mark.parametrize("text", ["encoder_conf: {output_size: 5", "encoder_co", ""])
def test_a_config_that_is_cut_off_is_named(tmp_path, text):
    write_released(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="config.yaml: not YAML with sections; it may be half-written"):
        SpeechEncoder.from_pretrained(tmp_path)


def test_statistics_may_lie_elsewhere_but_not_be_missing(tmp_path):
    write_released(tmp_path)
    with pytest.raises(CheckpointError, match="am.mvn"):
        SpeechEncoder.from_pretrained(tmp_path).features(noise(8000))
    (tmp_path / "elsewhere.mvn").write_text(am_mvn(FRONTEND["cmvn"][:, :40]))
    encoder = SpeechEncoder.from_pretrained(tmp_path, cmvn=tmp_path / "elsewhere.mvn")
    assert encoder.features(noise(8000)).isfinite().all()


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path):
    write_released(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({"encoder_conf": {"output_size": 24}}))
    with pytest.raises(CheckpointError, match="misshapen"):
        SpeechEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("seconds, message", [(0, "empty"), (31, "31.0 s long.*30 s")])
def test_unusable_recordings(seconds, message):
    with pytest.raises(MediaError, match=message):
        SpeechEncoder(SMALL).features(Waveform(np.zeros(seconds * 16000, np.float32), 16000))


# --- characters and CTC ----------------------------------------------------------------------------------------------

def test_text_and_symbols():
    assert normalise("  A red-hot “Café”, it’s HERE! ") == "a red hot cafe it's here"
    assert decode(encode("It's a ball.")) != "it's a ball", "doubled letters need a blank between them"
    spelled = [s for symbol in encode("it's a ball").tolist() for s in (symbol, symbol, 0)]
    assert decode(spelled) == "it's a ball"
    assert decode([31, 1, 31]) == "a", "symbols beyond the alphabet are dropped"
    assert steps_needed(encode("ball")) == 5 and steps_needed(encode("bat")) == 3
    with pytest.raises(ValueError, match="'3 balls'.*words"):
        encode("3 balls")


def test_ctc_loss_is_the_likelihood_per_symbol():
    """Two steps, one symbol: the paths are aa, a-, -a."""
    probabilities = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]]])
    wanted = -np.log(0.3 * 0.1 + 0.3 * 0.6 + 0.5 * 0.1)
    loss = ctc_loss(probabilities.log(), torch.tensor([2]), [torch.tensor([1])])
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_an_epoch_holds_every_item_once():
    lengths = [7, 3, 9, 1] * 8
    epoch = [i for step in range(8) for i in draw(lengths, 4, step, seed=5)]
    assert sorted(epoch) == list(range(32)) and draw(lengths, 4, 3, seed=5) == epoch[12:16]
    other = [i for step in range(8, 16) for i in draw(lengths, 4, step, seed=5)]
    assert sorted(other) == list(range(32)) and other != epoch
    assert len(draw([1, 2, 3], 8, 0, seed=0)) == 8, "a batch may be larger than the set"


def test_batches_are_of_like_length_and_few_shapes():
    lengths = torch.randint(10, 100, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[lengths[i] for i in draw(lengths, 16, step, seed=0)] for step in range(40)]
    padded = [padded_length(batch, max(lengths)) for batch in batches]
    assert all(max(batch) <= length <= max(lengths) for batch, length in zip(batches, padded))
    assert len(set(padded)) <= 8
    assert sum(map(sum, batches)) > 0.8 * 16 * sum(padded), "under a fifth is padding"


def test_variation_against_over_fitting():
    heard = [(noise(16000), str(i)) for i in range(50)]
    waves, texts = zip(*vary_speed(heard, seed=0))
    seconds = [wave.seconds for wave in waves]
    assert texts == tuple(map(str, range(50)))
    assert 0.89 < min(seconds) < 0.95 and 1.05 < max(seconds) < 1.14
    keep = shown(200, 40, 80, rate=100 / 6, step=3, seed=0)
    assert torch.equal(keep, shown(200, 40, 80, rate=100 / 6, step=3, seed=0))
    whole_bands, whole_frames = keep.amax(1) == 0, keep.amax(2) == 0  # hidden all the time | in every band
    assert 1 < whole_bands.sum(1).float().mean() < 24 and whole_bands.sum(1).max() <= 24
    assert 0.5 < whole_frames.sum(1).float().mean() < 3 and whole_frames.sum(1).max() <= 3


# --- training --------------------------------------------------------------------------------------------------------

def spelled(text: str, rng: np.random.Generator) -> Waveform:
    """A code instead of a voice: every letter is 120 ms of its own pitch, with a little noise."""
    time = np.arange(1920) / 16000
    tones = [np.sin(2 * np.pi * (200 + 150 * int(symbol)) * time) * np.hanning(1920) for symbol in encode(text)]
    samples = np.concatenate(tones) + 0.01 * rng.standard_normal(1920 * len(tones))
    return Waveform((0.3 * samples).astype(np.float32), 16000)


WORDS = ["cab", "bad", "dab", "ace", "bed", "fed", "face", "cafe", "deaf", "bead", "fab", "cad"]


@pytest.fixture(scope="module")
def utterances() -> list[tuple[Waveform, str]]:
    rng = np.random.default_rng(0)
    return [(spelled(text, rng), text) for text in WORDS]


def test_training_learns_to_read(utterances):
    budget = Budget(steps=80, batch=12, learning_rate=5e-3)
    encoder, history = train_speech_encoder(SMALL, utterances, budget, seed=0, augment=False, progress=False)
    assert history.loss.iloc[-1] < 0.1 * history.loss.iloc[0]
    assert not encoder.training and transcribe(encoder, [wave for wave, _ in utterances]) == WORDS
    fresh = [spelled(text, np.random.default_rng(7)) for text in ("bade", "feed")]
    assert transcribe(encoder, fresh[:1]) == ["bade"], "an unseen word of seen letters"


def test_training_is_repeatable_and_the_judge_is_another_model(utterances):
    budget = Budget(steps=3, batch=4)
    runs = [train_speech_encoder(SMALL, utterances, budget, seed=1, progress=False)[1].loss.tolist() for _ in range(2)]
    judge, history = train_recognition_judge(SMALL, utterances, budget, seed=2, progress=False)
    assert runs[0] == runs[1] != history.loss.tolist()
    assert isinstance(judge, SpeechEncoder)


@pytest.mark.parametrize("config, text, message", [
    (SMALL, "a long sentence in half a second", "needs .* CTC steps.*gives 16.*ctc_steps"), (SMALL, "...", "needs 0"),
    (SENSEVOICE, "a", "ctc_vocabulary is 11.*29")])
def test_training_rejects_what_cannot_be_spelled(config, text, message):
    with pytest.raises(ValueError, match=message):
        train_speech_encoder(config, [(noise(8000), text)], Budget(steps=1), seed=0)
