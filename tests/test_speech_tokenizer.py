"""GLM-4-Voice speech tokenizer: ids, 12.5 per second, and codes that learn to carry what is said."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omnidiff_lite.config import Budget, SpeechTokenizerConfig
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.parity import GOLDEN
from omnidiff_lite.parity.tokenizers import GLM_TOKENIZER
from omnidiff_lite.tokenizers.characters import encode, transcribe
from omnidiff_lite.tokenizers.speech_tokenizer import WHISPER_PREFIX, SpeechTokenizer
from omnidiff_lite.training.speech_tokenizer import Codebook, train_speech_tokenizer
from omnidiff_lite.weights import CheckpointError

TINY = GOLDEN.tensors("glmtok_tiny")
RELEASED = GOLDEN.tensors("glmtok_tiny", "weights.")
RELEASED_CONFIG = GOLDEN.json("glmtok_tiny")["config"]
SMALL = SpeechTokenizerConfig(mels=80, dim=32, heads=2, ffn=64, layers=2, codes=32, ctc_vocabulary=32)


def noise(n: int, rate: int = 16000) -> Waveform:
    return Waveform(0.1 * np.random.default_rng(n).standard_normal(n).astype(np.float32), rate)


def small(config: SpeechTokenizerConfig = SMALL) -> SpeechTokenizer:
    torch.manual_seed(0)
    return SpeechTokenizer(config).eval()


# --- codes; the released numbers are in test_parity_report.py ---------------------------------------------------------

def test_quantize_is_the_nearest_row():
    tokenizer = small()
    states = torch.randn(3, 50, 32)
    assert torch.equal(tokenizer.quantize(states), torch.cdist(states, tokenizer.codebook.weight[None]).argmin(-1))
    assert torch.equal(tokenizer.quantize(tokenizer.codebook.weight), torch.arange(32))


# --- rate and batches ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("samples, tokens", [(1, 1), (1280, 1), (1281, 2), (16000, 13), (19680, 16), (160000, 125)])
def test_one_token_is_80_ms(samples, tokens):
    ids = small().encode(noise(samples))
    assert ids.shape == (tokens,) and ids.dtype == torch.int64 and 0 <= ids.min() <= ids.max() < 32


def test_long_recordings_are_cut_into_chunks():
    """At 30 s released; here at 48 positions, 0.96 s. Each chunk is encoded alone."""
    tokenizer, wave = small(GLM_TOKENIZER), noise(2 * 15360 + 1281)
    ids = tokenizer.encode(wave)
    assert tokenizer.samples_per_chunk == 15360 and len(ids) == 12 + 12 + 2
    assert torch.equal(ids[12:24], tokenizer.encode(Waveform(wave.samples[15360:30720], 16000)))
    assert small().samples_per_chunk == 30 * 16000


def test_batch_equals_one_by_one():
    tokenizer, waves = small(), [noise(16000), noise(1281), noise(30000, 22050), noise(41234), noise(700)]
    together = tokenizer.encode_many(waves, batch_size=3)
    assert [len(ids) for ids in together] == [13, 2, 18, 33, 1]
    assert all(torch.equal(ids, tokenizer.encode(wave)) for ids, wave in zip(together, waves))
    assert len(set(torch.cat(together).tolist())) > 1 and tokenizer.encode_many([]) == []


def test_a_frame_sees_no_later_block():
    """4 s blocks: sound after the fourth second cannot change a token before it."""
    tokenizer, samples = small(), noise(16000 * 6).samples
    other = samples.copy()
    other[16000 * 5:] = 0.3
    one, two = (tokenizer(*(t[None] for t in tokenizer.features(Waveform(s, 16000))[0])).states[0]
                for s in (samples, other))
    assert torch.allclose(one[:50], two[:50], atol=1e-4) and not torch.allclose(one[51:60], two[51:60], atol=1e-4)


def test_unusable_inputs():
    with pytest.raises(MediaError, match="empty"):
        small().encode(Waveform(np.zeros(0, np.float32), 16000))
    with pytest.raises(MediaError, match="60 frames are more than .* 48"):
        small(GLM_TOKENIZER).states(torch.zeros(1, 8, 120), torch.ones(1, 120, dtype=torch.int64))
    with pytest.raises(CheckpointError, match="no recognition head.*ctc_vocabulary"):
        small(GLM_TOKENIZER).recognise([noise(8000)])


# --- checkpoints -----------------------------------------------------------------------------------------------------

def test_save_and_load(tmp_path):
    tokenizer = small()
    tokenizer.save_pretrained(tmp_path)
    again = SpeechTokenizer.from_pretrained(tmp_path)
    assert again.config == SMALL and not again.training
    assert torch.equal(again.encode(noise(20000)), tokenizer.encode(noise(20000)))


@pytest.mark.parametrize("prefix", ["", WHISPER_PREFIX])
@torch.no_grad()
def test_released_layouts(tmp_path, prefix):
    """Bare names with the codebook's training statistics, or a whole Whisper around the quantizing half."""
    state = RELEASED | {"ema_count": torch.ones(64), "ema_weight": torch.ones(64, 16)}
    if prefix:
        state |= {"layers.3.fc1.weight": torch.ones(24, 16), "layer_norm.weight": torch.ones(16)}
    state = {prefix + n: t.clone() for n, t in state.items()}
    if prefix:
        state |= {"model.decoder.embed_tokens.weight": torch.ones(2, 2), "proj_out.weight": torch.ones(2, 2)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path)
    assert tokenizer.config == GLM_TOKENIZER
    ids = tokenizer(TINY["one.input_features"], TINY["one.attention_mask"]).ids
    assert torch.equal(ids, TINY["one.token_ids"])


@pytest.mark.parametrize("change, message", [
    ({"encoder_causal_attention": True}, "encoder_causal_attention is True.*only False"),
    ({"pooling_position": 2}, "pooling_position 2 and quantize_position 3 differ"),
    ({"quantize_vocab_size": 32}, "misshapen 1: codebook.weight")])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, change, message):
    save_file(RELEASED, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_CONFIG | change))
    with pytest.raises(CheckpointError, match=message):
        SpeechTokenizer.from_pretrained(tmp_path)


# --- training --------------------------------------------------------------------------------------------------------

def test_gradients_go_straight_through_the_quantizer():
    tokenizer = small()
    features, mask = (t[None] for t in tokenizer.features(noise(8000))[0])
    out = tokenizer(features, mask)
    out.states.retain_grad()
    out.hidden.sum().backward(retain_graph=True)
    assert torch.equal(out.states.grad, torch.ones_like(out.states))
    wanted = (out.states - tokenizer.codebook(out.ids)).square().sum() / out.states.square().sum()
    assert out.commitment.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_codebook_finds_clusters_and_revives_dead_codes():
    """8 codes, 4 clusters: every cluster keeps a code, and a code that is moved away comes back."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(4, 3, generator=generator)
    states = torch.cat([c + 0.1 * torch.randn(64, 3, generator=generator) for c in centres])
    embedding = nn.Embedding(8, 3)
    codebook = Codebook(embedding, seed=0, decay=0.9)
    codebook.start([states, states])
    assert torch.cdist(centres, embedding.weight).min(1).values.max() < 0.5
    embedding.weight.data[5] = codebook.total[5] = 1e3
    for _ in range(90):
        codebook.update(states, torch.cdist(states, embedding.weight.data).argmin(1))
    assert torch.cdist(embedding.weight.data, states).min(1).values.max() < 0.5
    assert not embedding.weight.requires_grad


def spelled(text: str, rng: np.random.Generator) -> Waveform:
    """A code instead of a voice: every letter is 160 ms, two tokens, of its own pitch, with a little noise."""
    time = np.arange(2560) / 16000
    tones = [np.sin(2 * np.pi * (200 + 150 * int(symbol)) * time) * np.hanning(2560) for symbol in encode(text)]
    samples = np.concatenate(tones) + 0.01 * rng.standard_normal(2560 * len(tones))
    return Waveform((0.3 * samples).astype(np.float32), 16000)


WORDS = ["cab", "bad", "dab", "ace", "bed", "fed", "face", "cafe", "deaf", "bead", "fab", "cad"]


def test_training_puts_what_is_said_into_the_tokens():
    rng = np.random.default_rng(0)
    utterances = [(spelled(text, rng), text) for text in WORDS]
    budget = Budget(steps=150, batch=12, learning_rate=5e-3)
    tokenizer, history = train_speech_tokenizer(SMALL, utterances, budget, seed=0, augment=False, progress=False)
    assert history.ctc.iloc[-1] < 0.1 * history.ctc.iloc[0]
    assert not tokenizer.training and history.codes.iloc[-1] >= 6, "at least a code a letter"
    read = transcribe(tokenizer, [wave for wave, _ in utterances])
    assert sum(one == two for one, two in zip(read, WORDS)) >= 10


def test_training_is_repeatable():
    utterances = [(noise(16000 + 999 * i), "ab") for i in range(4)]
    runs = [train_speech_tokenizer(SMALL, utterances, Budget(steps=3, batch=2), seed=1, progress=False)
            for _ in range(2)]
    assert runs[0][1].loss.tolist() == runs[1][1].loss.tolist()
    assert torch.equal(runs[0][0].codebook.weight, runs[1][0].codebook.weight)


@pytest.mark.parametrize("config, seconds, message", [
    (GLM_TOKENIZER, 0.5, "ctc_vocabulary is 0"), (SMALL, 40, "s long; cut it to one chunk of 30 s")])
def test_training_rejects_what_it_cannot_use(config, seconds, message):
    with pytest.raises(ValueError, match=message):
        train_speech_tokenizer(config, [(noise(int(16000 * seconds)), "a")], Budget(steps=1), seed=0)
