"""Figures 2, 3 and 9 to 12 of the paper for any checkpoint, drawn from the JSON files of its analysis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bachvid.errors import UsageError
from bachvid.pictures.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[str, Any]  # what stands in one JSON file

# Okabe and Ito's blue and orange differ to every eye, and in grey. The page puts its own in their place.
PAPER, INK, FAINT, BLUE, ORANGE = "#ffffff", "#20212a", "#6e7080", "#0072b2", "#d55e00"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bachvid",  # the same figure is the same file
    "text.parse_math": False,  # a dollar sign in a name is one
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    **dict.fromkeys(("text.color", "axes.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.015,
    "axes.titlelocation": "left",
    "axes.titley": 1.03,
    "lines.markersize": 4,
    "legend.frameon": False,
}
DASHES = ("--", ":")  # of the trivial baselines, in their order
LEAST_ERROR = 0.01  # squared tokens; smaller errors are drawn here, for a log axis has no zero


def draw(folder: Path) -> list[Path]:
    """The .svg files drawn beside the JSON files in an analysis' folder `figures`, for those that exist.

    The same JSON gives the same bytes. UsageError if matplotlib is not installed.
    """
    try:
        from matplotlib import style
    except ImportError as error:
        raise UsageError('Plots need matplotlib. Install it with: pip install "bachvid[plots]"') from error
    written = []
    with style.context(["default", STYLE]):  # whatever the user's own matplotlibrc says
        for name, figure in figures(folder / "figures"):
            path = folder / "figures" / f"{name}.svg"
            about = {"Title": name, **dict.fromkeys(("Creator", "Date", "Format", "Type"))}
            with replacing(path) as part:
                figure.savefig(part, format="svg", metadata=about)
            written.append(path)
    return written


def figures(folder: Path) -> Iterator[tuple[str, Figure]]:
    """Every figure that the JSON files in a folder tell of, with its name."""
    kinds = {"mask": layers_and_steps, "match": layers_and_steps, "vital": left_out, "acts": closing_check}
    for name, plot in kinds.items():
        if values := load(folder / f"{name}.json"):
            yield name, plot(values)
            if "pck" in values:
                yield f"{name}_pck", plot(twin(values))


def load(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def twin(match: Values) -> dict[str, Any]:
    """The matches once more, by how many lie within a token of the truth instead of by their error."""
    shared = {name: match[name] for name in match.keys() - {"by_layer_interval", "subset_mean"}}
    return {**shared, "what": "PCK within 1 token", "better": "higher", "baselines": {}, **match["pck"]}


def layers_and_steps(values: Values) -> Figure:
    """Every layer at every step (a), the means over layers (b) and steps (c), the chosen layers together (d).

    Figures 2, 3, 10 and 11. Panels above each other share their axis.
    """
    figure, ((heat, by_step), (by_layer, subset)) = panels(6.4, 2, 2)
    what, (first, last) = measured(values), values["window"]
    layers, steps = np.array(values["layers"]), values["steps"]
    heat.set(title="(a) every layer at every step", ylabel="step", xticks=ticks(layers), yticks=ticks(steps))
    by_step.set(title="(b) mean over all layers", ylabel=what)
    by_layer.set(title=f"(c) mean over steps {first} to {last}", ylabel=what, xlabel="layer")
    subset.set(title="(d) the chosen layers", ylabel=what, xlabel="step", xticks=ticks(steps))

    heat_map(heat, values)
    curve(by_step, values, "by_step", color=BLUE)
    whiskers = series(values, "by_layer_interval") if "by_layer_interval" in values else None
    by_layers(by_layer, layers, series(values, "by_layer"), whiskers, values["chosen"])
    if "subset_mean" in values:
        curve(subset, values, "subset_mean", color=BLUE, label="mean of single layers")
    curve(subset, values, "fused", color=ORANGE, label="chosen layers, fused")
    subset.axvline(values["tau"], color=ORANGE, linewidth=0.8, label=f"τ = step {values['tau']}")
    by_step.sharey(subset)
    by_layer.sharey(subset)
    for axes in (by_step, by_layer, subset):
        for dash, name, height in baselines(values):
            axes.axhline(height, color=FAINT, linestyle=dash, linewidth=1.1, label=name)
    if values["better"] == "lower":
        subset.set_yscale("log")
        plain_logs(subset.yaxis)
    else:
        subset.set_ylim(0)
    legend(figure, by_layer, subset)
    return figure


def heat_map(axes: Axes, values: Values) -> None:
    """Values (S, L) as colours, the better the lighter; the chosen layers and tau are marked."""
    from matplotlib.colors import LogNorm, Normalize

    grid, lines = series(values, "values"), [*baselines(values)]
    known = [*grid[np.isfinite(grid)], *(height for *_, height in lines)]
    lower = values["better"] == "lower"
    norm, colours = (LogNorm, "cividis_r") if lower else (Normalize, "cividis")
    layers, steps = values["layers"], values["steps"]
    edges = (layers[0] - 0.5, layers[-1] + 0.5, steps[-1] + 0.5, steps[0] - 0.5)
    # Cividis runs from dark to light for every eye. Not interpolated, a cell is one pixel in the file.
    limits = norm(min(known), max(known))
    image = axes.imshow(grid, colours, limits, aspect="auto", interpolation="none", extent=edges)
    for a, b in runs(values["chosen"]):
        axes.axvspan(a - 0.5, b + 0.5, -0.035, -0.018, color=BLUE, linewidth=0, clip_on=False)
    axes.axhline(values["tau"], color=ORANGE, linewidth=1)
    axes.spines[:].set_visible(False)

    key = axes.figure.colorbar(image, cax=axes.inset_axes((0.6, 1.05, 0.4, 0.03)), orientation="horizontal")
    key.ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=2, pad=1)
    key.outline.set_visible(False)
    for *_, height in lines:
        key.ax.axvline(height, -0.8, 0, color=INK, linewidth=1, clip_on=False)
    if lower:
        plain_logs(key.ax.xaxis)


def left_out(values: Values) -> Figure:
    """Quality and likeness of videos made without each layer, beside the whole model's: Figures 9 and 12."""
    figure, (quality, likeness) = panels(5.2, 2, 1)
    layers = np.array(values["layers"])
    only = np.isin(layers, values["content_only"])
    for axes, name in ((quality, "quality"), (likeness, "likeness")):
        scores = values[name]
        means, intervals = (np.array(scores[key], dtype=float) for key in ("without", "interval"))
        axes.set(title=f"{name}, by {scores['about']}", ylabel=name)
        axes.axhline(scores.get("full", 1.0), color=INK, linewidth=1, label="whole model")
        by_layers(axes, layers, means, intervals, scores["chosen"])
        if (lost := layers[np.isnan(means)]).size:
            axes.vlines(lost, *axes.get_ylim(), color=ORANGE, linestyle=":", label="no video without it")
        if name == "likeness" and only.any():
            axes.plot(layers[only], means[only], "D", color=ORANGE, label="other content, same quality")
    likeness.set(xlabel="layer left out", xticks=ticks(layers), xlim=(layers[0] - 0.5, layers[-1] + 0.5))
    legend(figure, quality, likeness)
    return figure


def closing_check(values: Values) -> Figure:
    """How far injection moves the videos, at the chosen layers and at others, where there are others."""
    figure, axes = panels(1.7, 1, 1)
    sides = (("others", "other layers", FAINT), ("chosen", "chosen layers", BLUE))
    for name, where, colour in (side for side in sides if side[0] in values):
        axes.barh(where, values[name]["change"], 0.5, color=colour, alpha=0.35)
        axes.hlines(where, *values[name]["interval"], color=colour, linewidth=2)
    axes.set(xlim=(0, None), xlabel="distance from the videos without injection")
    return figure


def panels(height: float, rows: int, columns: int) -> tuple[Figure, Any]:
    """An empty figure as wide as the page and its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height))
    figure.set_layout_engine("constrained", h_pad=0.08)
    return figure, figure.subplots(rows, columns, sharex="col")


def curve(axes: Axes, values: Values, name: str, **look: Any) -> None:
    """A value for every step."""
    axes.plot(values["steps"], series(values, name), marker="o", markersize=2.5, **look)


def by_layers(
    axes: Axes, layers: NDArray, means: NDArray, intervals: NDArray | None, chosen: Sequence[int]
) -> None:
    """A value for every layer with its interval (L, 2); the chosen ones are filled, on a shade."""
    for a, b in runs(chosen):
        axes.axvspan(a - 0.5, b + 0.5, color=BLUE, alpha=0.13, linewidth=0, label="chosen layers")
    if intervals is not None:
        axes.vlines(layers, *intervals.T, color=BLUE, linewidth=1, label="95 % interval")
    axes.plot(layers, means, "o-", color=BLUE, linewidth=0.6, markerfacecolor=PAPER)
    axes.plot(layers, np.where(np.isin(layers, chosen), means, np.nan), "o", color=BLUE)


def measured(values: Values) -> str:
    """What the numbers of a file are, as it is written."""
    return values["what"].replace("^2", "²")


def series(values: Values, name: str) -> NDArray:
    """Numbers of a file as they are drawn; NaN where nothing was measured."""
    numbers = np.array(values[name], dtype=float)
    return np.maximum(numbers, LEAST_ERROR) if values["better"] == "lower" else numbers


def baselines(values: Values) -> Iterator[tuple[str, str, float]]:
    """What is reached without looking: the dashes, name and height of each trivial baseline."""
    for dash, (name, height) in zip(DASHES, values["baselines"].items(), strict=False):
        yield dash, f"{name}: {height:.3g}", float(series({**values, "it": height}, "it"))


def plain_logs(axis: Any) -> None:
    """Ticks of a log axis at 1, 2, 5, 10 and so on, written like that."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def ticks(numbers: Sequence[int] | NDArray) -> list[int]:
    """The first of these layers or steps, and then round numbers, few enough for an axis."""
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100) if len(numbers) <= 12 * n)
    return [n for n in numbers if n == numbers[0] or n % every == 0]


def legend(figure: Figure, *shown: Axes) -> None:
    """One legend under all panels; what several show is named once."""
    named = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in shown)
    once = {label: handle for pairs in named for handle, label in pairs}
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=5)


def runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Layers as stretches without a gap, (first, last)."""
    found: list[tuple[int, int]] = []
    for layer in sorted(layers):
        first = found.pop()[0] if found and found[-1][1] == layer - 1 else layer
        found.append((first, layer))
    return found
