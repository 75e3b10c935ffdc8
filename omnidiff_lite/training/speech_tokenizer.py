"""Training the speech tokenizer: recognition through the quantizer, so that its tokens carry what is said.

As in GLM-4-Voice, whose codebook was learned inside a speech recogniser: voices differ, tokens should not. Here the
recogniser is CTC over characters, several steps per token, read from each token and its two neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnidiff_lite.config import Budget, SpeechTokenizerConfig
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.tokenizers.characters import check_alphabet, ctc_loss, target_symbols
from omnidiff_lite.tokenizers.speech_tokenizer import RATE, SpeechTokenizer, pad_features
from omnidiff_lite.training.fit import fit
from omnidiff_lite.training.utterances import Utterance, draw, padded_length, vary_speed

CONTINUOUS = 0.2  # share of the steps in which the head reads the states themselves, before there is a codebook
COMMITMENT = 0.25  # weight of the states' pull towards their codes (van den Oord et al., 2017, beta)
START_BATCHES = 8  # batches whose states initialise the codebook


class Codebook:
    """Codes as moving averages of the states that choose them (van den Oord et al., 2017, appendix A.1).

    A code that is rarely chosen restarts at a state of the batch, so that none lies idle.
    """

    def __init__(self, embedding: nn.Embedding, seed: int, decay: float = 0.95, rare: float = 0.03) -> None:
        """The weight [K, dim] is updated in place. `rare`: average choices per batch below which a code restarts."""
        self.embedding, self.decay, self.rare = embedding.requires_grad_(False), decay, rare
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def rows(self) -> Tensor:
        return self.embedding.weight.data

    @torch.no_grad()
    def start(self, batches: Sequence[Tensor], rounds: int = 8) -> None:
        """k-means of the states [n_i, dim] of some batches."""
        states = torch.cat(list(batches))
        self.count, self.total = states.new_zeros(len(self.rows)), torch.zeros_like(self.rows)  # averages per batch
        self._restart(self.count < self.rare, states)
        for _ in range(rounds):
            self._average(states, torch.cdist(states, self.rows).argmin(1), weight=1.0)
        self.count /= len(batches)
        self.total /= len(batches)

    @torch.no_grad()
    def update(self, states: Tensor, ids: Tensor) -> None:
        """Take in a batch: states [n, dim] and the codes [n] that they chose."""
        self._average(states, ids, weight=1 - self.decay)

    def _average(self, states: Tensor, ids: Tensor, weight: float) -> None:
        choice = F.one_hot(ids, len(self.rows)).to(states)
        self.count.lerp_(choice.sum(0), weight)
        with torch.autocast(states.device.type, enabled=False):  # averages drift in half precision
            self.total.lerp_(choice.T @ states, weight)
        self.rows.copy_(self.total / self.count.clamp_min(1e-9)[:, None])
        self._restart(self.count < self.rare, states)

    def _restart(self, codes: Tensor, states: Tensor) -> None:
        chosen = states[torch.randint(len(states), (int(codes.sum()),), generator=self.generator)]
        self.rows[codes], self.total[codes], self.count[codes] = chosen, chosen, 1.0


def train_speech_tokenizer(config: SpeechTokenizerConfig, utterances: Iterable[Utterance], budget: Budget,
                           seed: int = 0, *, augment: bool = True,
                           progress: bool = True) -> tuple[SpeechTokenizer, pd.DataFrame]:
    """Train a tokenizer from scratch on (recording, text) pairs of up to 30 s; `config.ctc_vocabulary` must be set.

    `augment`: vary the recordings' speeds, so that voices matter less. Returns it in eval mode and one row per step:
    loss, ctc (nats per character), commitment (see `Quantized`) and the number of codes that the batch used; the last
    two are 0 until the codebook starts. Raises `ValueError` if a text cannot be spelled in the CTC steps of its
    recording, or the alphabet does not fit.
    """
    check_alphabet(config.ctc_vocabulary, "speech_tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = SpeechTokenizer(config)
    codebook = Codebook(tokenizer.codebook, seed)
    heard = vary_speed(utterances, seed) if augment else utterances
    features, masks, texts = zip(*((*_chunk(tokenizer, wave), text) for wave, text in heard))  # one in memory at a time
    steps = torch.tensor([len(mask) // (2 * config.pooling) * config.ctc_steps for mask in masks])
    symbols = target_symbols(texts, steps.tolist())
    mels = [len(mask) for mask in masks]

    def batch(step: int) -> tuple[list[int], tuple[Tensor, Tensor]]:
        chosen = draw(mels, budget.batch, step, seed)
        length = padded_length([mels[i] for i in chosen], max(mels), 2 * config.pooling)
        return chosen, pad_features([features[i] for i in chosen], [masks[i] for i in chosen], length)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        start = int(CONTINUOUS * budget.steps)
        if step == start:
            codebook.start([_states(tokenizer, *batch(step + i)[1]) for i in range(START_BATCHES)])
        chosen, inputs = batch(step)
        out = tokenizer(*inputs)
        read = out.states if step < start else out.hidden
        ctc = ctc_loss(tokenizer.ctc(read, out.valid), steps[chosen], [symbols[i] for i in chosen])
        if step < start:
            return ctc, {"ctc": ctc.item(), "commitment": 0.0, "codes": 0}
        ids = out.ids[out.valid]
        codebook.update(out.states[out.valid].detach().float(), ids)
        return ctc + COMMITMENT * out.commitment, {
            "ctc": ctc.item(), "commitment": out.commitment.item(), "codes": len(ids.unique())}

    return tokenizer, fit(tokenizer, loss, budget, name="speech tokenizer", seed=seed,
                          progress=progress)


def _chunk(tokenizer: SpeechTokenizer, wave: Waveform) -> tuple[Tensor, Tensor]:
    chunks = tokenizer.features(wave)
    if len(chunks) > 1:
        raise MediaError(f"a training recording is {wave.seconds:.1f} s long; cut it to one chunk of "
                         f"{tokenizer.samples_per_chunk / RATE:g} s")
    return chunks[0]


@torch.no_grad()
def _states(tokenizer: SpeechTokenizer, features: Tensor, mask: Tensor) -> Tensor:
    """All valid token states of a batch, [n, dim] float32."""
    out = tokenizer(features, mask)
    return out.states[out.valid].float()
