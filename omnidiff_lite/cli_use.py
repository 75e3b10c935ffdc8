"""Commands for a finished run: all notebooks at once, answers, scores, tables, the kit's own files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from omnidiff_lite.cli_registry import arguments, at_least, command, load, overrides, preset_arguments

if TYPE_CHECKING:
    from omnidiff_lite.chat import Sample
    from omnidiff_lite.evaluation.records import Record


def _reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="smoke", help="smoke, cpu, gpu, or a .yaml file (default smoke)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NN", help="only notebooks whose names begin so")
    parser.add_argument("--force", action="store_true", help="run them even if they are up to date")
    parser.add_argument("--publish", action="store_true", help="put what the executed notebooks show into notebooks/")
    parser.add_argument("--tokenizers", type=Path, metavar="CHECKPOINT",
                        help="use the tokenizers of this checkpoint, and leave notebook 02 out")


@command("reproduce", "Run every notebook in order through papermill; skip what is up to date.",
         "omnidiff reproduce --preset smoke --only 07 --force")
@arguments(_reproduce_arguments)
def _reproduce(options: argparse.Namespace) -> None:
    from omnidiff_lite.reproduce import reproduce

    reproduce(options.preset, options.seed, options.only, options.force, options.publish,
              tokenizers=options.tokenizers)


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
        part.load()  # a bad file is reported before the model is loaded
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
    parser.add_argument("--checkpoint", help="one checkpoint of a training run, sharded or not, to make a denoiser of")
    parser.add_argument("--language-model", help="a Dream or Qwen2 checkpoint, to be grown to the whole id space: "
                        "where stage 1 starts at full size")
    parser.add_argument("--dtype", help="of the written weights: float32, bfloat16 or float16 (default: the denoiser's "
                        "as stored, the others' float32)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")


@command("convert", "Write released files (.pt, .bin, safetensors), or a language model, in the kit's layout.",
         "omnidiff convert glm-4-voice-decoder/ --part speech_decoder --out system/speech_decoder")
@arguments(_convert_arguments)
def _convert(options: argparse.Namespace) -> None:
    given = [options.source, options.system, options.checkpoint, options.language_model]
    if sum(source is not None for source in given) != 1 or (options.source is None) != (options.part is None):
        raise ValueError("give one of: a source with --part, --system, --checkpoint, --language-model")
    from omnidiff_lite.backbone import Denoiser
    from omnidiff_lite.pipeline.convert import convert_part, convert_system
    from omnidiff_lite.pipeline.loading import dtype_of
    from omnidiff_lite.training.shards import denoiser_of
    from omnidiff_lite.vocabulary import Vocabulary

    dtype = dtype_of(options.dtype) if options.dtype else None
    if options.checkpoint is not None:
        denoiser_of(options.checkpoint, *[dtype] * bool(dtype)).save_pretrained(options.out)
        print(options.out)
    elif options.language_model is not None:
        Denoiser.from_language_model(options.language_model, Vocabulary.released(), dtype=dtype or "auto"
                                     ).save_pretrained(options.out)
        print(options.out)
    elif options.system is not None:
        print(convert_system(options.system, options.out, dtype))
    else:
        print(convert_part(options.part, options.source, options.out, dtype))


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from omnidiff_lite.config import Task

    parser.add_argument("task", choices=get_args(Task))
    preset_arguments(parser)
    parser.add_argument("--data", type=Path, help="a jsonl file of yours, in place of the world's test split")
    parser.add_argument("--denoiser", type=Path, help="one that `train` saved, in place of the checkpoint's")
    parser.add_argument("--items", type=at_least(0), default=0,
                        help="how many (default: the preset's, or the whole file)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a .json file for the records, with their provenance")


@command("evaluate", "Score a checkpoint on one task, with intervals; several processes (torchrun) share the items.",
         "omnidiff evaluate t2i --preset cpu --set decoding.t2i.steps=16 --out t2i.json")
@arguments(_evaluate_arguments)
def _evaluate(options: argparse.Namespace) -> None:
    import time

    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.data.jsonl import read_samples
    from omnidiff_lite.evaluation.suite import evaluate_task, finished_system, with_denoiser
    from omnidiff_lite.evaluation.tables import comparison, to_markdown
    from omnidiff_lite.provenance import provenance
    from omnidiff_lite.training.launch import join
    from omnidiff_lite.processes import is_first
    from omnidiff_lite.world.dataset import samples

    join()
    started, preset, changes = time.time(), load(options), overrides(options)
    decoding = _decoding(changes, [options.task])[options.task]
    model, judges = finished_system(preset, Artifacts.of(preset.name))
    if options.denoiser:
        model = with_denoiser(model, options.denoiser)
    if options.data:
        items = read_samples(options.data)[:options.items or None]
    else:
        items = samples(options.task, "test", options.items or preset.evaluation.items, options.seed, preset.world)
    records = evaluate_task(options.task, model, judges, items, preset, options.seed, decoding)
    if is_first():
        print(to_markdown(comparison(records)))
        _file(options.out, records, provenance(preset, options.seed, started, task=options.task, overrides=changes,
                                               **{"denoiser": str(options.denoiser)} if options.denoiser else {}))


def _file(out: Path | None, records: Sequence[Record], origin: dict[str, Any]) -> None:
    """Write the records where `--out` says, each with its provenance."""
    from omnidiff_lite.evaluation.records import with_provenance, write_records

    if out is not None:
        print(write_records(out, with_provenance(records, origin)))


def _decoding(changes: dict[str, Any], tasks: Sequence[str], others: Sequence[str] = ("evaluation", "world", "judges")
              ) -> dict[str, dict[str, Any]]:
    """The decoding settings among `changes`, by task. Raises `ConfigError` for an invalid one, and for a change that
    would not affect a finished checkpoint's evaluation on `tasks`: only those of decoding and `others` do."""
    from omnidiff_lite.config import ConfigError
    from omnidiff_lite.pipeline.settings import check_decoding

    own = {task: f"decoding.{task}." for task in tasks}
    for key in changes:
        if not key.startswith((*(f"{name}." for name in others), *own.values())):
            raise ConfigError(f"{key} has no effect on evaluating {', '.join(tasks)}: change keys of "
                              f"{', '.join(others)} or {', '.join(f'decoding.{task}' for task in tasks)}")
    decoding = {task: {key.removeprefix(begin): value for key, value in changes.items() if key.startswith(begin)}
                for task, begin in own.items()}
    for task, fields in decoding.items():
        check_decoding(task, fields)
    return decoding


def _benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=("librispeech", "libritts", "pope", "mme", "seed2plus", "mmmu", "coco"))
    parser.add_argument("directory", type=Path, help="its files, as published")
    parser.add_argument("--pictures", type=Path, help="the folder of its pictures, where they lie elsewhere")
    parser.add_argument("--part", help="one strategy of POPE, subtask of MME, or task of COCO (default: all)")
    parser.add_argument("--items", type=at_least(1), help="only the first so many (default: all)")
    parser.add_argument("--speaker", help="an installed synthesiser that says COCO's captions (default: espeak-ng, in "
                        "voices held out of training)")
    preset_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a .json file for the records, with their provenance")


@command("benchmark", "Score a checkpoint on a published benchmark's own files, with intervals, beside the paper.",
         "omnidiff benchmark libritts LibriTTS/test-clean --set judges.recognition=openai/whisper-large-v3")
@arguments(_benchmark_arguments)
def _benchmark(options: argparse.Namespace) -> None:
    import time

    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.data.benchmark_files import read_benchmark, tasks_of
    from omnidiff_lite.evaluation.benchmarks import benchmark_text, evaluate_benchmark
    from omnidiff_lite.evaluation.requests import Settings
    from omnidiff_lite.evaluation.suite import finished_system
    from omnidiff_lite.provenance import provenance
    from omnidiff_lite.training.launch import join
    from omnidiff_lite.processes import is_first

    join()
    started, preset, changes = time.time(), load(options), overrides(options)
    artifacts, tasks = Artifacts.of(preset.name), tasks_of(options.name, options.part)
    decoding = _decoding(changes, tasks, ("evaluation", "judges"))
    if options.speaker and "s2i" not in tasks:
        raise ValueError("--speaker says COCO's captions for its task s2i, which is not asked for; leave it out")
    rows = read_benchmark(options.name, options.directory, options.items, part=options.part, pictures=options.pictures)
    rows = _respoken(options, rows, artifacts.cache)
    model, judges = finished_system(preset, artifacts)
    settings = Settings.of(preset, seed=options.seed)
    records = evaluate_benchmark(options.name, model, judges, rows, settings, decoding)
    if is_first():
        print(benchmark_text(records), end="")
        _file(options.out, records, provenance(preset, options.seed, started, benchmark=options.name,
                                               part=options.part, speaker=options.speaker, overrides=changes))


def _respoken(options: argparse.Namespace, rows: list[Sample], cache: Path) -> list[Sample]:
    """COCO's rows with their captions spoken by `--speaker`, whose recordings are kept in `cache`. For espeak-ng the
    rows stay as they are, since as a `Synthesiser` it would use its training voices."""
    from omnidiff_lite.data.benchmark_coco import respoken
    from omnidiff_lite.world.synthesisers import synthesiser

    if options.speaker in (None, "espeak"):
        return rows
    return respoken(rows, synthesiser(options.speaker), cache / "spoken" / options.speaker, options.seed)


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=[*sorted(TABLES), "aims"],
                        help="a table of the paper, what digests claim of it, or what was aimed at")
    parser.add_argument("--preset", default="smoke")


TABLES = {"1": "07_table1_speech", "2": "08_table2_vision", "3": "09_table3_sampling", "digest": "15_digest_claims"}


@command("table", "Print a table from the records of a run.", "omnidiff table 1 --preset smoke")
@arguments(_table_arguments)
def _table(options: argparse.Namespace) -> None:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.config import load_preset
    from omnidiff_lite.evaluation.printed import SECTIONS, printed

    artifacts = Artifacts.of(load_preset(options.preset).name)
    if options.table == "aims":
        from omnidiff_lite.evaluation.aims import aims_markdown, aims_table

        print(aims_markdown(aims_table(artifacts)), end="")
        return
    if options.table in SECTIONS:
        print(printed(options.table, artifacts), end="")
        return
    notebook = TABLES[options.table]
    print(artifacts.require(artifacts.tables / f"{notebook[3:]}.md", notebook).read_text(), end="")
