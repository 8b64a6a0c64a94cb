"""A dataset as a web page: one file, without anything to load."""

import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attune.v1 import dataset_pb2

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{name}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
th {{ text-align: left; padding-right: 1.5rem; vertical-align: top; font-weight: 600 }}
figure {{ margin: 2rem 0 }} svg {{ width: 100%; height: auto }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: 1rem }}
</style>
<h1>{name}</h1>
<table>{facts}</table>
{plots}
<h2>The recipe</h2>
<pre>{recipe}</pre>
</html>
"""


def page(portrait: "dataset_pb2.GetDatasetResponse", facts: Mapping[str, str]) -> str:
    return _PAGE.format(
        name=html.escape(portrait.dataset.dataset_id),
        facts="".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
        ),
        plots="\n".join(_plot(bars) for bars in portrait.bars if bars.bars),
        recipe=html.escape(portrait.recipe_text),
    )


def _plot(bars: "dataset_pb2.Bars") -> str:
    """SVG with text as text, the same for the same numbers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "attune", "font.family": "sans-serif", "font.size": 10}
    ):
        figure = Figure(figsize=(8, 0.9 + 0.3 * len(bars.bars)), layout="constrained")
        axis = figure.add_subplot()
        places = range(len(bars.bars))
        drawn = axis.barh(places, [bar.count for bar in bars.bars], color="#2a7f9e")
        axis.bar_label(drawn, labels=[f"{bar.count:,}" for bar in bars.bars], padding=4)
        axis.set_yticks(places, [bar.name.replace("$", r"\$") for bar in bars.bars])
        axis.invert_yaxis()
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(bars.title, loc="left", fontweight="bold")
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}</figure>"
