"""Plots, sheets and page of a calibration, from hand-made files: pytest tests/test_calibrate_pictures.py"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from bachvid.calibrate import markup, plots
from bachvid.calibrate.page import ranges, write_page
from bachvid.calibrate.sheets import HEIGHT, mask_grid, match_grid, skip_sheet
from bachvid.errors import UsageError
from bachvid.pictures.files import write_image
from bachvid.pictures.frames import Frames, fit_height
from bachvid.pictures.overlays import UNMATCHED, place_colour, show_mask
from bachvid.pictures.sheets import GAP, MARGIN

LAYERS, STEPS = 6, 8
NASTY = '<script>alert("x")</script> & $5'
TINY_SVG = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://example.org/svg11.dtd">
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt">
<script>alert(1)</script><metadata>http://example.org</metadata>
<defs><clipPath id="p1"><rect width="9" height="9"/></clipPath></defs>
<g id="axes_1" onclick="alert(2)"><path id="m" d="M 0 0" clip-path="url(#p1)" style="fill: #0072b2"/>
<use xlink:href="#m"/>
<image xlink:href="http://example.org/a.png" style="fill: url(http://example.org/b)"/></g></svg>
"""


def mask_values() -> dict[str, Any]:
    values = (np.arange(STEPS * LAYERS).reshape(STEPS, LAYERS) / 100 + 0.1).tolist()
    return {
        "title": "Foreground masks",
        "what": "IoU",
        "better": "higher",
        "layers": [1, 2, 3, 4, 5, 6],
        "steps": [0, 1, 2, 3, 4, 5, 6, 7],
        "timesteps": [999.0, 874.0, 749.0, 624.0, 499.0, 374.0, 249.0, 124.0],
        "values": values,
        "by_step": np.mean(values, axis=1).tolist(),
        "by_layer": [0.31, 0.42, 0.53, 0.34, 0.45, 0.16],
        "by_layer_interval": [[0.3, 0.32], [0.4, 0.44], [0.5, 0.56], [0.3, 0.4], [0.4, 0.5], [0.1, 0.2]],
        "chosen": [2, 3, 5],
        "window": [0, 7],
        "subset_mean": [0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.4, 0.4],
        "fused": [0.3, 0.4, 0.55, 0.71, 0.72, 0.7, 0.6, 0.5],
        "tau": 3,
        "baselines": {"all foreground": 0.213, "coin": 0.176},
    }


def match_values() -> dict[str, Any]:
    errors = [[100.0 / (step + 1) + layer for layer in range(LAYERS)] for step in range(STEPS)]
    errors[4][2] = 0.0
    return {
        **mask_values(),
        "title": "Matches",
        "what": "MSE (tokens^2)",
        "better": "lower",
        "values": errors,
        "by_step": np.mean(errors, axis=1).tolist(),
        "by_layer": [11.0, 12.0, 13.0, 40.0, 50.0, 60.0],
        "by_layer_interval": [[10, 12], [11, 13], [12, 14], [35, 45], [45, 55], [50, 70]],
        "chosen": [1, 2, 3],
        "window": [2, 6],
        "subset_mean": [90.0, 50.0, 30.0, 20.0, 15.0, 15.0, 16.0, 17.0],
        "fused": [80.0, 40.0, 20.0, 10.0, 8.0, 8.5, 9.0, 12.0],
        "tau": 4,
        "baselines": {"random": 34.5, "same place": 12.25},
        "by_movement": {
            "tokens moved": ["0 to 2", "2 to 5", "5 and more"],
            "points": [310, 90, 0],
            "mse": [0.4, 1.75, None],
            "pck1": [0.95, 0.61, None],
            "same place": [0.9, 11.5, None],
        },
        "pck": {
            "values": np.full((STEPS, LAYERS), 0.5).tolist(),
            "by_step": [0.5] * STEPS,
            "by_layer": [0.91, 0.92, 0.93, 0.4, 0.3, 0.2],
            "fused": [0.1, 0.2, 0.6, 0.8, 0.97, 0.96, 0.9, 0.9],
        },
    }


def vital_values() -> dict[str, Any]:
    return {
        "layers": [1, 2, 3, 4, 5, 6],
        "quality": {
            "about": NASTY,
            "full": 5.4,
            "without": [4.1, 5.3, None, 5.2, 5.1, 4.4],
            "interval": [[4.0, 4.2], [5.2, 5.4], [None, None], [5.1, 5.3], [5.0, 5.2], [4.3, 4.5]],
            "chosen": [1, 6],
        },
        "likeness": {
            "about": "features",
            "without": [0.5, 0.9, 0.3, 0.4, 0.9, 0.9],
            "interval": [[0.4, 0.6], [0.8, 1], [0.2, 0.4], [0.3, 0.5], [0.8, 1], [0.8, 1]],
            "chosen": [1, 4],
        },
        "overlap": 1 / 3,
        "content_only": [4],
    }


def chosen(layers: list[int], tau: int | None, **more: Any) -> dict[str, Any]:
    return {
        "rule": "the best",
        "parameters": {"ratio": 0.7},
        "layers": layers,
        "layers_0based": [layer - 1 for layer in layers],
        "tau": tau,
        "timestep": None if tau is None else 624.0,
        "bootstrap": {"1": 0.0, "2": 1.0, "3": 0.98, "4": 0.37, "5": 0.85, "6": 0.0},
        "tau_interval": None if tau is None else [2, 5],
        "borderline": [4],
        "warnings": [],
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return finished(tmp_path / "out")


@pytest.fixture(scope="module")
def plotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    folder = finished(tmp_path_factory.mktemp("plotted") / "out")
    plots.draw(folder)
    return folder


def finished(folder: Path) -> Path:
    """A finished analysis, without plots and pictures."""
    files = {
        "figures/mask": mask_values(),
        "figures/match": match_values(),
        "figures/vital": vital_values(),
        "figures/acts": {
            "chosen": {"layers": [1, 6], "change": 0.41, "interval": [0.37, 0.46]},
            "others": {"layers": [2, 3], "change": 0.17, "interval": [0.14, 0.2]},
        },
        "selection": {
            "mask": chosen([2, 3, 5], 3, warnings=["Beats <b>nothing</b> by 0.03 only."]),
            "match": chosen([1, 2, 3], 4),
            "kv": chosen([1, 6], None),
        },
        "run": {"model": NASTY, "grid": [3, 8, 12], "stories": [[{"action": "waves <i>"}]], "none": None},
        "preset": {"steps": 8, "mask_layers": [2, 3, 5], "words": "</pre>"},
    }
    (folder / "figures").mkdir(parents=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


class Page(HTMLParser):
    """A page as a browser reads it: balanced elements, their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def values(self, key: str) -> list[str]:
        return [attributes[key] for _, attributes in self.elements if key in attributes]


@contextmanager
def styled() -> Iterator[None]:
    style = pytest.importorskip("matplotlib.style")
    with style.context(["default", plots.STYLE]):
        yield


def shades(axes: Any) -> list[tuple[float, float]]:
    """From where to where layers are shaded or underlined, in layers."""
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


def levels(axes: Any) -> set[float]:
    """The heights of all lines across a panel."""
    return {line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [0, 1]}


def drawn(axes: Any) -> list[list[float]]:
    return [[round(float(y), 6) for y in line.get_ydata()] for line in axes.lines]


# Plots


def test_panels_show_what_the_file_says() -> None:
    values = mask_values()
    with styled():
        figure = plots.layers_and_steps(values)
    heat, by_step, by_layer, subset = figure.axes
    (image,) = heat.images
    assert np.array_equal(image.get_array(), values["values"])
    assert image.get_extent() == [0.5, 6.5, 7.5, -0.5]  # layer 1 on the left, step 0 on top
    assert shades(heat) == shades(by_layer) == [(1.5, 3.5), (4.5, 5.5)]
    assert values["by_step"] in [[*line.get_ydata()] for line in by_step.lines]
    assert values["by_layer"] in drawn(by_layer)
    assert {values["tau"]} == {line.get_ydata()[0] for line in heat.lines}
    assert values["fused"] in drawn(subset) and values["subset_mean"] in drawn(subset)
    assert [3, 3] in [[*line.get_xdata()] for line in subset.lines]  # tau
    (bars,) = by_layer.collections
    assert [[*segment[:, 1]] for segment in bars.get_segments()] == values["by_layer_interval"]
    filled = by_layer.lines[1].get_ydata()
    assert [n + 1 for n in range(LAYERS) if not np.isnan(filled[n])] == values["chosen"]


def test_both_baselines_stand_in_every_panel() -> None:
    with styled():
        figure = plots.layers_and_steps(mask_values())
    heat, *panels = figure.axes
    for axes in panels:
        assert levels(axes) == {0.213, 0.176}
    (key,) = heat.child_axes
    marks = {line.get_xdata()[0] for line in key.lines}
    assert {0.213, 0.176} <= marks
    names = [each.get_text() for each in figure.legends[0].get_texts()]
    assert "all foreground: 0.213" in names and "coin: 0.176" in names
    assert len(names) == len(set(names))


def test_errors_are_on_a_log_axis_and_their_twin_is_not() -> None:
    values = match_values()
    with styled():
        found = plots.layers_and_steps(values)
        twin = plots.layers_and_steps(plots.twin(values))
    assert [axes.get_yscale() for axes in found.axes[1:]] == ["log"] * 3
    assert [axes.get_yscale() for axes in twin.axes[1:]] == ["linear"] * 3
    assert found.axes[0].images[0].get_array()[4, 2] == plots.LEAST_ERROR  # the best cell is not left out
    assert found.axes[2].get_title("left") == "(c) mean over steps 2 to 6"
    assert values["pck"]["by_layer"] in drawn(twin.axes[2])
    assert values["pck"]["fused"] in drawn(twin.axes[3])
    assert values["fused"] not in drawn(twin.axes[3])
    bottom, top = found.axes[3].get_ylim()
    assert bottom <= 8 and top >= 90  # panels share their scale
    assert found.axes[1].get_ylim() == (bottom, top)


def test_good_is_light_whichever_way_is_better() -> None:
    with styled():
        for values, good, bad in ((mask_values(), (7, 5), (0, 0)), (match_values(), (7, 0), (0, 5))):
            (image,) = plots.layers_and_steps(values).axes[0].images
            colours = image.cmap(image.norm(image.get_array()))
            assert colours[good][:3].sum() > colours[bad][:3].sum()


def test_videos_without_a_layer() -> None:
    with styled():
        figure = plots.left_out(vital_values())
    quality, likeness = figure.axes
    assert shades(quality) == [(0.5, 1.5), (5.5, 6.5)]
    assert shades(likeness) == [(0.5, 1.5), (3.5, 4.5)]
    assert levels(quality) == {5.4}
    assert levels(likeness) == {1.0}  # where nobody measured it: a video is like itself
    lost = [each for each in quality.collections if each.get_label() == "no video without it"]
    assert [segment[0, 0] for segment in lost[0].get_segments()] == [3]
    diamonds = likeness.lines[-1]
    assert ([*diamonds.get_xdata()], [*diamonds.get_ydata()]) == ([4], [0.4])
    assert quality.get_title("left") == f"quality, by {NASTY}"


def test_drawing_twice_gives_the_same_files(plotted: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = {path: path.read_bytes() for path in plotted.glob("figures/*.svg")}
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20}):  # whatever the user is used to
        written = plots.draw(plotted)
    names = ["mask.svg", "match.svg", "match_pck.svg", "vital.svg", "acts.svg"]
    assert [path.name for path in written] == names
    assert {path: path.read_bytes() for path in written} == before
    for path in written:
        svg = ElementTree.fromstring(before[path])
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(ElementTree.fromstring(before[plotted / "figures/vital.svg"]).itertext())
    assert NASTY in words
    assert not [path for path in (plotted / "figures").iterdir() if path.name.startswith(".")]


def test_only_what_was_analysed_is_drawn(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("mask", "match", "vital"):
        (folder / "figures" / f"{name}.json").unlink()
    assert [path.name for path in plots.draw(folder)] == ["acts.svg"]


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))}:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_there_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    with pytest.raises(UsageError, match=re.escape('pip install "bachvid[plots]"')):
        plots.draw(folder)
    assert not [*folder.glob("**/*.svg")]


def test_ticks_are_few_and_begin_with_the_first() -> None:
    assert plots.ticks([1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4, 5, 6]
    assert plots.ticks(range(1, 43)) == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert plots.ticks(range(50)) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert len(plots.ticks(range(1000))) <= 12


def test_runs_of_layers() -> None:
    assert plots.runs([9, 2, 3, 5, 4]) == [(2, 5), (9, 9)]
    assert plots.runs([]) == []
    assert ranges([1, 2, 4, 6, 7, 8]) == "1–2, 4, 6–8"


# The page


def test_page_without_matplotlib_tells_the_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    page = Page(write_page(folder))
    assert page.count("svg") == 0 and "The numbers" not in page.text  # which are not folded
    assert 'pip install "bachvid[plots]"' in page.text
    words = page.text
    for number in ("0.31", "0.3 to 0.32", "0.72", "0.91", "5.3", "5.2 to 5.4", "0.41", "0.37 to 0.46", "499"):
        assert f" {number} " in words, number
    assert page.source.count('class="heat"') == 2
    cells = [value for value in page.values("style") if value.startswith("--share")]
    assert len(cells) >= 2 * LAYERS * STEPS


def test_heat_is_darkest_where_it_is_best(folder: Path) -> None:
    source = Page(write_page(folder)).source
    tables = re.findall(r'class="heat">(.*?)</table>', source)
    for best, table in zip((LAYERS * STEPS - 1, 4 * LAYERS + 2), tables, strict=True):
        shares = [float(share) for share in re.findall(r"--share: (\d+)%", table)]
        assert len(shares) == LAYERS * STEPS
        assert (shares.index(max(shares)), max(shares), min(shares)) == (best, 100, 0)


def test_page_with_plots_folds_the_numbers(plotted: Path) -> None:
    page = Page(write_page(plotted))
    assert page.count("svg") == 5
    assert page.source.count("The numbers") == 4
    assert 'class="heat"' not in page.source and "pip install" not in page.text
    for figures in ("Figures 2 and 10", "Figures 3 and 11", "Figures 9 and 12"):
        assert figures in page.text
    assert "(c) mean over steps 0 to 7" in page.text
    assert "var(--blue)" in page.source and "#0072b2;" not in page.source.split("<body>")[1]


def test_page_stands_alone(folder: Path) -> None:
    (folder / "figures/mask.svg").write_text(TINY_SVG)
    (folder / "figures/match.svg").write_text(TINY_SVG)
    for name in ("mask_grid", "match_grid", "skip_sheet"):
        write_image(folder / f"figures/{name}.png", np.zeros((8, 8, 3), np.uint8))
    page = Page(write_page(folder))
    names = page.values("id")
    assert Counter(names).most_common(1)[0][1] == 1 and "mask-p1" in names and "match-p1" in names
    sources = [*page.values("href"), *page.values("src")]
    assert len([source for source in sources if source.startswith("data:image/png;base64,")]) == 3
    for source in sources:
        assert source.startswith("data:image/png;base64,") or source[1:] in names
    for reference in re.findall(r"url\((.*?)\)", page.source):
        assert reference[1:] in names
    assert 'clip-path="url(#match-p1)"' in page.source and 'href="#mask-m"' in page.source
    assert "example.org" not in page.source
    assert page.count("script") == page.count("metadata") == page.count("link") == 0
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert str(folder) not in page.source


def test_whatever_stands_in_files_is_text(folder: Path) -> None:
    values = {**mask_values(), "what": "IoU <u>", "timesteps": ["<i>soon</i>"] * STEPS}
    (folder / "figures/mask.json").write_text(json.dumps(values))
    page = Page(write_page(folder))
    assert page.count("script") == page.count("b") - 3 * LAYERS == 0  # the numbers under small bars
    for words in (
        NASTY,
        "IoU <u>, all",
        " <i>soon</i> ",
        "waves <i>",
        "Beats <b>nothing</b> by 0.03 only.",
        '"words": "</pre>"',
    ):
        assert words in page.text, words
    assert f"--model '{NASTY}' --preset preset.json" in page.text


def test_choice_counts_from_one_and_from_zero(folder: Path) -> None:
    page = Page(write_page(folder))
    articles = re.findall("<article>(.*?)</article>", page.source)
    rows = [re.findall(r"<td>(.*?)</td>", article.split("</table>")[0]) for article in articles]
    assert rows == [
        ["from 1", "2–3, 5", "4", "from 0", "1–2, 4", "3"],
        ["from 1", "1–3", "5", "from 0", "0–2", "4"],
        ["from 1", "1, 6", "from 0", "0, 5"],
    ]
    assert (
        "Masks from layers 2–3, 5 at step 3; matches from layers 1–3 at step 4; injection at layers 1, 6"
        in page.text
    )
    assert "2 to 5, from 0" in page.text
    assert page.text.count("4 may well be picked or dropped") == 3


def test_small_bars_show_how_often_layers_are_picked(folder: Path) -> None:
    source = Page(write_page(folder)).source
    bars = re.findall(r'<span title="layer (\d): (\d+) %"><i style="height: (\d+)%" class="(.*?)">', source)[
        :LAYERS
    ]
    assert [(int(layer), int(share)) for layer, share, _, _ in bars] == [
        (1, 0), (2, 100), (3, 98), (4, 37), (5, 85), (6, 0),
    ]  # fmt: skip
    assert all(share == height for _, share, height, _ in bars)
    assert [kind for *_, kind in bars] == ["", "layers", "layers", "borderline", "layers", ""]


def test_verdict_of_the_closing_check(folder: Path) -> None:
    assert "They act." in Page(write_page(folder)).text
    path = folder / "figures/acts.json"
    values = json.loads(path.read_text())
    values["others"]["interval"] = [0.14, 0.38]
    path.write_text(json.dumps(values))
    assert "The difference is not clear." in Page(write_page(folder)).text
    del values["others"]  # every layer was chosen
    path.write_text(json.dumps(values))
    assert "All layers are chosen" in Page(write_page(folder)).text


def test_page_is_the_same_wherever_the_folder_lies(folder: Path) -> None:
    before = write_page(folder).read_bytes()
    assert write_page(folder.rename(folder.with_name("moved"))).read_bytes() == before


def test_page_of_an_analysis_of_masks_only(folder: Path) -> None:
    for path in (*folder.glob("figures/[!m]*.json"), folder / "figures/match.json", folder / "preset.json"):
        path.unlink()
    (folder / "selection.json").write_text(json.dumps({"mask": chosen([2], 3, bootstrap={})}))
    page = Page(write_page(folder))
    assert "Foreground masks" in page.text
    for other in ("Matches", "Vital layers", "The preset"):
        assert other not in page.text
    (folder / "selection.json").unlink()
    with pytest.raises(UsageError, match="holds no selection"):
        write_page(folder)


# Sheets


def cell(page: Frames, row: int, column: int, rows: int, columns: int, width: int) -> Frames:
    """A cell of a sheet, counted from its upper left one."""
    y = page.shape[0] - MARGIN - (rows - row) * (HEIGHT + GAP) + GAP
    x = page.shape[1] - MARGIN - (columns - column) * (width + GAP) + GAP
    return page[y : y + HEIGHT, x : x + width]


def grey_frames(count: int = 5, height: int = 32, width: int = 48) -> Frames:
    """Every frame another grey."""
    greys = 20 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    return greys.repeat(height, 1).repeat(width, 2).repeat(3, 3)


def test_masks_stand_at_their_step_and_row() -> None:
    frames, steps = grey_frames(), (0, 3, 6)
    truth = torch.zeros(2, 4, 6, dtype=torch.bool)
    truth[1, 1:3, 1:3] = True
    masks = torch.zeros(3, 2, 4, 6, dtype=torch.bool)
    masks[1, 1, :, 3:] = True
    page = mask_grid(frames, truth, {"layer 1": masks, "chosen\nlayers 2–3": masks.flip(0) | truth}, steps)

    def expected(mask: torch.Tensor) -> Frames:
        return fit_height(show_mask(frames[2:3], mask[1:])[0], HEIGHT)

    for column in range(3):
        at = [cell(page, row, column, 3, 3, 216) for row in range(3)]
        assert np.array_equal(at[0], expected(truth))
        assert np.array_equal(at[1], expected(masks[column]))
        assert np.array_equal(at[2], expected(masks[2 - column] | truth))
    assert (cell(page, 1, 0, 3, 3, 216) == 40).all()  # the middle frame, untouched where nothing is found
    first = cell(mask_grid(frames, truth, {"layer 1": masks}, steps, frame=0), 0, 0, 2, 3, 216)
    assert (first == 0).all()  # the truth of frame 0 is that of latent frame 0


def test_truth_may_be_in_pixels() -> None:
    frames = grey_frames()
    truth = torch.zeros(5, 32, 48, dtype=torch.bool)
    truth[2, :16] = True
    page = mask_grid(frames, truth, {"layer 1": torch.zeros(1, 2, 4, 6, dtype=torch.bool)}, [0])
    seen = cell(page, 0, 0, 2, 1, 216)
    assert (seen[: HEIGHT // 2 - 2].std(-1) > 0).all() and (seen[HEIGHT // 2 + 2 :] == 40).all()


def test_matched_places_wear_one_colour() -> None:
    frames = np.full((5, 32, 48, 3), 128, np.uint8)
    inside = torch.zeros(2, 4, 6, dtype=torch.bool)
    inside[:, :, :3] = True  # the identity stands on the left,
    mask = inside.flip(-1)  # the frame video's character on the right
    own = torch.arange(48).reshape(2, 4, 6)
    shifted = own.roll(3, -1).flatten()  # the true partner is three tokens to the left
    upside_down = own.flip(1).roll(3, -1).flatten()
    truth = torch.full((48, 2), -1)
    truth[:, 1] = torch.where(own.flatten() % 6 == 5, -1, shifted)
    partners = torch.stack([shifted, upside_down, own.flatten()])
    page = match_grid(frames, frames, inside, mask, {"layer 1": partners}, (1, 2, 3), truth)

    def colours(row: int, column: int) -> Frames:
        """The colour in the middle of every token, 4 6 3."""
        return cell(page, row, column, 3, 3, 216)[18::36, 18::36].astype(int)

    identity, true = colours(0, 0), colours(1, 0)
    red = 128 + 0.7 * (place_colour(np.array(0.0), np.array(0.5)) - 128)
    assert np.abs(identity[0, 1] - red).max() <= 2
    assert (identity[:, 3:] == identity[0, 5]).all()  # nothing but the faded background
    assert np.abs(true[:, 3:5] - identity[:, :2]).max() <= 2
    assert (true[:, 5] == true[0, 0]).all()  # nobody knows: not painted
    assert np.abs(colours(2, 0)[:, 3:] - identity[:, :3]).max() <= 2
    assert np.abs(colours(2, 1)[::-1, 3:] - identity[:, :3]).max() <= 2
    lost = 128 + 0.7 * (np.array(UNMATCHED) - 128)
    assert np.abs(colours(2, 2)[:, 3:] - lost).max() <= 2


def test_videos_without_layers_stand_under_the_whole_one() -> None:
    full = grey_frames(9)
    page = skip_sheet(full, {3: full + 5, 12: full + 9}, vital=[12])
    for column, frame in enumerate((0, 3, 5, 8)):
        for row, more in enumerate((0, 5, 9)):
            assert (cell(page, row, column, 3, 4, 216) == 20 * frame + more).all()
    plain = skip_sheet(full, {3: full + 5, 12: full + 9})
    changed = np.argwhere((page != plain).any(-1))
    assert changed[:, 1].max() < 216 and changed[:, 0].min() > 2 * HEIGHT  # a word beside the last row


def test_bars_of_nothing_but_zeros_are_empty() -> None:
    drawn = markup.table({"layer": ["1", "2"], "change": [0.0, 0.0]}, bar="change")
    assert drawn.count("--share:0.0%") == 2
