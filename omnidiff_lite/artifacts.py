"""Where a run's files are, and which notebook makes each one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent  # the clone, if the package is installed in place, as by the Makefile


class MissingArtifact(FileNotFoundError):
    """A file that an earlier notebook makes; the message says which."""


def results_root() -> Path:
    """`$OMNIDIFF_RESULTS`, or `results/` in the clone, or in the working directory."""
    if os.environ.get("OMNIDIFF_RESULTS"):
        return Path(os.environ["OMNIDIFF_RESULTS"])
    return (CLONE if (CLONE / "notebooks").is_dir() else Path.cwd()) / "results"


@dataclass(frozen=True)
class Artifacts:
    """The layout of `results/<preset>/`. Folders are created on first access."""

    preset: str
    root: Path

    @classmethod
    def of(cls, preset: str, root: str | Path | None = None) -> Artifacts:
        return cls(preset, Path(root) if root else results_root())

    @property
    def dir(self) -> Path:
        return self._made(self.root / self.preset)

    @property
    def work(self) -> Path:
        """Intermediate files: training parts, stage checkpoints, caches. Not committed."""
        return self._made(self.dir / "work")

    @property
    def cache(self) -> Path:
        return self._made(self.work / "cache")

    @property
    def tokenizers(self) -> Path:
        return self.work / "tokenizers"

    @property
    def road(self) -> Path:
        """Minutes and memory that each notebook took."""
        return self.dir / "road.json"

    @property
    def judges(self) -> Path:
        """The trained judges, kept beside the checkpoint that they score."""
        return self.dir / "judges"

    def stage(self, number: int) -> Path:
        return self.work / f"stage{number}"

    @property
    def checkpoint(self) -> Path:
        """The finished system, as `OmniDiffusion.save_pretrained` writes it."""
        return self.dir / "checkpoint"

    @property
    def twin(self) -> Path:
        """The autoregressive twin's denoiser; the rest of its system is the checkpoint's."""
        return self.dir / "twin"

    @property
    def metrics(self) -> Path:
        return self._made(self.dir / "metrics")

    @property
    def tables(self) -> Path:
        return self._made(self.dir / "tables")

    @property
    def figures(self) -> Path:
        return self._made(self.dir / "figures")

    @property
    def samples(self) -> Path:
        return self._made(self.dir / "samples")

    @property
    def notebooks(self) -> Path:
        """Executed notebooks."""
        return self._made(self.dir / "notebooks")

    def finished_tokenizers(self) -> Path:
        """The run's own tokenizers, else those in the finished system. Raises `MissingArtifact`."""
        if not self.tokenizers.exists() and (self.checkpoint / "system.json").exists():
            return self.checkpoint
        return self.require(self.tokenizers, "02_training_the_tokenizers")

    def require(self, path: Path, made_by: str) -> Path:
        """`path`, if it exists. Otherwise raises `MissingArtifact` naming the notebook that makes it, or, for full-size
        weights, which no notebook makes, the command."""
        if path.exists():
            return path
        short = path.relative_to(self.root.parent) if path.is_relative_to(self.root.parent) else path
        weights = {self.checkpoint, self.tokenizers, *(self.stage(n) / "denoiser" for n in (1, 2, 3))}
        if self.preset == "full" and path in weights:
            raise MissingArtifact(f"{short} is missing: at full size a system comes from released files (omnidiff "
                                  f"convert --system released/ --out {self.checkpoint}), and a stage from the one "
                                  "before (--init DENOISER)")
        size = "" if self.preset == "smoke" else f" PRESET={self.preset}"
        raise MissingArtifact(f"{short} is missing: run notebook {made_by} first (omnidiff reproduce --preset "
                              f"{self.preset} --only {made_by[:2]}), or all: make reproduce{size}")

    @staticmethod
    def _made(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path
