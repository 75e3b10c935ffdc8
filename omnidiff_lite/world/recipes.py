"""Picture references: a picture of the embedded world travels as the text that draws it, not as a file.

`scene:{json}` and `chart:{json}` may stand wherever the jsonl format takes the path of a picture.
"""

from __future__ import annotations

import json

from PIL import Image

from omnidiff_lite.world.charts import Chart, chart_from_dict, render_chart
from omnidiff_lite.world.scenes import Scene, render

SCENE, CHART = "scene:", "chart:"


def scene_ref(scene: Scene) -> str:
    """The reference that `picture` draws again."""
    return SCENE + scene.to_json()


def chart_ref(chart: Chart) -> str:
    """The reference that `picture` draws again."""
    return CHART + chart.to_json()


def content(ref: str) -> Scene | Chart:
    """What a reference describes. Raises ValueError naming the reference and the expected form."""
    for prefix, read in ((SCENE, Scene.from_dict), (CHART, chart_from_dict)):
        if ref.startswith(prefix):
            try:
                return read(json.loads(ref[len(prefix):]))
            except ValueError as error:
                raise ValueError(f"cannot draw {ref[:80]!r}: {error}") from None
    raise ValueError(f"no picture recipe: {ref[:80]!r}; it starts with {SCENE!r} or {CHART!r}")


def picture(ref: str, size: int) -> Image.Image:
    """The RGB picture of a reference, `size` x `size` pixels. Raises ValueError like `content`."""
    item = content(ref)
    return render(item, size) if isinstance(item, Scene) else render_chart(item, size)
