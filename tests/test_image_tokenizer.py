"""The image tokenizer: codes, shapes, saving and loading, pictures in and out, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnidiff_lite.config import Budget, ConfigError, ImageTokenizerConfig
from omnidiff_lite.parity.tokenizers import MAGVIT, image_tokenizer, image_weights
from omnidiff_lite.tokenizers.image import ImageTokenizer, prepare, to_image
from omnidiff_lite.training.image_tokenizer import (code_entropies, foreground_weights, reconstruction_report,
                                                    steadiness, train_image_tokenizer)
from omnidiff_lite.weights import CheckpointError

SMALL = ImageTokenizerConfig(
    patch_size=2, channels=8, encoder_multipliers=(1, 2), decoder_multipliers=(1, 2), encoder_blocks=(1, 1),
    decoder_blocks=(1, 1), code_bits=6, norm_groups=4)


@pytest.fixture(scope="module")
def released_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as the released checkpoint: its own weight names, and a config.json that holds no sizes."""
    directory = tmp_path_factory.mktemp("released")
    weights = image_weights() | {"quantize.power_vals": torch.tensor([2**i for i in reversed(range(13))])}
    save_file(weights, directory / "pytorch_model.safetensors")
    (directory / "config.json").write_text('{"_class_name": "MAGVITv2", "_version": "0.1.0"}')
    return directory


@pytest.fixture()
def small() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(SMALL).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- codes and names; the released numbers are in test_parity_report.py -----------------------------------------------


def test_a_released_directory_loads_with_the_sizes_of_its_weights(released_directory: Path) -> None:
    """Its config.json holds none."""
    tokenizer = ImageTokenizer.from_pretrained(released_directory)
    assert tokenizer.config == MAGVIT and not tokenizer.training
    assert all(torch.equal(t, image_tokenizer().state_dict()[n]) for n, t in tokenizer.state_dict().items())


def test_the_highest_bit_comes_first(small: ImageTokenizer) -> None:
    assert small.quantize.vectors(torch.tensor([[[32]]])).flatten().tolist() == [1.0] + [-1.0] * 5


def test_every_code_survives_vector_and_sign(small: ImageTokenizer) -> None:
    ids = torch.arange(SMALL.codes).view(1, 8, 8)
    vectors = small.quantize.vectors(ids)
    assert torch.equal(small.quantize.ids(vectors), ids)
    assert torch.equal(small.quantize(vectors * 0.3), vectors)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_size, factor", [(1, 2), (2, 4), (4, 8)])
def test_patch_size_multiplies_the_factor(patch_size: int, factor: int) -> None:
    config = ImageTokenizerConfig(**{**vars(SMALL), "patch_size": patch_size})
    tokenizer = ImageTokenizer(config).eval()
    ids = tokenizer.encode(noise(1, 3, 16, 16))
    assert config.factor == factor and ids.shape == (1, 16 // factor, 16 // factor)
    assert tokenizer.decode(ids).shape == (1, 3, 16, 16)


def test_pictures_need_not_be_square_and_do_not_see_each_other(small: ImageTokenizer) -> None:
    pixels = noise(3, 3, 16, 32)
    ids = small.encode(pixels)
    assert ids.shape == (3, 4, 8) and ids.dtype == torch.int64
    assert torch.equal(ids, torch.cat([small.encode(each[None]) for each in pixels]))
    torch.testing.assert_close(small.decode(ids), torch.cat([small.decode(each[None]) for each in ids]))
    assert small.decode(ids).shape == pixels.shape


def test_bfloat16_autocast_and_weights(small: ImageTokenizer) -> None:
    pixels = noise(2, 3, 16, 16)
    reference = small.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        ids, decoded = small.encode(pixels), small.decode(reference)
    assert ids.dtype == torch.int64 and (ids == reference).float().mean() > 0.7  # rounding flips bits of z near 0
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, small.decode(reference), atol=0.05, rtol=0.05)
    assert small.to(torch.bfloat16).decode(small.encode(pixels)).dtype == torch.float32


def test_bad_input_is_named(small: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match=r"\[1, 3, 18, 16\].*multiples of 4"):
        small.encode(noise(1, 3, 18, 16))
    with pytest.raises(ValueError, match=r"every id in 0\.\.63"):
        small.decode(torch.full((1, 2, 2), 64))
    with pytest.raises(ConfigError, match="'decoder_blocks': 3"):
        ImageTokenizer(ImageTokenizerConfig(**{**vars(SMALL), "decoder_blocks": (1, 1, 1)}))


# --- files ------------------------------------------------------------------------------------------------------------


def test_save_and_load(small: ImageTokenizer, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    again = ImageTokenizer.from_pretrained(tmp_path)
    assert again.config == SMALL and not again.training
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in small.state_dict().items())


def test_bfloat16_files_are_half_as_large(small: ImageTokenizer, tmp_path: Path) -> None:
    for name, dtype in (("full", None), ("half", torch.bfloat16)):
        small.save_pretrained(tmp_path / name, dtype)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.7 * full
    ids = small.encode(noise(1, 3, 16, 16))
    torch.testing.assert_close(ImageTokenizer.from_pretrained(tmp_path / "half").decode(ids), small.decode(ids),
                               atol=0.05, rtol=0.05)


def test_a_checkpoint_that_does_not_fit_is_named(released_directory: Path, tmp_path: Path) -> None:
    weights = load_file(released_directory / "pytorch_model.safetensors")
    del weights["decoder.conv_out.bias"]
    weights["encoder.conv_in.weight"] = weights["encoder.conv_in.weight"][:16]
    save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing 1: decoder.conv_out.bias.*misshapen 1: encoder.conv_in.weight"):
        ImageTokenizer.from_pretrained(tmp_path, config=MAGVIT)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_prepare_crops_the_centre_square() -> None:
    bands = np.zeros((32, 64, 3), np.uint8)  # red, green in the middle half, blue
    bands[:, :16, 0], bands[:, 16:48, 1], bands[:, 48:, 2] = 255, 255, 255
    pixels = prepare(PIL.Image.fromarray(bands), 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    assert (pixels[1] == 1).all() and (pixels[[0, 2]] == -1).all()


@pytest.mark.parametrize("width, height", [(101, 37), (37, 101), (20, 31)])
def test_prepare_takes_any_shape(width: int, height: int) -> None:
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8))  # grey
    pixels = prepare(picture, 48)
    assert pixels.shape == (3, 48, 48) and pixels.min() >= -1 and pixels.max() <= 1


def test_to_image_clamps_and_truncates() -> None:
    levels = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    picture = to_image(levels.expand(3, 1, 6))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    noise_ = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    assert np.abs(np.asarray(to_image(prepare(noise_, 16))).astype(int) - np.asarray(noise_)).max() <= 1


# --- training ---------------------------------------------------------------------------------------------------------


def flat_pictures(n: int) -> Tensor:
    """[n, 3, 16, 16]: one plain colour each, with a darker left half."""
    colors = noise(n, 3, 1, 1, seed=1).expand(n, 3, 16, 16).clone()
    colors[..., :8] -= 0.5
    return colors.clamp(-1, 1)


def test_gradient_passes_the_quantizer(small: ImageTokenizer) -> None:
    reconstruction, _ = small(noise(1, 3, 16, 16))
    reconstruction.square().mean().backward()
    assert small.encoder.conv_in.weight.grad.abs().sum() > 0


def test_hardness_moves_z_to_its_signs(small: ImageTokenizer) -> None:
    z = torch.tensor([0.5, -3.0, 0.0])[None, :, None, None]
    assert small.quantize(z, 0.0).flatten().tolist() == [0.5, -3.0, 0.0]
    assert small.quantize(z, 0.5).flatten().tolist() == [0.75, -2.0, -0.5]
    assert small.quantize(z).flatten().tolist() == [1.0, -1.0, -1.0]


def test_foreground_weighs_more() -> None:
    pixels = torch.full((1, 3, 4, 4), 0.9)
    pixels[0, 2, 0, 0] = 0.0  # one pixel differs, only in blue
    weights = foreground_weights(pixels)
    assert weights.mean().item() == pytest.approx(1) and weights[0, 0, 0, 0] == pytest.approx(5 * weights[0, 0, 1, 1])


def test_entropies_at_their_extremes(small: ImageTokenizer) -> None:
    """Sure and evenly used codes: entropies 0 and log(codes). Undecided bits: log(codes) both."""
    vectors, most = small.quantize.embedding, np.log(SMALL.codes)
    every_code = 20 * small.quantize.vectors(torch.arange(SMALL.codes).view(1, 8, 8))
    undecided = torch.zeros(1, 6, 8, 8)
    assert [e.item() for e in code_entropies(every_code, vectors)] == pytest.approx([0, most], abs=1e-3)
    assert [e.item() for e in code_entropies(undecided, vectors)] == pytest.approx([most, most], abs=1e-3)


def test_a_token_of_no_weight_counts_in_no_entropy(small: ImageTokenizer) -> None:
    z = torch.cat([20 * small.quantize.vectors(torch.zeros(1, 8, 8, dtype=torch.long)), torch.zeros(1, 6, 8, 8)])
    weights = torch.stack([torch.full((1, 8, 8), share) for share in (3.0, 0.0)])
    assert [e.item() for e in code_entropies(z, small.quantize.embedding, weights)] == pytest.approx([0, 0], abs=1e-3)


def test_steadiness_is_for_codes_that_follow_the_content(small: ImageTokenizer) -> None:
    """0 where z is the signs of each token's own pixels; much where z depends on the picture as a whole."""
    factor, pixels = SMALL.factor, noise(4, 3, 4 * SMALL.factor, 4 * SMALL.factor)

    def of_its_own(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, factor)[:, :1].expand(-1, SMALL.code_bits, -1, -1).sign()

    def of_the_whole(x: Tensor) -> Tensor:
        return (x - x.roll(factor, 2).roll(factor, 3))[:, :1, ::factor, ::factor].expand(
            -1, SMALL.code_bits, -1, -1).sign()

    steady = {}
    for encode in (of_its_own, of_the_whole):
        small.encoder.forward = encode
        steady[encode] = steadiness(small, pixels, torch.Generator().manual_seed(0)).item()
    assert steady[of_its_own] == 0 and steady[of_the_whole] > 0.1


def test_training_improves_reconstruction() -> None:
    images = flat_pictures(16)
    before, _ = train_image_tokenizer(SMALL, images, Budget(steps=1, batch=8, learning_rate=1e-9), seed=0)
    after, history = train_image_tokenizer(SMALL, images, Budget(steps=150, batch=8, learning_rate=3e-3), seed=0)
    assert reconstruction_report(after, images)["psnr"] > reconstruction_report(before, images)["psnr"] + 3
    assert {"step", "loss", "reconstruction", "commitment", "entropy_token", "entropy_batch",
            "steadiness"} <= set(history.columns)
    assert len(history) == 150 and not after.training


def test_training_repeats_from_its_seed() -> None:
    losses = [train_image_tokenizer(SMALL, flat_pictures(16), Budget(steps=4, batch=4), seed)[1]["loss"].tolist()
              for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_training_pictures_are_checked() -> None:
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        train_image_tokenizer(SMALL, flat_pictures(4) * 127.5 + 127.5, Budget(steps=1), seed=0)


class Halving(ImageTokenizer):
    """Decodes to black; encodes the picture's index by its brightness: a tokenizer with a known report."""

    def encode(self, pixels: Tensor) -> Tensor:
        return (pixels[:, 0, ::4, ::4] > 0).long()

    def decode(self, ids: Tensor) -> Tensor:
        return torch.full((len(ids), 3, 16, 16), -1.0)


def test_report_of_a_known_tokenizer() -> None:
    """Error 0.1 of the 0..1 range is 20 dB, error 1 is 0 dB; the mean is over pictures, not over pixels."""
    images = torch.stack([torch.full((3, 16, 16), -0.8), torch.full((3, 16, 16), 1.0)])
    report = reconstruction_report(Halving(SMALL), images)
    assert report["psnr_per_image"] == pytest.approx([20, 0], abs=1e-4)
    assert report["psnr"] == pytest.approx(10, abs=1e-4)
    assert report["codes_used"] == 2 and report["codes_share"] == pytest.approx(2 / 64)
