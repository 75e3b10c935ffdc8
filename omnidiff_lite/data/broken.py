"""Samples that cannot be used: each is counted, logged and skipped, up to a stated limit; then the run stops.

A line of the log is {"where": "data.jsonl, line 17", "reason": "..."}. What an earlier run skipped still counts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from omnidiff_lite.data.errors import DataError

MOST, SHARE = 1000, 0.01  # broken samples that a run tolerates: in number, and as a share of those seen
JUDGED_FROM = 100  # samples; with fewer a share says little


class BrokenLog:
    """The broken samples of one run, or of one process of it."""

    def __init__(self, path: str | Path | None = None, most: int = MOST, share: float = SHARE) -> None:
        """`path`: the log, a jsonl file that is appended to (None: samples are only counted); `broken-1.jsonl` in the
        second of several processes, and so on. `most`: broken samples allowed in all; `share`: of those seen by this
        process, 0..1, checked once it has seen `JUDGED_FROM`."""
        self._path, self.most, self.share = Path(path) if path else None, most, share
        self.known = self._read()
        self.seen = self.new = 0

    @property
    def path(self) -> Path | None:
        """The path of this process's log."""
        rank = os.environ.get("RANK", "0")
        return self._path if rank == "0" or self._path is None else self._path.with_stem(f"{self._path.stem}-{rank}")

    def skip(self, where: str, reason: str) -> None:
        """Log one broken sample; a known one is not logged again. Raises `DataError` past the limit."""
        self.new += 1
        if where not in self.known:
            self.known[where] = reason
            self._write(where, reason)
        self._judge(where, reason, JUDGED_FROM)

    def saw(self, samples: int) -> None:
        """Count `samples` more as seen, broken ones included."""
        self.seen += samples

    def close(self) -> None:
        """The final check, for small sets. Raises `DataError` past the share."""
        if self.known:
            self._judge(*next(reversed(self.known.items())), judged_from=1)

    def _judge(self, where: str, reason: str, judged_from: int) -> None:
        if len(self.known) > self.most:
            raise DataError(f"{len(self.known)} samples are broken and {self.most} are allowed, the last one {where}: "
                            f"{reason}; {self._mend()}")
        if self.seen >= judged_from and self.new > self.share * self.seen:
            raise DataError(f"{self.new} of {self.seen} samples are broken and a share of {self.share:g} is allowed, "
                            f"the last one {where}: {reason}; {self._mend()}")

    def _mend(self) -> str:
        return f"mend them{f' ({self.path} names each)' if self.path else ''} or raise the limit"

    def _write(self, where: str, reason: str) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"where": where, "reason": reason}, ensure_ascii=False) + "\n")

    def _read(self) -> dict[str, str]:
        if self.path is None or not self.path.exists():
            return {}
        known = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill
                continue
            known[entry["where"]] = entry["reason"]
        return known
