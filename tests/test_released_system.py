"""The released system, in miniature, from its own files: found, loaded once, asked every task, converted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from omnidiff_lite.cli import main
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.media import Image, Speech, Text, Waveform
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.pipeline.convert import convert_part
from omnidiff_lite.pipeline.requests import read_request
from omnidiff_lite.tokenizers.text import encode_text
from omnidiff_lite.vocabulary import VocabularyError
from omnidiff_lite.weights import CheckpointError
from released_files import IMAGE, SPEECH_CODES, write_released, write_text_tokenizer

RNG = np.random.default_rng(0)
SPEECH = Speech(Waveform((0.1 * RNG.standard_normal(8000)).astype(np.float32), 16000))
PICTURE = Image(PIL.Image.fromarray(RNG.integers(0, 255, (70, 90, 3), dtype=np.uint8)))
TEXT = Text("a red circle")
TASKS = {  # inputs, outputs, tokens of the released answer (a picture of 64 pixels: 4 x 4 tokens and 4 more)
    "asr": ([SPEECH], ("text",), 50), "tts": ([TEXT], ("speech",), 50), "t2i": ([TEXT], ("image",), 20),
    "s2i": ([SPEECH], ("image",), 20), "vqa": ([TEXT, PICTURE], ("text",), 64),
    "captioning": ([PICTURE], ("text",), 64),
    "sqa": ([SPEECH], ("text", "speech"), 128), "svqa": ([SPEECH, PICTURE], ("text", "speech"), 128)}
SYSTEM = """
denoiser: ../parts/Omni-Diffusion
image_tokenizer: ../parts/magvitv2
speech_tokenizer: ../parts/glm-4-voice-tokenizer
speech_decoder: ../parts/glm-4-voice-decoder
speech_statistics: ../parts/SenseVoiceSmall/am.mvn
understanding_size: 64
generation_size: 64
lengths: {text: 8, spoken: 20, spoken_text: 6}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`parts/` as downloaded, and `system/system.yaml` that names them."""
    folder = tmp_path_factory.mktemp("released")
    write_released(folder / "parts")
    (folder / "system").mkdir()
    (folder / "system" / "system.yaml").write_text(SYSTEM)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> OmniDiffusion:
    return OmniDiffusion.from_pretrained(folder / "system" / "system.yaml", device="cpu")


def ask(model: OmniDiffusion, task: str, **options):
    inputs, outputs, _ = TASKS[task]
    return model.generate(inputs, to=outputs, **options)


def same_weights(a: OmniDiffusion, b: OmniDiffusion) -> bool:
    pairs = [(a.denoiser, b.denoiser)] + [(getattr(a.tokenizers, name), getattr(b.tokenizers, name))
                                          for name in ("image", "speech_encoder", "speech_tokenizer", "speech_decoder")]
    return all(torch.equal(x, y) for one, other in pairs for x, y in
               zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# --- every task ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", TASKS)
def test_paper_decoding_gives_what_was_asked_for(model, task):
    answer = ask(model, task)
    for name in ("text", "speech", "image"):
        assert (getattr(answer, name) is not None) == (name in TASKS[task][1])
    if answer.image:
        assert answer.image.size == (64, 64)
    if answer.speech:
        assert answer.speech.rate == 22050 and np.isfinite(answer.speech.samples).all()


@pytest.mark.parametrize("task", TASKS)
def test_released_decoding_is_the_released_scripts(model, task):
    """Its prompt, its settings, and nothing between them and `decode`: a canvas of masks that may become anything."""
    inputs, outputs, length = TASKS[task]
    answer = ask(model, task, decoding="released")
    v = model.tokenizers.vocabulary
    config = DecodingConfig.released(task, v)
    if "image" in outputs:
        config = config.replace(length=length)
    if task == "s2i":
        system = "<|im_start|>system\nPlease generate an image based on the input audio.<|im_end|>\n"
        config = config.replace(guidance_prompt_ids=template(model, system + "<|im_start|>user\n<|im_end|>\n"))
    (ids, frames), = model.prompts([read_request(inputs, outputs)], released=True)
    embeds = model.denoiser.embed(torch.tensor([ids]), frames[None])
    expected = decode(model.denoiser, None, config, prompt_embeds=embeds)
    assert np.array_equal(answer.ids, expected.ids[0]) and len(answer.ids) == length
    assert set(answer.ids.tolist()) - set(v.image_range)  # it was not told that only image tokens were wanted
    if task in ("sqa", "svqa"):
        assert answer.ids[int(0.2 * length)] == v.begin_of_audio
    if "image" in outputs and v.codes_of_image(answer.ids):
        assert answer.image.size == (64, 64)


def template(model: OmniDiffusion, text: str) -> list[int]:
    """Ids of a prompt written out as one string, up to the assistant's turn."""
    v, ids = model.tokenizers.vocabulary, []
    for piece in (text + "<|im_start|>assistant\n").replace("<|im", "\0<|im").replace("|>", "|>\0").split("\0"):
        ids += [v.ids[piece]] if piece in v.ids else encode_text(model.tokenizers.text, piece)
    return ids


def test_released_prompts_have_their_extra_newline(model):
    request = read_request([SPEECH], ("text", "speech"))
    (plain, _), (released, _) = model.prompts([request])[0], model.prompts([request], released=True)[0]
    system = "<|im_start|>system\nPlease response the input audio.<|im_end|>\n<|im_start|>user\n"
    audio = model.tokenizers.vocabulary.begin_of_audio
    start = len(template(model, system)) - len(template(model, ""))
    assert plain[:start] == released[:start] == template(model, system)[:start]
    assert plain[start] == audio and released[start:released.index(audio)] == encode_text(model.tokenizers.text, "\n")
    assert [i for i, j in zip(plain[start:], released[released.index(audio):], strict=True) if i != j] == []


def test_the_style_may_be_the_systems_own_or_one_field_among_others(model, folder):
    yaml = folder / "system" / "as_released.yaml"
    yaml.write_text(SYSTEM + "decoding: released\n")
    always = OmniDiffusion.from_pretrained(yaml, device="cpu")
    assert np.array_equal(ask(always, "vqa").ids, ask(model, "vqa", decoding={"style": "released"}).ids)
    assert np.array_equal(ask(always, "vqa", decoding="paper").ids, ask(model, "vqa").ids)
    shorter = ask(model, "vqa", decoding={"style": "released", "length": 12, "steps": 3})
    assert len(shorter.ids) == 12 and len(shorter.trace) == 3
    with pytest.raises(ConfigError, match="'original'.*paper, released"):
        ask(model, "vqa", decoding="original")


# --- where the parts lie ---------------------------------------------------------------------------------------------

def test_the_sizes_are_read_off_the_files(model):
    config = model.denoiser.config
    v = model.tokenizers.vocabulary
    assert model.tokenizers.image.config == IMAGE and v.speech_codes == SPEECH_CODES
    assert (config.begin_of_audio_token_id, config.context_of_audio_token_id) == (v.begin_of_audio, v.context_of_audio)
    assert config.speech_dim == model.tokenizers.speech_encoder.config.dim == 32


def test_parts_side_by_side_under_either_name(model, folder, tmp_path):
    """As downloaded; under the kit's names, the speech encoder's statistics beside the denoiser; from the denoiser."""
    downloaded = OmniDiffusion.from_pretrained(folder / "parts", device="cpu")
    assert same_weights(downloaded, model) and downloaded.settings.understanding_size == 512
    renamed = {"Omni-Diffusion": "denoiser", "magvitv2": "image_tokenizer", "SenseVoiceSmall": "speech_encoder",
               "glm-4-voice-tokenizer": "speech_tokenizer", "glm-4-voice-decoder": "speech_decoder"}
    for old, new in renamed.items():
        (tmp_path / new).symlink_to(folder / "parts" / old)
    assert same_weights(OmniDiffusion.from_pretrained(tmp_path, device="cpu"), model)
    assert same_weights(OmniDiffusion.from_pretrained(folder / "parts" / "Omni-Diffusion", device="cpu"), model)


def test_a_hub_id_is_asked_for_only_where_nothing_local_has_that_name(model, folder, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name):
        asked.append(name)
        if name == "someone/parts":
            return str(folder / "parts")
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert same_weights(OmniDiffusion.from_pretrained("someone/parts", device="cpu"), model)
    with pytest.raises(CheckpointError, match=r"someone/else: no such directory here.*\(no network\)"):
        OmniDiffusion.from_pretrained("someone/else")
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "parts").symlink_to(folder / "parts")
    OmniDiffusion.from_pretrained("someone/parts", device="cpu")
    with pytest.raises(CheckpointError, match="nowhere.*no such directory.*make reproduce"):
        OmniDiffusion.from_pretrained(tmp_path / "nowhere")
    assert asked == ["someone/parts", "someone/else"]


def test_a_device_map_and_a_dtype_go_to_the_denoiser(folder):
    system = OmniDiffusion.from_pretrained(folder / "system" / "system.yaml", device_map={"": "cpu"}, dtype="bfloat16")
    assert system.denoiser.dtype == torch.bfloat16
    assert system.tokenizers.image.decoder.conv_in.weight.dtype == torch.float32
    assert ask(system, "svqa").text is not None
    with pytest.raises(ConfigError, match="'half'.*bfloat16"):
        OmniDiffusion.from_pretrained(folder / "system" / "system.yaml", dtype="half")


# --- what does not fit -----------------------------------------------------------------------------------------------

def test_a_denoiser_alone_names_what_is_missing_and_where_it_is(folder, tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "Omni-Diffusion").symlink_to(folder / "parts" / "Omni-Diffusion")
    with pytest.raises(CheckpointError) as error:
        OmniDiffusion.from_pretrained(tmp_path / "alone" / "Omni-Diffusion")
    for part in ("image_tokenizer (fetch showlab/magvitv2)", "speech_tokenizer (fetch THUDM/glm-4-voice-tokenizer)",
                 "speech_decoder (fetch THUDM/glm-4-voice-decoder)", "system.yaml"):
        assert part in str(error.value)
    assert "speech_encoder" not in str(error.value) and "text_tokenizer" not in str(error.value)


def test_without_statistics_only_speech_is_refused(folder, tmp_path):
    for name in ("Omni-Diffusion", "magvitv2", "glm-4-voice-tokenizer", "glm-4-voice-decoder"):
        (tmp_path / name).symlink_to(folder / "parts" / name)
    (tmp_path / "system.yaml").write_text("generation_size: 64\n")
    model = OmniDiffusion.from_pretrained(tmp_path, device="cpu")
    assert ask(model, "t2i", decoding={"steps": 2}).image is not None
    with pytest.raises(CheckpointError, match="am.mvn"):
        ask(model, "asr")


@pytest.mark.parametrize("yaml, error, words", [
    ("denoizer: x", ConfigError, "system.yaml: unknown key 'denoizer'; did you mean 'denoiser'"),
    ("lengths: {spokn: 3}", ConfigError, "unknown key 'lengths.spokn'; did you mean 'spoken'"),
    ("decoding: original", ConfigError, "decoding: 'original' is none of 'paper', 'released'"),
    ("- denoiser", ConfigError, "system.yaml.*expected a section"),
    ("denoiser: [", ConfigError, "system.yaml"),
    ("denoiser: nowhere", CheckpointError, "system.yaml, denoiser: .*nowhere: no such directory"),
    ("denoiser: ../parts/magvitv2", CheckpointError, "missing: text_tokenizer"),
])
def test_a_wrong_system_file_is_one_clear_error(folder, yaml, error, words):
    path = folder / "wrong" / "system.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml)
    with pytest.raises(error, match=words):
        OmniDiffusion.from_pretrained(path.parent)


def shifted(ids: dict[str, int]) -> None:
    ids["<|extra_19|>"] = ids["<|mask|>"]
    ids["<|mask|>"] += 1


def endless(ids: dict[str, int]) -> None:
    del ids["<|im_end|>"]


@pytest.mark.parametrize("change, error, words", [
    (endless, VocabularyError, r"lacks <\|im_end\|>.*use the one beside"),
    (shifted, CheckpointError, r"do not fit this denoiser: the number of ids is \d+ there and \d+ here; <\|mask\|> is"),
])
def test_a_tokenizer_that_does_not_fit_is_told(folder, tmp_path, change, error, words):
    write_text_tokenizer(tmp_path / "text", change)
    (tmp_path / "system.yaml").write_text(
        "".join(f"{line}\n" for line in SYSTEM.replace("../parts", str(folder / "parts")).splitlines())
        + f"text_tokenizer: {tmp_path / 'text'}\n")
    with pytest.raises(error, match=words):
        OmniDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["Omni-Diffusion/config.json", "Omni-Diffusion/model.safetensors.index.json",
                                  "glm-4-voice-tokenizer/config.json"])
def test_a_file_of_settings_that_is_cut_off_is_named(folder, tmp_path, name):
    parts = shutil.copytree(folder / "parts", tmp_path / "parts")
    (parts / name).write_text((parts / name).read_text()[:-3])
    with pytest.raises(CheckpointError, match=f"{name}: not JSON .*half-written, fetch or write it again"):
        OmniDiffusion.from_pretrained(parts, device="cpu")


# --- converting ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def converted(folder) -> OmniDiffusion:
    out = folder / "converted"
    assert main(["convert", "--system", str(folder / "system" / "system.yaml"), "--out", str(out)]) == 0
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    return OmniDiffusion.from_pretrained(out, device="cpu")


@pytest.mark.parametrize("style", ["paper", "released"])
@pytest.mark.parametrize("task", TASKS)
def test_a_converted_system_answers_alike(model, converted, task, style):
    before, after = (ask(system, task, decoding=style, seed=3) for system in (model, converted))
    assert np.array_equal(before.ids, after.ids) and before.text == after.text
    assert (before.speech is None) == (after.speech is None) and (before.image is None) == (after.image is None)
    if before.speech:
        # Equal weights elsewhere in memory: kernels that depend on alignment round differently.
        np.testing.assert_allclose(before.speech.samples, after.speech.samples, atol=1e-5)
    if before.image:
        np.testing.assert_allclose(np.asarray(before.image, int), np.asarray(after.image, int), atol=1)


def test_parts_are_converted_one_by_one(model, folder, tmp_path, capsys):
    sources = {"denoiser": "Omni-Diffusion", "text_tokenizer": "Omni-Diffusion", "speech_encoder": "Omni-Diffusion",
               "image_tokenizer": "magvitv2", "speech_tokenizer": "glm-4-voice-tokenizer",
               "speech_decoder": "glm-4-voice-decoder"}
    for part, source in sources.items():
        if part != "text_tokenizer":  # alone, it cannot know how few codes this system has
            assert main(["convert", str(folder / "parts" / source), "--part", part, "--out", str(tmp_path / part)]) == 0
    text = Path(folder / "converted" / "text_tokenizer")
    convert_part("text_tokenizer", text, tmp_path / "text_tokenizer")
    (tmp_path / "system.yaml").write_text(
        f"denoiser: denoiser\nspeech_statistics: {folder / 'parts' / 'SenseVoiceSmall' / 'am.mvn'}\n")
    assert same_weights(OmniDiffusion.from_pretrained(tmp_path, device="cpu"), model)
    assert str(tmp_path / "speech_decoder") in capsys.readouterr().out


def test_a_released_text_tokenizer_gets_the_released_ids(folder, tmp_path):
    from omnidiff_lite.tokenizers.text import load_text_tokenizer

    convert_part("text_tokenizer", folder / "parts" / "Omni-Diffusion", tmp_path)
    _, vocabulary = load_text_tokenizer(tmp_path, 16384, 8192)
    assert (vocabulary.speech_codes, vocabulary.image_codes) == (16384, 8192)
    assert vocabulary.size - vocabulary.begin_of_audio == 176264 - 151684


@pytest.mark.parametrize("arguments, words", [
    (["parts"], "one of: a source with --part, --system, --checkpoint"),
    (["parts", "--part", "denoiser", "--system", "x"], "one of: a source with --part, --system, --checkpoint"),
    (["parts/magvitv2", "--part", "vocoder"], "no part 'vocoder'"),
    (["parts/magvitv2", "--part", "speech_decoder"], "no flow.pt"),
    (["parts/magvitv2", "--part", "denoiser"], "in the denoiser's configuration"),
    (["nowhere", "--part", "denoiser"], "no such directory"),
    (["--system", "parts", "--dtype", "int8"], "'int8'"),
    (["--system", "out"], "name another folder"),
])
def test_converting_what_does_not_fit_is_one_line(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    assert main(["convert", *arguments, "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


# --- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import json, sys
from pathlib import Path
from omnidiff_lite.pipeline import OmniDiffusion

def status(name):
    line, = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024

def loaded(where, dtype):
    model = OmniDiffusion.from_pretrained(where, device="cpu", dtype=dtype)
    parts = [model.denoiser, *(getattr(model.tokenizers, name) for name in
             ("image", "speech_encoder", "speech_tokenizer", "speech_decoder"))]
    tensors = [t for part in parts for t in part.state_dict().values()]
    assert all(t.sum().isfinite() for t in tensors)  # every page of every weight is really read
    return model, sum(t.nbytes for t in tensors)

small, where, dtype = sys.argv[1:]
loaded(small, dtype)  # all that is imported and cached once
before = status("VmRSS")
model, weights = loaded(where, dtype)
print(json.dumps([weights, status("VmHWM") - before, status("VmRSS") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_loading_never_holds_two_copies(folder, tmp_path):
    """Peak memory beyond the interpreter's against the weights' own size (180 MB), as stored and converted."""
    cases = [("bfloat16", "auto"), ("float32", "bfloat16")]  # as the released file is used; with a conversion
    for stored, _ in cases:
        write_released(tmp_path / stored, 640, 8, 512, 6, getattr(torch, stored))
    runs = [subprocess.Popen([sys.executable, "-c", PEAK, str(folder / "parts"), str(tmp_path / stored), dtype],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for stored, dtype in cases]
    for (stored, dtype), run in zip(cases, runs):
        out, errors = run.communicate()
        assert run.returncode == 0, errors
        weights, peak, resident = json.loads(out.splitlines()[-1])
        print(f"{stored} as {dtype}: weights {weights / 2**20:.0f} MiB, peak {peak / weights:.3f} times that")
        assert weights > 170 * 2**20 and 0.95 * weights < resident <= peak < 1.15 * weights, (stored, dtype)
