"""The notebooks' figures: loss curves, pictures, mel spectrograms, the canvas filling in, dots with intervals,
speed or latency against quality, percentages as a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from omnidiff_lite.config import Task

if TYPE_CHECKING:
    from omnidiff_lite.pipeline import Answer
    from omnidiff_lite.vocabulary import Vocabulary

STYLE = {"figure.dpi": 96, "savefig.dpi": 120, "savefig.bbox": "tight", "figure.constrained_layout.use": True,
         "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "axes.titlesize": 10, "legend.frameon": False}
TASKS = get_args(Task)
PALETTE = {"text": "#4c78a8", "special": "#54a24b", "speech": "#e45756", "image": "#f2a900", "mask": "#e6e6e6"}


def loss_curves(history: pd.DataFrame, columns: Sequence[str] | None = None, title: str = "",
                smooth: int = 30, marks: Sequence[float] = (), switches: Sequence[float] = ()) -> Figure:
    """Losses over steps, each as a running mean; `columns` defaults to all that begin with "loss".

    A task has the same colour in every figure. The axis is logarithmic if no loss is negative, as the first steps
    would flatten the rest. A solid grey line marks each step of `marks`, a dotted one each of `switches`; 0 is skipped.
    """
    columns = columns or [c for c in history.columns if c.startswith("loss")]
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for column in columns:
        values, name = history[["step", column]].dropna(), column.removeprefix("loss_")
        axis.plot(values["step"], values[column].rolling(smooth, min_periods=1).mean(), label=name, lw=1.2,
                  color=f"C{TASKS.index(name)}" if name in TASKS else "black" if name == "loss" else None)
    for style, steps in (("-", marks), (":", switches)):
        for step in filter(None, steps):
            axis.axvline(step, color="grey", lw=0.8, ls=style)
    axis.set(xlabel="step", ylabel="loss", title=title)
    if (history[columns].min() >= 0).all():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    if len(columns) > 1:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def task_curves(runs: Mapping[str, pd.DataFrame], tasks: Sequence[str], smooth: int = 50) -> Figure:
    """Losses of several runs over steps (a log.csv each, all with these tasks), one axis per task, as running means."""
    rows = -(-len(tasks) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(9, 1.9 * rows), sharex=True, squeeze=False)
    for axis, task in zip(axes.flat, tasks):
        for number, (name, history) in enumerate(runs.items()):
            values = history[["step", f"loss_{task}"]].dropna()
            axis.plot(values["step"], values[f"loss_{task}"].rolling(smooth, min_periods=1).mean(), label=name, lw=1.2,
                      color=f"C{number}")
        axis.set(title=task, yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat[len(tasks):]:
        axis.axis("off")
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    return figure


def pictures(images: Sequence[PIL.Image.Image | None], titles: Sequence[str] = (), columns: int = 8,
             size: float = 1.5) -> Figure:
    """Pictures in rows, with a title above each; an empty frame where there is no picture."""
    columns = min(columns, max(1, len(images)))
    rows = -(-len(images) // columns)
    wrapped = [_wrapped(title, int(size * 14)) for title in titles]
    above = 0.15 * max((title.count("\n") + 1 for title in wrapped), default=0)  # inches
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + above) * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images)):
        if image is not None:
            axis.imshow(image, interpolation="nearest")
        if i < len(wrapped):
            axis.set_title(wrapped[i], fontsize=7)
    return figure


def mel_spectrograms(mels: Sequence[np.ndarray], titles: Sequence[str] = ()) -> Figure:
    """Log-mel spectrograms [bins, frames] side by side."""
    figure, axes = plt.subplots(1, len(mels), figsize=(4 * len(mels), 2.2), squeeze=False)
    for i, (axis, mel) in enumerate(zip(axes[0], mels)):
        axis.imshow(mel, origin="lower", aspect="auto", cmap="magma")
        axis.grid(False)
        axis.set(xlabel="frame", ylabel="mel bin" if i == 0 else "", title=titles[i] if i < len(titles) else "")
    return figure


def canvas_history(history: Sequence[Sequence[int]], vocabulary: Vocabulary, title: str = "") -> Figure:
    """The canvas after each step, one row per step, coloured by modality; undecided positions are grey."""
    kinds = list(PALETTE)
    ids = np.asarray(history)
    codes = np.vectorize(lambda i: kinds.index("mask" if i == vocabulary.mask else vocabulary.modality(i)))(ids)
    figure, axis = plt.subplots(figsize=(7, min(4.0, 1.2 + 0.06 * len(ids))))
    axis.imshow(codes, aspect="auto", interpolation="nearest", cmap=ListedColormap(list(PALETTE.values())),
                vmin=-0.5, vmax=len(kinds) - 0.5)
    axis.grid(False)
    axis.set(xlabel="position in the answer", ylabel="step", title=title)
    for kind in kinds:
        axis.plot([], [], "s", color=PALETTE[kind], label=kind)
    axis.legend(ncol=5, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


def decided_at(answer: Answer, vocabulary: Vocabulary) -> np.ndarray:
    """The step at which each image token of an answer was decided, as a map [h, w]; -1: never, or given."""
    when = np.full(len(answer.ids), -1)
    for number, step in enumerate(answer.trace):
        when[step.decided] = number
    drawn = when[[vocabulary.modality(token) == "image" for token in answer.ids]]
    return drawn.reshape(int(len(drawn) ** 0.5), -1)


def decoding_orders(maps: Mapping[str, np.ndarray], base: str = "") -> Figure:
    """Maps of `decided_at` side by side, by name, on one scale; or, with `base`, that map alone, and for each other one
    how many steps later (red) or earlier (blue) than there a token came."""
    figure, axes = plt.subplots(1, len(maps), figsize=(2.3 * len(maps) + 0.6, 2.5), squeeze=False)
    changes = {name: steps - maps[base] for name, steps in maps.items() if name != base} if base else {}
    last = max(steps.max() for steps in maps.values())
    most = max([1.0, *(np.abs(change).max() for change in changes.values())])
    for axis, (name, steps) in zip(axes[0], maps.items()):
        if name in changes:
            shown = axis.imshow(changes[name], cmap="RdBu_r", vmin=-most, vmax=most)
        else:
            shown = axis.imshow(steps, cmap="viridis", vmin=0, vmax=last)
            axis.set_xlabel("dark: early" if changes else "")
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
        axis.grid(False)
    figure.colorbar(shown, ax=axes, label="steps later" if changes else "step")
    return figure


def intervals(rows: pd.DataFrame, title: str = "", xlabel: str = "", zero: bool = False) -> Figure:
    """Dots with 95 % intervals; `rows` has the columns label, value, low, high. `zero`: a line at zero difference."""
    rows = rows.dropna(subset=["value"]).iloc[::-1].astype({"low": float, "high": float})  # None: no interval
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.3 * len(rows)))
    low, high = rows["value"] - rows["low"], rows["high"] - rows["value"]
    axis.errorbar(rows["value"], range(len(rows)), xerr=[low.clip(lower=0), high.clip(lower=0)], fmt="o",
                  color=PALETTE["text"], ecolor="#9db7d5", capsize=2)
    if zero:
        axis.axvline(0, color="#999999", lw=1)
    axis.set_yticks(range(len(rows)), rows["label"])
    axis.set(xlabel=xlabel, title=title, ylim=(-0.6, len(rows) - 0.4))  # whole dots
    return figure


def speed_quality(curves: Mapping[str, pd.DataFrame], ylabels: Sequence[str] = (), base: str = "plain") -> Figure:
    """Speed against quality, a panel for each of `curves` by name: columns label, ratio, value, low, high.

    Labels that differ only in their last number ("threshold 0.9", "threshold 0.5") form one line, with the number at
    each dot. The band is the interval of `base`. If a y-label ends in "↓", less is better, and the axis points down.
    """
    figure, axes = plt.subplots(1, len(curves), figsize=(5.2 * len(curves), 4.2), squeeze=False)
    for i, (axis, (name, rows)) in enumerate(zip(axes[0], curves.items())):
        rows = rows.astype({"low": float, "high": float})
        for bounds in rows[rows["label"] == base][["low", "high"]].to_numpy():
            axis.axhspan(*bounds, color=PALETTE["mask"], alpha=0.5, lw=0, label=f"95 % interval of {base}")
        parts = rows["label"].str.extract(r"^(.*?)(?: ([\d.]+L?))?$")
        for (family, members), marker in zip(rows.groupby(parts[0], sort=False), itertools.cycle("osD^vP*X")):
            _speed_line(axis, family, members.sort_values("ratio"), parts[1], marker)
        axis.set(xscale="log", xlabel=f"times as fast as {base}", title=name, ylabel=ylabels[i] if ylabels else "")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3)
        if axis.get_ylabel().endswith("↓"):
            axis.invert_yaxis()
    return figure


def _speed_line(axis: Axes, family: str, rows: pd.DataFrame, numbers: pd.Series, marker: str) -> None:
    reach = [(rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)]
    axis.errorbar(rows["ratio"], rows["value"], yerr=reach, label=family, fmt=f"{marker}-", lw=1, ms=4, elinewidth=0.5)
    for where, ratio, value in zip(rows.index, rows["ratio"], rows["value"]):
        if pd.notna(numbers[where]):
            axis.annotate(numbers[where], (ratio, value), xytext=(3, 3), textcoords="offset points", fontsize=6)


def length_lines(asked: Sequence[int], real: Sequence[int], lines: Mapping[str, tuple[float, float]], xlabel: str,
                 ylabel: str) -> Figure:
    """Lengths of real answers against those of their inputs, with length rules by name: (slope, offset)."""
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    axis.plot(asked, real, "o", ms=3, color=PALETTE["text"], alpha=0.6)
    ends = np.array([min(asked), max(asked)])
    for (name, (slope, offset)), style in zip(lines.items(), itertools.cycle(("-", "--", ":", "-."))):
        axis.plot(ends, slope * ends + offset, style, color=PALETTE["speech"], label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def quality_latency(points: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Quality against seconds per request, one panel per task, 95 % intervals both ways; up and left is better.

    `points`: what `evaluation.sampling.trade_offs` returns; a method's points are joined, each labelled with its steps.
    `labels`: each task's y-label; if one ends in "↓", less is better, and the axis points down.
    """
    figure, axes = plt.subplots(1, len(labels), figsize=(3.3 * len(labels), 3), squeeze=False)
    colors = dict(zip(points["method"].unique(), (PALETTE["text"], PALETTE["speech"], PALETTE["special"]),
                      strict=False))
    for axis, (task, label) in zip(axes[0], labels.items()):
        here = points[points["task"] == task]
        for method, rows in here.groupby("method", sort=False):
            color = colors[method]
            x, y = rows["latency"], rows["quality"]
            across, along = ([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
                             for name in ("latency", "quality"))
            axis.errorbar(x, y, xerr=np.clip(across, 0, None), yerr=np.clip(along, 0, None), fmt="o-", ms=4, lw=1,
                          elinewidth=0.8, capsize=2, color=color, label=method)
            for steps, at in zip(rows["steps"], zip(x, y)):
                axis.annotate(steps, at, xytext=(4, 4), textcoords="offset points", fontsize=7, color=color)
        axis.set(title=task, xlabel="seconds a request", ylabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        if label.endswith("↓"):
            axis.invert_yaxis()
    shown = {name: handle for axis in axes[0] for handle, name in zip(*axis.get_legend_handles_labels())}
    figure.legend(shown.values(), shown.keys(), loc="outside upper right", ncol=3, fontsize=8)
    return figure


def heat_map(values: pd.DataFrame, notes: pd.DataFrame | None = None, title: str = "", xlabel: str = "",
             ylabel: str = "", limits: tuple[float, float] = (0, 100), label: str = "percent right") -> Figure:
    """Numbers as colours between `limits`; NaN stays blank. `notes`: text below each, in a frame of the same shape."""
    rows, columns = values.shape
    dark, digits = limits[0] + 0.55 * (limits[1] - limits[0]), 1 if limits[1] - limits[0] > 10 else 2
    figure, axis = plt.subplots(figsize=(1.6 + 1.0 * columns, 1.2 + 0.5 * rows))
    shown = axis.imshow(values.to_numpy(float), cmap="YlGnBu", vmin=limits[0], vmax=limits[1], aspect="auto")
    axis.set_xticks(range(columns), [name.replace(" + ", "\n+ ") for name in values.columns], fontsize=8)
    axis.set_yticks(range(rows), values.index, fontsize=8)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(False)
    for row in range(rows):
        for column in range(columns):
            value, note = values.iat[row, column], "" if notes is None else f"\n{_wrapped(notes.iat[row, column], 15)}"
            text = "–" if pd.isna(value) else f"{value:.{digits}f}".removesuffix(".0") + note
            axis.text(column, row, text, ha="center", va="center", fontsize=7,
                      color="white" if value > dark else "#bbbbbb" if pd.isna(value) else "black")
    figure.colorbar(shown, ax=axis, label=label)
    return figure


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:5])
