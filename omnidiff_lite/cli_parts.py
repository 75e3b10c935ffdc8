"""Commands for the parts of a run: data, ids, one stage of training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omnidiff_lite.cli_registry import arguments, at_least, command, load, overrides, preset_arguments


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--list", action="store_true", help="print the paper's data: licence, size, how to fetch")
    parser.add_argument("--corpus", nargs=2, metavar=("NAME", "FOLDER"), help="read one of these as published")
    parser.add_argument("--task", help="of the embedded world: text_qa, captioning, vqa, t2i, asr, tts, sqa, svqa, s2i")
    parser.add_argument("--sdvi", choices=("svqa", "s2i"), help="speak the corpus: llava_onevision's questions, or "
                        "blip3o_journeydb's captions (section 3.3); a killed run goes on")
    parser.add_argument("--speaker", default="espeak", help="who speaks: espeak, or an installed synthesiser")
    parser.add_argument("--split", default="train", help="of the world: train, validation or test")
    parser.add_argument("--n", type=at_least(1), help="samples (default: 100 of the world, all of a corpus)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the jsonl file and its pictures and recordings")
    _broken_arguments(parser)


@command("data", "Write samples of the embedded world, or of published data, in the released jsonl format.",
         "omnidiff data --corpus librispeech LibriSpeech/train-clean-100 --out librispeech/")
@arguments(_data_arguments)
def _data(options: argparse.Namespace) -> None:
    from omnidiff_lite.data.corpora import corpus_table
    from omnidiff_lite.data.jsonl import write_samples
    from omnidiff_lite.world.dataset import samples

    if options.list:
        print(corpus_table())
        return
    if options.out is None or (options.task is None) == (options.corpus is None):
        raise ValueError("give --out, and either --task (of the world) or --corpus NAME FOLDER; --list shows names")
    if options.sdvi:
        print(_sdvi(options))
        return
    preset = load(options)
    found = (_corpus(options, options.n) if options.corpus else
             samples(options.task, options.split, options.n or 100, options.seed, preset.world))
    print(write_samples(found, options.out, image_size=preset.world.image_size))


def _corpus(options: argparse.Namespace, limit: int | None = None) -> Any:
    from omnidiff_lite.data.broken import BrokenLog
    from omnidiff_lite.data.corpora import read_corpus

    log = BrokenLog(options.out / "broken.jsonl", options.broken, options.broken_share)
    return read_corpus(*options.corpus, limit, options.out / "media", log)


def _sdvi(options: argparse.Namespace) -> Path:
    from omnidiff_lite.data.broken import BrokenLog
    from omnidiff_lite.data.sdvi import SIZE, build_sdvi
    from omnidiff_lite.world.synthesisers import synthesiser

    if options.corpus is None:
        raise ValueError("--sdvi speaks a corpus: give --corpus llava_onevision FOLDER, or blip3o_journeydb FOLDER")
    log = BrokenLog(options.out / "unspoken.jsonl", options.broken, options.broken_share)
    name, folder = options.corpus
    return build_sdvi(options.sdvi, _corpus(options), options.out, synthesiser(options.speaker), options.n or SIZE,
                      options.seed, log, progress=True, corpus=f"{name} in {Path(folder).absolute()}")


def _broken_arguments(parser: argparse.ArgumentParser, where: str = "") -> None:
    from omnidiff_lite.data.broken import MOST, SHARE

    parser.add_argument("--broken", type=int, default=MOST, metavar="N",
                        help=f"broken samples allowed{where} (default {MOST})")
    parser.add_argument("--broken-share", type=float, default=SHARE, metavar="S",
                        help=f"share of those seen that may be broken{where} (default {SHARE:g})")


def _tokenize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+",
                        help="samples in the released format: .jsonl, .json, or .tar shards of .json with their media")
    preset_arguments(parser)
    parser.add_argument("--workers", type=int, default=0, help="processes that load and encode media")
    parser.add_argument("--shard-rows", type=int, default=2048, help="rows of one output file (default 2048)")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards to write, or to go on with")
    _broken_arguments(parser)


@command("tokenize", "Encode samples once, in parallel, so that training reads ids; a killed run goes on.",
         "omnidiff tokenize my_samples/samples.jsonl --workers 2 --out my_samples/encoded")
@arguments(_tokenize_arguments)
def _tokenize(options: argparse.Namespace) -> None:
    from functools import partial

    from omnidiff_lite.data.tokenize import tokenize_files

    preset = load(options)
    index = tokenize_files(options.files, options.out, partial(_tokenizers, preset), preset.image_tokenizer.sizes,
                           options.workers, options.shard_rows, options.broken, options.broken_share, progress=True,
                           speech_input=preset.denoiser.speech_input)
    samples, tokens = (sum(shard[key] for shard in index["shards"]) for key in ("samples", "tokens"))
    print(f"{options.out}: {samples} samples, {tokens} tokens, {len(index['shards'])} shards, {index['broken']} broken")


def _tokenizers(preset: Any) -> Any:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.tokenizers import Tokenizers

    return Tokenizers.from_pretrained(Artifacts.of(preset.name).finished_tokenizers())


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--stage", type=int, required=True, choices=(1, 2, 3))
    parser.add_argument("--data", type=Path, nargs="+",
                        help="folders of omnidiff tokenize, or .jsonl, .json and .tar files, in place of the world's")
    parser.add_argument("--init", help="denoiser to start from, or 'scratch': fresh weights at any stage (default: the "
                        "stage before, as notebooks left it)")
    parser.add_argument("--out", type=Path, help="folder to train in (default: one for each configuration)")
    parser.add_argument("--fresh", action="store_true", help="do not resume what the folder holds")
    parser.add_argument("--expect", nargs="+", default=[], metavar="WHAT", help="stop unless the launcher gave this "
                        "many processes, this kind (single, ddp, fsdp2, zero2, deepspeed), this device: "
                        "--expect 8 fsdp2 cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode media of files in --data")
    _broken_arguments(parser, " in each process that trains")


@command("train", "Train one of the three stages, alone or under accelerate launch or torchrun; resumes from its "
         "newest good checkpoint.", "omnidiff train --preset smoke --stage 1 --set training.gamma=0.3")
@arguments(_train_arguments)
def _train(options: argparse.Namespace) -> None:
    import time

    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.data.sources import open_samples
    from omnidiff_lite.pipeline.settings import check_decodings
    from omnidiff_lite.provenance import config_hash, provenance
    from omnidiff_lite.training.launch import Expected
    from omnidiff_lite.processes import is_first
    from omnidiff_lite.training.stages import run_stage
    from omnidiff_lite.weights import write_json

    started, preset = time.time(), load(options)
    check_decodings(preset)
    artifacts = Artifacts.of(preset.name)
    before = ("", "03_stage1_vision_language", "04_stage2_speech_vision_language")[options.stage - 1]
    init = options.init
    if init is None and options.stage > 1:
        init = artifacts.require(artifacts.stage(options.stage - 1) / "denoiser", before)
    out = options.out or artifacts.work / "train" / f"stage{options.stage}-{config_hash(preset)}"
    tokenizers = _tokenizers(preset)
    data = open_samples(options.data, tokenizers, preset.image_tokenizer.sizes, out, options.workers, options.broken,
                        options.broken_share, preset.denoiser.speech_input) if options.data else None
    _, history = run_stage(preset, options.stage, tokenizers, init, out, artifacts.cache, options.seed,
                           datasets=data, resume=not options.fresh, expected=Expected.of(options.expect))
    if is_first():
        write_json(out / "provenance.json", provenance(preset, options.seed, started, stage=options.stage,
                                                       overrides=overrides(options)))
        print(f"stage {options.stage}: last loss {history['loss'].iloc[-1]:.3f}; {out}")
