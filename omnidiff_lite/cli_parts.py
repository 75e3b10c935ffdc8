"""Commands for the parts of a run: data, ids, one stage of training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnidiff_lite.cli_registry import arguments, command, load, overrides, preset_arguments


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--task", required=True, help="text_qa, captioning, vqa, t2i, asr, tts, sqa, svqa or s2i")
    parser.add_argument("--split", default="train", help="train, validation or test")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the jsonl file and its PNG and WAV files")


@command("data", "Write samples of the embedded world as files in the released jsonl format.",
         "omnidiff data --task svqa --n 20 --out my_samples/")
@arguments(_data_arguments)
def _data(options: argparse.Namespace) -> None:
    from omnidiff_lite.data.jsonl import write_samples
    from omnidiff_lite.world.dataset import samples

    preset = load(options)
    drawn = samples(options.task, options.split, options.n, options.seed, preset.world)
    print(write_samples(drawn, options.out, image_size=preset.world.image_size))


def _tokenize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jsonl", type=Path, help="samples in the released format: messages, images, audios")
    preset_arguments(parser)
    parser.add_argument("--workers", type=int, default=0, help="processes that load media")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


@command("tokenize", "Encode a jsonl file once, so that training reads ids.",
         "omnidiff tokenize my_samples/samples.jsonl --out my_samples/encoded.safetensors")
@arguments(_tokenize_arguments)
def _tokenize(options: argparse.Namespace) -> None:
    from omnidiff_lite.data.encode import encode_samples, write_encoded
    from omnidiff_lite.data.jsonl import read_samples

    preset = load(options)
    samples = read_samples(options.jsonl)
    sizes = preset.image_tokenizer.understanding_size, preset.image_tokenizer.generation_size
    encoded = encode_samples(samples, _tokenizers(preset), sizes, workers=options.workers, progress=True,
                             speech_input=preset.denoiser.speech_input)
    write_encoded(options.out, encoded)
    print(f"{options.out}: {len(encoded)} samples, {sum(len(s.ids) for s in encoded)} tokens")


def _tokenizers(preset: Any) -> Any:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.tokenizers import Tokenizers

    artifacts = Artifacts.of(preset.name)
    shipped = artifacts.checkpoint if (artifacts.checkpoint / "system.json").exists() else artifacts.tokenizers
    made = artifacts.tokenizers if artifacts.tokenizers.exists() else shipped
    return Tokenizers.from_pretrained(artifacts.require(made, "02_training_the_tokenizers"))


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--stage", type=int, required=True, choices=(1, 2, 3))
    parser.add_argument("--data", type=Path, nargs="+", help="files of omnidiff tokenize, in place of the world's")
    parser.add_argument("--init", help="denoiser to start from, or 'scratch': fresh weights at any stage (default: the "
                        "stage before, as notebooks left it)")
    parser.add_argument("--out", type=Path, help="folder to train in (default: one for each configuration)")
    parser.add_argument("--fresh", action="store_true", help="do not resume what the folder holds")
    parser.add_argument("--expect", nargs="+", default=[], metavar="WHAT", help="stop unless the launcher gave this "
                        "many processes, this kind (single, ddp, fsdp2, zero2), this device: --expect 8 fsdp2 cuda")
    parser.add_argument("--seed", type=int, default=0)


@command("train", "Train one of the three stages, alone or under accelerate launch or torchrun; resumes from its "
         "newest good checkpoint.", "omnidiff train --preset smoke --stage 1 --set training.gamma=0.3")
@arguments(_train_arguments)
def _train(options: argparse.Namespace) -> None:
    import time

    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.data.encode import by_task
    from omnidiff_lite.provenance import config_hash, provenance
    from omnidiff_lite.training.launch import Expected
    from omnidiff_lite.training.processes import is_first
    from omnidiff_lite.training.stages import run_stage
    from omnidiff_lite.weights import write_json

    started, preset = time.time(), load(options)
    artifacts = Artifacts.of(preset.name)
    before = ("", "03_stage1_vision_language", "04_stage2_speech_vision_language")[options.stage - 1]
    init = options.init
    if init is None and options.stage > 1:
        init = artifacts.require(artifacts.stage(options.stage - 1) / "denoiser", before)
    out = options.out or artifacts.work / "train" / f"stage{options.stage}-{config_hash(preset)}"
    data = by_task(options.data) if options.data else None
    _, history = run_stage(preset, options.stage, _tokenizers(preset), init, out, artifacts.cache, options.seed,
                           datasets=data, resume=not options.fresh, expected=Expected.of(options.expect))
    if is_first():
        write_json(out / "provenance.json", provenance(preset, options.seed, started, stage=options.stage,
                                                       overrides=overrides(options)))
        print(f"stage {options.stage}: last loss {history['loss'].iloc[-1]:.3f}; {out}")
