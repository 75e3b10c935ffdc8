"""A matrix of percentages as a figure: colour for the value, words for what it is, blank where nothing is defined."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure


def heat_map(values: pd.DataFrame, notes: pd.DataFrame | None = None, title: str = "", xlabel: str = "",
             ylabel: str = "") -> Figure:
    """Percentages 0..100 as a heat map; NaN stays blank. `notes`: a second line in each cell, of the same shape."""
    rows, columns = values.shape
    figure, axis = plt.subplots(figsize=(1.6 + 1.0 * columns, 1.2 + 0.5 * rows))
    shown = axis.imshow(values.to_numpy(float), cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    axis.set_xticks(range(columns), [name.replace(" + ", "\n+ ") for name in values.columns], fontsize=8)
    axis.set_yticks(range(rows), values.index, fontsize=8)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(False)
    for row in range(rows):
        for column in range(columns):
            value, note = values.iat[row, column], "" if notes is None else f"\n{notes.iat[row, column]}"
            text = "–" if pd.isna(value) else f"{value:.0f}{note}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7,
                      color="white" if value > 55 else "#bbbbbb" if pd.isna(value) else "black")
    figure.colorbar(shown, ax=axis, label="percent right")
    return figure
