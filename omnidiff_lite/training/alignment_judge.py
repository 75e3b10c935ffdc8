"""The alignment judge: a small CLIP, trained on pictures of the world and their captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from omnidiff_lite.config import Budget, JudgeConfig
from omnidiff_lite.evaluation.judges import AlignmentJudge, clip_pixels
from omnidiff_lite.training.fit import fit

SIZE, PATCH = 64, 8  # pixels
POSITIONS = 77  # tokens of a caption, as in CLIP
HEAD = 32  # dimensions per attention head


def train_alignment_judge(config: JudgeConfig, text_tokenizer: PreTrainedTokenizerBase,
                          pictures: Sequence[tuple[PIL.Image.Image, str]], budget: Budget, seed: int
                          ) -> tuple[AlignmentJudge, pd.DataFrame]:
    """A CLIP trained from scratch on (picture, caption) pairs with the contrastive loss.

    History: one row per step with loss and accuracy (of picture to caption within the batch).
    """
    torch.manual_seed(seed)
    judge = AlignmentJudge(_clip(config, text_tokenizer), text_tokenizer)
    pixels = torch.stack([clip_pixels(image, SIZE) for image, _ in pictures])
    captions = [caption for _, caption in pictures]
    tokens = judge.tokenize(captions)
    same = torch.from_numpy(np.unique(captions, return_inverse=True)[1])

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        drawn = np.random.default_rng([seed, step]).permutation(len(pictures))[:budget.batch]
        chosen = torch.from_numpy(drawn)
        images = judge.embed_images(pixels[chosen])
        texts = judge.embed_texts(**{name: values[chosen] for name, values in tokens.items()})
        scale = judge.clip.logit_scale.exp().clamp(max=100)
        return contrastive_loss(images, texts, scale, same[chosen].to(images.device))

    history = fit(judge.clip, loss, budget, name="alignment judge", seed=seed)
    return judge, history


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, group: Tensor) -> tuple[Tensor, dict[str, float]]:
    """CLIP's symmetric cross-entropy over unit vectors [n, dim]; items of one `group` [n] share a caption.

    Equal captions are correct matches for each other, so the target is shared among them; CLIP, whose captions rarely
    repeat, uses the diagonal.
    """
    logits = scale * images @ texts.T
    match = (group[:, None] == group[None, :]).float()
    target = match / match.sum(dim=1, keepdim=True)
    value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    accuracy = match[torch.arange(len(match)), logits.argmax(dim=1)].mean()
    return value, {"accuracy": accuracy.item()}


def _clip(config: JudgeConfig, tokenizer: PreTrainedTokenizerBase) -> CLIPModel:
    size = {"hidden_size": config.clip_dim, "intermediate_size": 4 * config.clip_dim,
            "num_hidden_layers": config.clip_layers, "num_attention_heads": max(1, config.clip_dim // HEAD)}
    end = tokenizer.eos_token_id
    return CLIPModel(CLIPConfig(
        text_config={**size, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, "eos_token_id": end,
                     "pad_token_id": end, "bos_token_id": end},
        vision_config={**size, "image_size": SIZE, "patch_size": PATCH}, projection_dim=config.clip_dim))
