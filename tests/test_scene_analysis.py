"""Reading pictures back: what is recognised, under which damage, and what must not be."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.evaluation.scene_analysis import Found, analyse, read, score
from omnidiff_lite.world.scenes import BACKGROUNDS, Object, Scene, render, sample_scene
from omnidiff_lite.world.splits import stream

SMALL = WorldConfig(image_size=64, max_objects=2, grid=2)
WIDE = WorldConfig(image_size=128, max_objects=4, grid=4)
FULL = WorldConfig(image_size=256, max_objects=4, grid=4)  # the only one with textures
PAIR = Scene("grey", (Object("circle", "red", "small", "plain", (0, 0)),
                      Object("square", "blue", "large", "plain", (1, 0))), 2, 0.1)


def noisy(image: Image.Image, psnr: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, float) + rng.normal(0, 255 * 10 ** (-psnr / 20), (*image.size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    return Image.fromarray(ndimage.gaussian_filter(np.asarray(image, float), (sigma, sigma, 0)).astype(np.uint8))


def accuracy(config: WorldConfig, damage, key: str = "all_right", n: int = 80) -> float:
    right = 0
    for index in range(n):
        rng = stream("analysis", index)
        scene = sample_scene(rng, config, "train")
        right += score(damage(render(scene, config.image_size), rng), scene, config)[key]
    return right / n


@pytest.mark.parametrize("config", [SMALL, WIDE, FULL], ids=["64px 2x2", "128px 4x4", "256px 4x4"])
def test_clean_pictures_are_read_without_error(config):
    assert accuracy(config, lambda image, rng: image) >= 0.99


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["64px 2x2", "128px 4x4"])
def test_damage_of_a_tokenizer_is_survived(config):
    assert accuracy(config, lambda image, rng: noisy(image, 26, rng)) >= 0.97
    assert accuracy(config, lambda image, rng: blurred(image, 1.5)) >= 0.97


def test_what_differs_from_the_ground_away_from_every_colour_is_no_object():
    """A bright patch on grey: nothing of it lies between the ground and a colour. Read without a warning."""
    pixels = np.full((64, 64, 3), BACKGROUNDS["grey"], np.uint8)
    pixels[6:26, 6:26] = 254, 230, 251
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert analyse(Image.fromarray(pixels), SMALL) == []


def test_blur_of_26_decibels_is_survived_at_64_pixels():
    """A blur of 2 pixels costs as much as that noise, and more of it than a trained tokenizer's."""
    clean = render(PAIR, 64)
    error = np.mean((np.asarray(clean, float) - np.asarray(blurred(clean, 2.0), float)) ** 2)
    assert 10 * np.log10(255 ** 2 / error) < 27
    assert accuracy(SMALL, lambda image, rng: blurred(image, 2.0)) >= 0.95


def test_what_is_found():
    assert analyse(render(PAIR, 64), SMALL) == [Found("circle", "red", "small", (0, 0)),
                                                Found("square", "blue", "large", (1, 0))]
    assert read(render(PAIR, 64), SMALL).background == "grey"


def test_a_picture_of_another_size_is_read():
    assert all(score(render(PAIR, 150), PAIR, SMALL).values())


@pytest.mark.parametrize("background", ["white", "grey", "cream", "mint", "lilac"])
def test_nothing_is_seen_on_empty_or_noisy_ground(background):
    scene = replace(PAIR, background=background)
    ground = render(scene, 64).getpixel((60, 60))
    empty = Image.new("RGB", (64, 64), ground)
    assert analyse(empty, SMALL) == [] and analyse(noisy(empty, 20, stream("empty")), SMALL) == []
    assert score(empty, scene, SMALL) == {"objects_right": False, "attributes_right": False, "relation_right": False,
                                          "background_right": True, "all_right": False}


@pytest.mark.parametrize("blobs", [8, 16])
def test_blobs_are_rarely_objects(blobs):
    """Colour noise, as an untrained decoder gives it, seldom resembles a template."""
    rng, found = stream("blobs", blobs), 0
    for _ in range(25):
        image = Image.fromarray(rng.integers(0, 256, (blobs, blobs, 3), dtype=np.uint8))
        found += len(analyse(image.resize((64, 64), Image.Resampling.BICUBIC), SMALL))
    assert found <= 10  # of 100 cells


@pytest.mark.parametrize("change, wrong", [
    ({"color": "green"}, {"attributes_right", "relation_right"}),
    ({"size": "large"}, {"attributes_right"}),
    ({"shape": "star"}, {"objects_right", "attributes_right", "relation_right"}),
    ({"cell": (1, 1)}, {"relation_right"}),
])
def test_each_mistake_costs_what_it_should(change, wrong):
    first, second = PAIR.objects
    other = replace(PAIR, objects=(replace(first, **change), second))
    result = score(render(other, 64), PAIR, SMALL)
    assert {key for key, right in result.items() if not right} == wrong | {"all_right"}


def test_a_lone_object_is_scored_by_its_position():
    lone = replace(PAIR, objects=PAIR.objects[:1])
    moved = replace(lone, objects=(replace(lone.objects[0], cell=(1, 1)),))
    assert all(score(render(lone, 64), lone, SMALL).values())
    assert not score(render(moved, 64), lone, SMALL)["relation_right"]
