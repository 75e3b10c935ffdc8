"""Generated pictures against their prompts: CLIP-T, CLIP-I, and what they really show.

Emu2's protocol (section 4 of the paper refers to it): CLIP-T is the mean cosine of prompt and generated picture,
CLIP-I that of generated and real picture. On the embedded world a picture can also be read back into a scene and
compared object by object, without a learned judge. A missing picture counts 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import PIL.Image
import torch

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import CHUNK, Model, Settings, ask, meta, reference_images
from omnidiff_lite.evaluation.statistics import Estimate, mean_interval, proportion_interval
from omnidiff_lite.tokenizers.image import ImageTokenizer, prepare, to_image
from omnidiff_lite.world.captions import verdict
from omnidiff_lite.world.scenes import Scene

TABLE = "table2_vision"
TOGETHER = 16  # pictures in one pass of the image tokenizer


def evaluate_t2i(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings = Settings(), *,
                 world: WorldConfig | None = None) -> tuple[list[Record], pd.DataFrame]:
    """Text to image (meta "caption"; the answer's picture is the real one). Columns clip_t, clip_i, image_missing;
    with `world`, and meta "scene", also image_objects_right, image_attributes_right, ... in percent."""
    return _evaluate(model, judges, samples, settings, world, "t2i", "")


def evaluate_s2i(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings = Settings(), *,
                 world: WorldConfig | None = None) -> tuple[list[Record], pd.DataFrame]:
    """Speech to image: as `evaluate_t2i`, columns with the prefix s2i_."""
    return _evaluate(model, judges, samples, settings, world, "s2i", "s2i_")


def _evaluate(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings, world: WorldConfig | None,
              task: str, prefix: str) -> tuple[list[Record], pd.DataFrame]:
    pictures = [answer.image for answer in ask(model, samples, settings, to="image", task=task)]
    scores, items = score_pictures(judges, pictures, samples, settings, world=world)
    return measured(TABLE, settings.row, settings.seed, {prefix + k: v for k, v in scores.items()}), items


def evaluate_pictures(judges: Judges, pictures: Sequence[PIL.Image.Image | None], samples: Sequence[Sample],
                      settings: Settings = Settings(row="real data (ceiling)"), *, world: WorldConfig | None = None
                      ) -> tuple[list[Record], pd.DataFrame]:
    """The same scores for given pictures: real or `reconstruct`ed ones for ceilings, `mismatched` ones for a floor."""
    scores, items = score_pictures(judges, pictures, samples, settings, world=world)
    return measured(TABLE, settings.row, settings.seed, scores), items


def swapped_judges(judges: Judges, pictures: Sequence[PIL.Image.Image | None], samples: Sequence[Sample],
                   settings: Settings) -> list[Record]:
    """CLIP-T by the CLIP-I judge and CLIP-I by the CLIP-T judge, as clip_t_other and clip_i_other: the paper does not
    say which model it used. No records where one model is both."""
    if judges.clip_t is judges.clip_i:
        return []
    scores, _ = score_pictures(replace(judges, clip_t=judges.clip_i, clip_i=judges.clip_t), pictures, samples, settings)
    return measured(TABLE, settings.row, settings.seed, {f"{k}_other": scores[k] for k in ("clip_t", "clip_i")})


def score_pictures(judges: Judges, pictures: Sequence[PIL.Image.Image | None], samples: Sequence[Sample],
                   settings: Settings, *, world: WorldConfig | None = None
                   ) -> tuple[dict[str, Estimate], pd.DataFrame]:
    """Estimates by column, and the per-item table: caption, missing, clip_t, clip_i, and `*_right` with `world`."""
    captions = [meta(sample, "caption") for sample in samples]
    drawn = [i for i, picture in enumerate(pictures) if picture is not None]
    items = pd.DataFrame({"caption": captions, "missing": True, "clip_t": 0.0, "clip_i": 0.0})
    items.loc[drawn, "missing"] = False
    for start in range(0, len(drawn), CHUNK):
        part = drawn[start:start + CHUNK]
        kept, real = [pictures[i] for i in part], reference_images([samples[i] for i in part], settings)
        items.loc[part, "clip_t"] = judges.clip_t.similarity([captions[i] for i in part], kept)
        items.loc[part, "clip_i"] = judges.clip_i.image_similarity(kept, real)
    how = settings.resampling
    scores = {name: mean_interval(items[name], **how) for name in ("clip_t", "clip_i")}
    scores["image_missing"] = proportion_interval(items["missing"], **how).scaled(100)
    if world is not None:
        facts = pd.DataFrame([read_picture(p, meta(s, "scene"), world) for p, s in zip(pictures, samples)])
        items = items.join(facts)
        scores |= {f"image_{name}": proportion_interval(items[name], **how).scaled(100) for name in facts}
    return scores, items


def picture_items(items: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Which per-item columns of `score_pictures` make up each of its estimates (`paired.differences`)."""
    judged = {name: (name,) for name in ("clip_t", "clip_i")}
    return judged | {f"image_{name}": (name,) for name in items if name == "missing" or name.endswith("_right")}


def read_picture(picture: PIL.Image.Image | None, scene: dict, world: WorldConfig) -> dict[str, bool]:
    """What of the scene the picture really shows (keys as in `world.captions.verdict`); nothing if it is missing."""
    from omnidiff_lite.evaluation.scene_analysis import score

    if picture is None:
        return verdict(False, False, False, False)
    return score(picture, Scene.from_dict(scene), world)


def marked_captions(pictures: Sequence[PIL.Image.Image | None], samples: Sequence[Sample], world: WorldConfig
                    ) -> list[str]:
    """Each sample's caption, prefixed "✓ " if its picture has all of it right (`read_picture`), else "✗ "."""
    right = [read_picture(picture, meta(s, "scene"), world)["all_right"] for picture, s in zip(pictures, samples)]
    return [f"{'✗✓'[ok]} {meta(s, 'caption')}" for ok, s in zip(right, samples)]


def reconstruct(tokenizer: ImageTokenizer, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Pictures through image tokens and back, a few at a time: what a model with perfect tokens would draw."""
    size, device = tokenizer.config.generation_size, next(tokenizer.parameters()).device
    parts = [pictures[start:start + TOGETHER] for start in range(0, len(pictures), TOGETHER)]
    drawn = (tokenizer.decode(tokenizer.encode(torch.stack([prepare(picture, size) for picture in part]).to(device)))
             for part in parts)
    return [to_image(pixels) for part in drawn for pixels in part]


def mismatched(pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Each prompt with the next prompt's picture: the score CLIP gives a picture of something else."""
    return [*pictures[1:], pictures[0]]
