"""`omnidiff` (or `python -m omnidiff_lite`): one command per thing that a user does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable

from omnidiff_lite import __version__

Command = Callable[[argparse.Namespace], None]
COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None], str, str]] = {}


def command(name: str, summary: str, example: str) -> Callable[[Command], Command]:
    """Register the decorated function; its `arguments` attribute is set by `arguments` below."""
    def register(function: Command) -> Command:
        COMMANDS[name] = (function, getattr(function, "arguments", lambda parser: None), summary, example)
        return function
    return register


def arguments(declare: Callable[[argparse.ArgumentParser], None]) -> Callable[[Command], Command]:
    def attach(function: Command) -> Command:
        function.arguments = declare  # type: ignore[attr-defined]
        return function
    return attach


def main(argv: list[str] | None = None) -> int:
    """Run one command; a known kind of error is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="omnidiff", description="Omni-Diffusion, reproduced: any-to-any masked "
                                     "discrete diffusion over text, speech and image tokens.")
    parser.add_argument("--version", action="version", version=f"omnidiff-lite {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (function, declare, summary, example) in COMMANDS.items():
        sub = parsers.add_parser(name, help=summary, description=summary, epilog=f"example: {example}",
                                 formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        declare(sub)
        sub.set_defaults(function=function)
    options = parser.parse_args(argv)
    try:
        options.function(options)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except _known_errors() as error:
        print(f"omnidiff {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _known_errors() -> tuple[type[Exception], ...]:
    from omnidiff_lite.reproduce import RoadError
    from omnidiff_lite.training.step import TrainingError
    from omnidiff_lite.world.voices import VoiceError

    return (ValueError, OSError, RoadError, TrainingError, VoiceError)  # each of the kit's own is one of these


def _preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="smoke", help="smoke, cpu, gpu, full, or a .yaml file (default smoke)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change one configuration key, e.g. training.gamma=0.3; repeatable")


def _load(options: argparse.Namespace) -> Any:
    from omnidiff_lite.config import load_preset
    from omnidiff_lite.notebook import parse_overrides

    return load_preset(options.preset, parse_overrides(" ".join(options.overrides)))


# --- reproduce ------------------------------------------------------------------------------------------------------

def _reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="smoke", help="smoke, cpu, gpu, or a .yaml file (default smoke)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NN", help="only notebooks whose names begin so")
    parser.add_argument("--force", action="store_true", help="run them even if they are up to date")
    parser.add_argument("--publish", action="store_true", help="copy the executed notebooks into notebooks/")


@command("reproduce", "Run every notebook in order through papermill; skip what is up to date.",
         "omnidiff reproduce --preset smoke --only 07 --force")
@arguments(_reproduce_arguments)
def _reproduce(options: argparse.Namespace) -> None:
    from omnidiff_lite.reproduce import reproduce

    reproduce(options.preset, options.seed, options.only, options.force, options.publish)


# --- generate -------------------------------------------------------------------------------------------------------

def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", help="a text input")
    parser.add_argument("--speech", type=Path, help="a recording: WAV, FLAC, OGG, MP3; 0.1 to 30 s")
    parser.add_argument("--image", type=Path, help="a picture of any size and mode")
    parser.add_argument("--to", default="text", help="text, speech, image, or several: text,speech (default text)")
    parser.add_argument("--task", help="name the task instead of inferring it from inputs and outputs")
    parser.add_argument("--checkpoint", help="a system: directory, system.yaml or hub id (default: under results/)")
    parser.add_argument("--dtype", default="float32", help="of the denoiser: float32, bfloat16 or auto (as stored)")
    parser.add_argument("--style", choices=("paper", "released"), help="of decoding (default: the system's own)")
    parser.add_argument("--steps", type=int, help="decoding steps (default: the task's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("answer"), help="folder to write into (default answer/)")


@command("generate", "Answer any set of text, speech and image in any set of text, speech and image.",
         "omnidiff generate --image photo.jpg --speech question.flac --to text,speech --out answer/")
@arguments(_generate_arguments)
def _generate(options: argparse.Namespace) -> None:
    import transformers

    from omnidiff_lite.media import Image, Speech, Text
    from omnidiff_lite.pipeline import OmniDiffusion, default_checkpoint

    transformers.logging.disable_progress_bar()
    given = [(Text, options.text), (Speech, options.speech), (Image, options.image)]
    inputs = [kind(value) for kind, value in given if value is not None]
    if not inputs:
        raise ValueError("no input: give --text, --speech or --image")
    for part in inputs[bool(options.text is not None):]:
        part.load()  # a bad file is told before the model is loaded
    model = OmniDiffusion.from_pretrained(options.checkpoint or default_checkpoint(), dtype=options.dtype)
    chosen = {"steps": options.steps, "style": options.style}
    decoding = {key: value for key, value in chosen.items() if value is not None}
    answer = model.generate(inputs, to=options.to.split(","), task=options.task, decoding=decoding, seed=options.seed)
    for line in answer.save(options.out):
        print(line)
    print(model.world_note or "done")


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", help="the released files of one part: a directory or hub id")
    parser.add_argument("--part", help="which part: denoiser, text_tokenizer, image_tokenizer, speech_encoder, "
                        "speech_tokenizer or speech_decoder")
    parser.add_argument("--system", help="all parts at once: a system.yaml, or a directory with them side by side")
    parser.add_argument("--dtype", help="of the written weights: float32, bfloat16 or float16 (default: the denoiser's "
                        "as stored, the others' float32)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")


@command("convert", "Write released files (.pt, .bin, safetensors) in the kit's layout.",
         "omnidiff convert glm-4-voice-decoder/ --part speech_decoder --out system/speech_decoder")
@arguments(_convert_arguments)
def _convert(options: argparse.Namespace) -> None:
    if (options.source is None) == (options.system is None) or (options.source is None) != (options.part is None):
        raise ValueError("give either a source with --part, or --system")
    from omnidiff_lite.pipeline.convert import convert_part, convert_system
    from omnidiff_lite.pipeline.loading import dtype_of

    dtype = dtype_of(options.dtype) if options.dtype else None
    if options.system is not None:
        print(convert_system(options.system, options.out, dtype))
    else:
        print(convert_part(options.part, options.source, options.out, dtype))


# --- the parts of a run ---------------------------------------------------------------------------------------------

def _data_arguments(parser: argparse.ArgumentParser) -> None:
    _preset(parser)
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

    preset = _load(options)
    drawn = samples(options.task, options.split, options.n, options.seed, preset.world)
    print(write_samples(drawn, options.out, image_size=preset.world.image_size))


def _tokenize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jsonl", type=Path, help="samples in the released format: messages, images, audios")
    parser.add_argument("--preset", default="smoke", help="whose tokenizers and picture sizes (default smoke)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load media")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


@command("tokenize", "Encode a jsonl file once, so that training reads ids.",
         "omnidiff tokenize my_samples/samples.jsonl --out my_samples/encoded.safetensors")
@arguments(_tokenize_arguments)
def _tokenize(options: argparse.Namespace) -> None:
    from omnidiff_lite.config import load_preset
    from omnidiff_lite.data.encode import encode_samples, write_encoded
    from omnidiff_lite.data.jsonl import read_samples

    preset = load_preset(options.preset)
    samples = read_samples(options.jsonl)
    sizes = preset.image_tokenizer.understanding_size, preset.image_tokenizer.generation_size
    encoded = encode_samples(samples, _tokenizers(preset), sizes, workers=options.workers, progress=True)
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
    _preset(parser)
    parser.add_argument("--stage", type=int, required=True, choices=(1, 2, 3))
    parser.add_argument("--data", type=Path, nargs="+", help="files of omnidiff tokenize, in place of the world's")
    parser.add_argument("--init", type=Path, help="denoiser to start from (default: the stage before, as notebooks left it)")
    parser.add_argument("--out", type=Path, help="folder to train in (default: one for each configuration)")
    parser.add_argument("--fresh", action="store_true", help="do not resume what the folder holds")
    parser.add_argument("--seed", type=int, default=0)


@command("train", "Train one of the three stages; resumes from its newest good checkpoint.",
         "omnidiff train --preset smoke --stage 1 --set training.gamma=0.3")
@arguments(_train_arguments)
def _train(options: argparse.Namespace) -> None:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.data.encode import by_task
    from omnidiff_lite.provenance import config_hash
    from omnidiff_lite.training.stages import run_stage

    preset = _load(options)
    artifacts = Artifacts.of(preset.name)
    before = ("", "03_stage1_vision_language", "04_stage2_speech_vision_language")[options.stage - 1]
    init = options.init
    if init is None and options.stage > 1:
        init = artifacts.require(artifacts.stage(options.stage - 1) / "denoiser", before)
    out = options.out or artifacts.work / "train" / f"stage{options.stage}-{config_hash(preset)}"
    data = by_task(options.data) if options.data else None
    _, history = run_stage(preset, options.stage, _tokenizers(preset), init, out, artifacts.cache, options.seed,
                           datasets=data, resume=not options.fresh)
    print(f"stage {options.stage}: last loss {history['loss'].iloc[-1]:.3f}; {out}")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=("asr", "tts", "captioning", "t2i", "s2i", "text_qa", "vqa", "sqa", "svqa"))
    parser.add_argument("--preset", default="smoke", help="whose checkpoint and judges (default smoke)")
    parser.add_argument("--data", type=Path, help="a jsonl file of yours, in place of the world's test split")
    parser.add_argument("--items", type=int, default=0, help="how many (default: the preset's, or the whole file)")
    parser.add_argument("--seed", type=int, default=0)


@command("evaluate", "Score a checkpoint on one task, with intervals.", "omnidiff evaluate asr --items 20")
@arguments(_evaluate_arguments)
def _evaluate(options: argparse.Namespace) -> None:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.config import load_preset
    from omnidiff_lite.data.jsonl import read_samples
    from omnidiff_lite.evaluation.suite import evaluate_task, finished_system
    from omnidiff_lite.evaluation.tables import comparison, to_markdown
    from omnidiff_lite.world.dataset import samples

    preset = load_preset(options.preset)
    model, judges = finished_system(preset, Artifacts.of(preset.name))
    if options.data:
        items = read_samples(options.data)[:options.items or None]
    else:
        items = samples(options.task, "test", options.items or preset.evaluation.items, options.seed, preset.world)
    print(to_markdown(comparison(evaluate_task(options.task, model, judges, items, preset, options.seed))))


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=[*sorted(TABLES), "aims"], help="a table of the paper, or what was aimed at")
    parser.add_argument("--preset", default="smoke")


TABLES = {"1": "07_table1_speech", "2": "08_table2_vision", "3": "09_table3_sampling"}


@command("table", "Print a table from the records of a run.", "omnidiff table 1 --preset smoke")
@arguments(_table_arguments)
def _table(options: argparse.Namespace) -> None:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.config import load_preset

    artifacts = Artifacts.of(load_preset(options.preset).name)
    if options.table == "aims":
        from omnidiff_lite.evaluation.aims import aims_markdown, aims_table

        print(aims_markdown(aims_table(artifacts)), end="")
        return
    notebook = TABLES[options.table]
    print(artifacts.require(artifacts.tables / f"{notebook[3:]}.md", notebook).read_text(), end="")


# --- plan -----------------------------------------------------------------------------------------------------------

def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _preset(parser)
    parser.add_argument("--gpus", type=int, default=8, help="how many, all alike (default 8)")
    parser.add_argument("--gpu-memory", type=float, default=80, help="GiB of each (default 80)")
    parser.add_argument("--gpu-tflops", type=float, default=990, help="bfloat16 peak of each (default 990, an H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="model FLOPs utilisation, 0..1 (default 0.4)")
    parser.add_argument("--assumptions", action="store_true", help="list what the paper leaves open and is assumed")


@command("plan", "What training a preset takes: memory of a GPU, FLOPs, days and disk.",
         "omnidiff plan --preset full --gpus 8 --gpu-memory 80")
@arguments(_plan_arguments)
def _plan(options: argparse.Namespace) -> None:
    from omnidiff_lite.plan import make_plan

    plan = make_plan(_load(options), options.gpus, options.gpu_memory, options.mfu, options.gpu_tflops)
    print(plan.report(options.assumptions))
