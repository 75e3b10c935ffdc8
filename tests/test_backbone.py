"""The denoiser: which token sees which, what forward can return, checkpoints in both layouts, what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from omnidiff_lite.backbone import Denoiser, DenoiserConfig, segment_mask
from omnidiff_lite.cli import main
from omnidiff_lite.config import ConfigError, DenoiserSize
from omnidiff_lite.parity import GOLDEN
from omnidiff_lite.parity.denoiser import forward_case, released_denoiser, released_directory
from omnidiff_lite.vocabulary import Vocabulary
from omnidiff_lite.weights import CheckpointError

VOCABULARY = Vocabulary.small(text=20, speech_codes=6, image_codes=8)
SIZE = DenoiserSize(hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, rope_theta=1e4)


def small(**fields) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DenoiserConfig.from_size(SIZE, VOCABULARY, speech_dim=6, **fields)).eval()


# --- the released function: see test_parity_report.py ---------------------------------------------------------------


def test_segments_are_the_released_packing_but_for_its_visible_pads():
    """Rows 0 to 24 are equal (a row of the parity report); the last segment saw the tail pads as released."""
    case = forward_case("packed")
    segment = (case["position_ids"] == 0).cumsum(-1).masked_fill(case["attention_mask"] == 0, -1)
    logits = released_denoiser()(case["input_ids"], position_ids=case["position_ids"], segment_ids=segment).logits
    assert (logits[:, 25:34] - case["logits"][:, 25:34]).abs().max() > 0.1


# --- who sees whom --------------------------------------------------------------------------------------------------


def test_segments_see_exactly_themselves():
    model, ids = small(), torch.randint(20, (1, 9), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    packed = model(ids, segment_ids=segments, position_ids=positions).logits
    torch.testing.assert_close(packed[:, :4], model(ids[:, :4]).logits)
    torch.testing.assert_close(packed[:, 4:7], model(ids[:, 4:7]).logits)
    assert packed.isfinite().all()  # a pad sees itself


def test_padding_is_seen_by_nobody_and_sees_itself():
    mask = segment_mask(torch.tensor([[0, 0, -1, -1]]), 4)[0, 0]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_positions_place_tokens_and_do_not_part_them():
    model, ids = small(), torch.arange(6)[None]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])  # would be read as two samples by the released training code
    before = model(ids, position_ids=positions).logits
    after = model(ids + torch.tensor([0, 0, 0, 0, 0, 1]), position_ids=positions).logits
    assert (before - after)[0, 0].abs().max() > 1e-5


def test_eager_attention_agrees():
    model, ids, segments = small(), torch.arange(8)[None], torch.tensor([[0, 0, 0, 1, 1, 1, -1, -1]])
    expected = model(ids, segment_ids=segments).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids, segment_ids=segments).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_causal_twin_sees_the_past_only(attention):
    model, ids = small(is_causal=True), torch.arange(8)[None]
    model.set_attn_implementation(attention)
    whole = model(ids).logits
    torch.testing.assert_close(model(ids[:, :5]).logits, whole[:, :5])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    packed = model(ids, segment_ids=segments, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])).logits
    torch.testing.assert_close(packed[:, 3:], model(ids[:, 3:]).logits)
    cache, parts = DynamicCache(), []
    for part in (ids[:, :3], ids[:, 3:6], ids[:, 6:7], ids[:, 7:]):
        parts.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


# --- what forward can be asked for ----------------------------------------------------------------------------------


def test_chosen_logits_are_the_same_logits():
    model, ids = small(), torch.arange(12).view(2, 6)
    chosen = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = model(ids)
    torch.testing.assert_close(model(ids, logits_positions=chosen).logits, whole.logits[chosen])
    hidden = model(ids, hidden_only=True)
    assert hidden.logits is None
    torch.testing.assert_close(hidden.hidden, whole.hidden)
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=model.embed(ids))


def test_frames_replace_context_tokens_only_and_train_the_adapter():
    model, v = small(), VOCABULARY
    ids = torch.tensor([[3, v.context_of_audio, v.context_of_audio, 4]])
    frames = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    embeddings = model.embed(ids, frames)
    torch.testing.assert_close(embeddings[0, 1:3], model.project_speech(frames[0, 1:3]))
    torch.testing.assert_close(embeddings[0, ::3], model.embed(ids)[0, ::3])
    embeddings.sum().backward()
    assert model.model.audio_projection.mlp[0].weight.grad.abs().sum() > 0
    torch.testing.assert_close(model(ids, speech_frames=frames).logits, model(inputs_embeds=embeddings).logits)


def test_a_batch_without_speech_still_reaches_the_adapter():
    """Data parallelism wants a gradient for every parameter: 0 here, but not None."""
    model = small()
    model(torch.tensor([[3, 4]]), speech_frames=torch.zeros(1, 2, 6)).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.model.audio_projection.mlp[0].weight.grad.abs().sum() == 0


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["kit", "released"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_save_and_load(tmp_path, layout, shards):
    model, ids = small(), torch.arange(5)[None]
    model.save_pretrained(tmp_path, layout=layout, **shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shards)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == {"kit": "omni_diffusion", "released": "Dream"}[layout]
    loaded = Denoiser.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.context_of_audio_token_id == VOCABULARY.context_of_audio and loaded.config.speech_dim == 6


def test_dtype_is_float32_unless_asked(tmp_path):
    small().to(torch.bfloat16).save_pretrained(tmp_path)
    assert Denoiser.from_pretrained(tmp_path).dtype == torch.float32
    assert Denoiser.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert Denoiser.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_released_file_may_hold_the_speech_encoder(tmp_path):
    state = GOLDEN.tensors("dream_tiny")
    released_directory(tmp_path)
    save_file(state | {"model.audio_model.model.ctc.ctc_lo.bias": torch.zeros(3)}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})
    case = forward_case("infer_len7")
    logits = Denoiser.from_pretrained(tmp_path)(case["input_ids"]).logits
    torch.testing.assert_close(logits, case["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.pop("model.norm.weight"), "missing 1: model.norm.weight"),
    (lambda s: s.pop("model.audio_projection.mlp.2.weight"), "missing 1: model.audio_projection.mlp.2.weight"),
    (lambda s: s.update({"model.extra": torch.zeros(2)}), "unexpected 1: model.extra"),
    (lambda s: s.update({"lm_head.weight": torch.zeros(599, 64)}), "misshapen 1: lm_head.weight"),
])
def test_what_does_not_fit_is_named(tmp_path, damage, message):
    state = GOLDEN.tensors("dream_tiny")
    released_directory(tmp_path)
    damage(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        Denoiser.from_pretrained(tmp_path)


def test_unreadable_checkpoints_are_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        Denoiser.from_pretrained(tmp_path / "nowhere")
    released_directory(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Denoiser.from_pretrained(tmp_path)


def test_growing_a_text_only_language_model(tmp_path):
    """Stage 1 starts from Dream-7B-Instruct: text rows are kept, new rows and the adapter are drawn afresh."""
    text_only = small()
    state = {name: t for name, t in text_only.state_dict().items() if "audio_projection" not in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:30].clone()
    text_only.save_pretrained(tmp_path, layout="released")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 30, "auto_map": {"AutoModel": "x"}}))
    grown = Denoiser.from_language_model(tmp_path, VOCABULARY, speech_dim=6)
    assert grown.lm_head.weight.shape == (VOCABULARY.size, 32) == grown.model.embed_tokens.weight.shape
    torch.testing.assert_close(grown.lm_head.weight[:30], state["lm_head.weight"])
    assert grown.config.mask_token_id == VOCABULARY.mask and grown.config.vocab_size == VOCABULARY.size
    with pytest.raises(CheckpointError, match="missing 4: model.audio_projection"):
        Denoiser.from_pretrained(tmp_path)
    assert main(["convert", "--language-model", str(tmp_path), "--out", str(tmp_path / "start")]) == 0
    start = Denoiser.from_pretrained(tmp_path / "start")
    assert start.config.vocab_size == len(start.lm_head.weight) == Vocabulary.released().size
    torch.testing.assert_close(start.lm_head.weight[:30], state["lm_head.weight"])


# --- configuration --------------------------------------------------------------------------------------------------


def test_defaults_are_the_released_7b():
    config, v = DenoiserConfig(), Vocabulary.released()
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.head_dim) == (v.size, 3584, 28, 128)
    assert (config.pad_token_id, config.mask_token_id) == (v.pad, v.mask)
    assert config.context_of_audio_token_id == v.context_of_audio and config.rope_parameters["rope_theta"] == 1e6


def test_unknown_keys_are_refused_in_the_kits_own_configuration_only(tmp_path):
    with pytest.raises(ConfigError, match="hiden_size.*did you mean 'hidden_size'"):
        DenoiserConfig(hiden_size=3)
    with pytest.raises(ConfigError, match="'bert' is no denoiser"):
        DenoiserConfig(model_type="bert")
    released = GOLDEN.json("dream_tiny_config") | {"auto_map": {}, "use_flash": 1}
    assert DenoiserConfig(**released).hidden_size == 64
    (tmp_path / "config.json").write_text(json.dumps(released))
    config = DenoiserConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.rope_parameters["rope_theta"], config.mask_token_id) == (64, 1e6, 566)
    assert DenoiserConfig(**config.to_dict()).to_dict() == config.to_dict()


def test_seeded_initialisation_repeats():
    assert all(torch.equal(a, b) for a, b in zip(small().state_dict().values(), small().state_dict().values()))
