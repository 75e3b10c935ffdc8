"""The command that runs a declared study."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from omnidiff_lite.cli_registry import arguments, at_least, command, overrides, preset_arguments

if TYPE_CHECKING:
    from omnidiff_lite.ablation.study import Study


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", help="a .yaml file, or the name of a study in the package")
    preset_arguments(parser)
    parser.add_argument("--seeds", type=at_least(1), help="how many (default: the study's)")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--list", action="store_true", help="name the studies in the package, and end")


@command("ablate", "Run a declared study: a base, variants, seeds; resumes where it stopped.",
         "omnidiff ablate steps_picture --preset cpu --set budget.items=50")
@arguments(_ablate_arguments)
def _ablate(options: argparse.Namespace) -> None:
    from omnidiff_lite.ablation.study import BUDGET, adjusted, read_study, shipped_studies

    if options.list or options.study is None:
        for name in shipped_studies():
            study = read_study(name)
            print(f"{name:24} {study.kind:9} {study.question}")
        return
    changes = overrides(options)
    budget = {key.removeprefix(BUDGET): value for key, value in changes.items() if key.startswith(BUDGET)}
    study = adjusted(read_study(options.study), options.seeds, budget)
    _run(study, options, {key: value for key, value in changes.items() if not key.startswith(BUDGET)})


def _run(study: Study, options: argparse.Namespace, changes: dict[str, Any]) -> None:
    import time

    import transformers

    from omnidiff_lite.ablation.results import effect_lines, study_records
    from omnidiff_lite.ablation.runner import run_study
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.config import load_preset
    from omnidiff_lite.evaluation.records import with_provenance, write_records
    from omnidiff_lite.provenance import provenance

    transformers.logging.disable_progress_bar()
    started = time.time()
    preset = load_preset(options.preset, changes)
    artifacts = Artifacts.of(preset.name)
    outcome = run_study(study, options.preset, changes, artifacts, options.seed)
    origin = provenance(preset, options.seed, started, overrides=changes, **outcome.origin)
    records = with_provenance(study_records(outcome, preset.evaluation.bootstrap), origin)
    print(effect_lines(records, artifacts.dir).to_string(index=False))
    print(write_records(artifacts.metrics / f"ablation_{study.name}.json", records))
