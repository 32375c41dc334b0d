"""One look for every chart of the catalog. Import it late: matplotlib takes a second to load."""

import warnings

import matplotlib as mpl
from engine_agent import artifact, log, outputs_dir

mpl.use("Agg")

import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, RED, VIOLET, GREY = "#3b6fb6", "#e08a2e", "#3f9a6b", "#c8504b", "#8a63b0", "#9aa3ad"
COLORS = [BLUE, ORANGE, GREEN, RED, VIOLET, "#4aa8b5", "#b58a4a", GREY]

plt.rcParams.update({
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929b",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.titlepad": 12,
    "axes.labelcolor": "#444b53",
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "xtick.color": "#444b53",
    "ytick.color": "#444b53",
    "legend.frameon": False,
    "text.parse_math": False,  # a label such as "$ per $100" is text, not a formula
})  # fmt: skip


def shorten(text: object, most: int = 28) -> str:
    """A label that fits: cut with an ellipsis."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def save(figure, name: str) -> None:
    """Hand a figure back as an image."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(outputs_dir / name)
    if any("missing from font" in str(warning.message) for warning in caught):
        log(f"The font of {name} lacks some of the letters: they show as boxes", level="warning")
    plt.close(figure)
    artifact(outputs_dir / name)
