"""The figures of the notebooks: loss curves, pictures, mel spectrograms, the canvas filling in, dots with intervals,
percentages as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from omnidiff_lite.pipeline import Answer
    from omnidiff_lite.vocabulary import Vocabulary

STYLE = {"figure.dpi": 96, "savefig.dpi": 120, "savefig.bbox": "tight", "figure.constrained_layout.use": True, "font.size": 9,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "axes.titlesize": 10, "legend.frameon": False}
PALETTE = {"text": "#4c78a8", "special": "#54a24b", "speech": "#e45756", "image": "#f2a900", "mask": "#e6e6e6"}


def loss_curves(history: pd.DataFrame, columns: Sequence[str] | None = None, title: str = "",
                smooth: int = 10) -> Figure:
    """Losses over steps, each as a running mean; `columns` defaults to all that begin with "loss"."""
    columns = columns or [c for c in history.columns if c.startswith("loss")]
    figure, axis = plt.subplots(figsize=(6.4, 3))
    for column in columns:
        values = history[["step", column]].dropna()
        axis.plot(values["step"], values[column].rolling(smooth, min_periods=1).mean(), label=column, lw=1.4)
    axis.set(xlabel="step", ylabel="loss", title=title)
    if len(columns) > 1:
        axis.legend(ncol=3, fontsize=8)
    return figure


def pictures(images: Sequence[PIL.Image.Image | None], titles: Sequence[str] = (), columns: int = 8,
             size: float = 1.5) -> Figure:
    """Pictures in rows, a title above each; an empty frame where there is none."""
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
    """The canvas after each step, one row a step, coloured by modality; undecided positions are grey."""
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
    """At which step each image token of an answer was decided, as a map [h, w]; -1: never, or there from the start."""
    when = np.full(len(answer.ids), -1)
    for number, step in enumerate(answer.trace):
        when[step.decided] = number
    drawn = when[[vocabulary.modality(token) == "image" for token in answer.ids]]
    return drawn.reshape(int(len(drawn) ** 0.5), -1)


def decoding_orders(maps: dict[str, np.ndarray]) -> Figure:
    """Maps of `decided_at` side by side, by name; one scale for all."""
    figure, axes = plt.subplots(1, len(maps), figsize=(2.3 * len(maps) + 0.6, 2.5), squeeze=False)
    last = max(steps.max() for steps in maps.values())
    for axis, (name, steps) in zip(axes[0], maps.items()):
        shown = axis.imshow(steps, cmap="viridis", vmin=0, vmax=last)
        axis.set(title=name, xticks=[], yticks=[])
        axis.grid(False)
    figure.colorbar(shown, ax=axes, label="step")
    return figure


def intervals(rows: pd.DataFrame, title: str = "", xlabel: str = "", zero: bool = False) -> Figure:
    """Dots with 95 % intervals; `rows` has the columns label, value, low, high. `zero`: a line at no difference."""
    rows = rows.dropna(subset=["value"]).iloc[::-1].astype({"low": float, "high": float})  # no interval: None
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.3 * len(rows)))
    low, high = rows["value"] - rows["low"], rows["high"] - rows["value"]
    axis.errorbar(rows["value"], range(len(rows)), xerr=[low.clip(lower=0), high.clip(lower=0)], fmt="o",
                  color=PALETTE["text"], ecolor="#9db7d5", capsize=2)
    if zero:
        axis.axvline(0, color="#999999", lw=1)
    axis.set_yticks(range(len(rows)), rows["label"])
    axis.set(xlabel=xlabel, title=title)
    return figure


def heat_map(values: pd.DataFrame, notes: pd.DataFrame | None = None, title: str = "", xlabel: str = "",
             ylabel: str = "", limits: tuple[float, float] = (0, 100), label: str = "percent right") -> Figure:
    """Numbers as colours between `limits`; NaN stays blank. `notes`: words below each, a frame of the same shape."""
    rows, columns = values.shape
    dark, digits = limits[0] + 0.55 * (limits[1] - limits[0]), 0 if limits[1] - limits[0] > 10 else 2
    figure, axis = plt.subplots(figsize=(1.6 + 1.0 * columns, 1.2 + 0.5 * rows))
    shown = axis.imshow(values.to_numpy(float), cmap="YlGnBu", vmin=limits[0], vmax=limits[1], aspect="auto")
    axis.set_xticks(range(columns), [name.replace(" + ", "\n+ ") for name in values.columns], fontsize=8)
    axis.set_yticks(range(rows), values.index, fontsize=8)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(False)
    for row in range(rows):
        for column in range(columns):
            value, note = values.iat[row, column], "" if notes is None else f"\n{_wrapped(notes.iat[row, column], 15)}"
            text = "–" if pd.isna(value) else f"{value:.{digits}f}{note}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7,
                      color="white" if value > dark else "#bbbbbb" if pd.isna(value) else "black")
    figure.colorbar(shown, ax=axis, label=label)
    return figure


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:4])
