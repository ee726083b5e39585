"""The page of an analysis: what was chosen, how sure that is, what it stands on, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bachvid.calibrate.markup import document, listing, picture, table, tag, text
from bachvid.calibrate.plots import Values, load, measured, runs, series, ticks
from bachvid.errors import UsageError
from bachvid.pictures.files import write_bytes

SETS = {  # of `selection.json`: a heading, what the layers are for, and how a sentence leads to them
    "mask": ("Mask layers", "tell the character from the place", "masks from"),
    "match": ("Match layers", "tell which places are the same", "matches from"),
    "kv": ("Vital layers", "lend their keys and values", "injection at"),
}
HEADINGS = {  # of what the JSON files in `figures` tell
    "mask": "Foreground masks",
    "match": "Matches",
    "vital": "Videos without a layer",
    "acts": "Do the chosen layers act?",
}
PLOTLESS = 'Numbers stand here where plots would: matplotlib was not there (pip install "bachvid[plots]").'
TICKS = "Grey lines, and the ticks under the colours, are the trivial baselines."
CAPTIONS = {  # of plots and pictures, by where they stand
    (
        "mask",
        "mask.svg",
    ): f"How well masks agree with the truth, as in Figures 2 and 10 of the paper. {TICKS}",
    ("mask", "mask_grid.png"): "Masks laid over one frame, as in Figure 6.",
    ("match", "match.svg"): f"How far matches lie from the truth, as in Figures 3 and 11. {TICKS}",
    (
        "match",
        "match_pck.svg",
    ): "The twin of Figures 3 and 11: how many matches lie within a token of the truth. "
    "Unlike the mean error, this does not hang on a few wild ones.",
    (
        "match",
        "match_grid.png",
    ): "Every place wears the colour of the identity's place that it matches; grey is "
    "the identity's background. As in Figure 7.",
    (
        "vital",
        "vital.svg",
    ): "How good videos look without a layer, and how much of what they show stays. As in Figures 9 and 12.",
    ("vital", "skip_sheet.png"): "The videos themselves, as in Figure 8.",
    ("acts", "acts.svg"): "How far injection moves the videos. The paper has no figure of this.",
}


def write_page(folder: Path) -> Path:
    """The path of `report.html`, made of the other files of an analysis; the page itself needs none of them.

    Figures without a plot are told in tables. UsageError if nothing was chosen in this folder yet.
    """
    chosen, run, preset = (load(folder / f"{name}.json") for name in ("selection", "run", "preset"))
    if not chosen:
        raise UsageError(f"{folder} holds no selection.json. Name the folder of a finished calibration.")
    model = str(run.get("model", folder.name))
    html = document(
        f"{model}: layers and steps",
        tag("header", tag("p", "bachvid calibrate"), tag("h1", escape(model)), verdict(chosen)),
        warnings(chosen),
        tag("section", *(choice(name, chosen[name]) for name in SETS if name in chosen), class_="choices"),
        *([] if [*folder.glob("figures/*.svg")] else [tag("p", PLOTLESS, class_="note")]),
        *(part(folder / "figures", name) for name in HEADINGS),
        usage(preset, model) if preset else "",
        tag("section", tag("h2", "What was analysed"), listing(run)) if run else "",
    )
    page = folder / "report.html"
    write_bytes(page, html.encode())
    return page


def verdict(chosen: Values) -> str:
    """The choice in one sentence."""
    said = []
    for name, (*_, where) in SETS.items():
        if each := chosen.get(name):
            at = "" if each["tau"] is None else f" at step {each['tau']}"
            said.append(f"{where} layers {ranges(each['layers'])}{at}")
    note = tag("p", "Layers count from 1 and steps from 0 where nothing else is said.", class_="note")
    return tag("p", escape("; ".join(said).capitalize()), ".", class_="lead") + note


def warnings(chosen: Values) -> str:
    """What to be careful about, in plain words."""
    said = []
    for name, (title, *_) in SETS.items():
        if each := chosen.get(name):
            said += [f"{title}: {warning}" for warning in each["warnings"]]
            if unsure := ranges(each["borderline"]):
                said.append(
                    f"{title}: {unsure} may well be picked or dropped with other videos (borderline)."
                )
    points = [tag("li", escape(sentence)) for sentence in said]
    return tag("section", tag("h2", "Be careful"), tag("ul", *points), class_="careful") if said else ""


def choice(name: str, chosen: Values) -> str:
    """One set: its layers and its step however one counts, how stable they are, and the rule behind."""
    title, what, _ = SETS[name]
    layers, tau = [ranges(chosen[key]) for key in ("layers", "layers_0based")], chosen["tau"]
    counted = {"counted": ["from 1", "from 0"], "layers": layers}
    facts = {"rule": chosen["rule"], **chosen["parameters"]}
    if tau is not None:
        counted["step (τ)"] = [str(tau + 1), str(tau)]
        facts["timestep at τ"] = chosen["timestep"]
    if chosen["tau_interval"]:
        facts["90 % interval of τ"] = f"{text(chosen['tau_interval'])}, from 0"
    return tag("article", tag("h2", title, tag("small", what)), table(counted), strip(chosen), listing(facts))


def strip(chosen: Values) -> str:
    """A small bar for each layer: how often resamples pick it."""
    shares = {int(layer): share for layer, share in chosen["bootstrap"].items()}
    if not shares:
        return ""
    named, bars = ticks([*shares]), []
    for layer, share in shares.items():
        kinds = [kind for kind in ("layers", "borderline") if layer in chosen[kind]]
        bar = tag("i", style=f"height: {100 * share:.0f}%", class_=" ".join(kinds))
        label = tag("b", str(layer)) if layer in named else ""
        bars.append(tag("span", bar, label, title=f"layer {layer}: {100 * share:.0f} %"))
    note = "How many resamples of the videos pick each layer. Blue: chosen. Striped: borderline."
    return tag("div", *bars, class_="strip") + tag("p", note, class_="note")


def part(folder: Path, name: str) -> str:
    """What one file of figures tells; where its plot is missing, its numbers stand in for it."""
    values = load(folder / f"{name}.json")
    if not values:
        return ""
    figures = [
        tag(
            "figure",
            tag("div", picture(folder / file, HEADINGS[name]), class_="wide"),
            tag("figcaption", caption),
        )
        for (where, file), caption in CAPTIONS.items()
        if where == name and (folder / file).is_file()
    ]
    plotted = (folder / f"{name}.svg").is_file()
    numbers = tag("div", *tables(name, values), class_="tables")
    folded = tag("details", tag("summary", "The numbers"), numbers) if plotted else heat(values) + numbers
    return tag("section", tag("h2", HEADINGS[name]), tag("p", escape(told(name, values))), *figures, folded)


def told(name: str, values: Values) -> str:
    """What a figure says, in a sentence or two."""
    if name == "vital":
        only = ranges(values["content_only"]) or "none"
        return (
            f"What quality needs and what content needs overlap by {text(values['overlap'])} (Jaccard). "
            f"Layers that change the content and keep the quality: {only}."
        )
    if name == "acts":
        ours, others = values["chosen"], values.get("others")
        if others is None:
            far = text(ours["change"])
            return (
                f"Injection moves the videos by {far}. All layers are chosen: there are no others to compare."
            )
        far, near = (f"{text(side['change'])} ({text(side['interval'])})" for side in (ours, others))
        clear = "They act." if ours["interval"][0] > others["interval"][1] else "The difference is not clear."
        return f"Injection at the chosen layers moves the videos by {far}, at other layers by {near}. {clear}"
    lines = ", ".join(f"{text(height)} ({line})" for line, height in values["baselines"].items())
    best = text(values["fused"][values["tau"]])
    return f"{measured(values)} of the chosen layers together, at τ: {best}. Without looking: {lines}."


def tables(name: str, values: Values) -> list[str]:
    """The numbers of a figure; the chosen layers and tau stand out."""
    if name == "acts":
        names = [name for name in ("chosen", "others") if name in values]
        sides = [values[name] for name in names]
        columns = {key: [side[key] for side in sides] for key in ("change", "interval")}
        layers = [ranges(side["layers"]) for side in sides]
        return [table({"injected at": names, **columns, "layers": layers}, ["chosen"], "change")]
    if name == "vital":
        quality, likeness = values["quality"], values["likeness"]
        columns = {
            "without layer": values["layers"],
            "quality": quality["without"],
            "95 %": quality["interval"],
            "quality lost": (quality["full"] - np.array(quality["without"], dtype=float)).tolist(),
            "likeness": likeness["without"],
            "95 % of likeness": likeness["interval"],
        }
        return [table(columns, quality["chosen"], "quality lost")]
    what, pck = measured(values), values.get("pck")
    by_layer = {"layer": values["layers"], what: values["by_layer"], "95 %": values["by_layer_interval"]}
    by_step = {"step": values["steps"], "timestep": values["timesteps"], f"{what}, all": values["by_step"]}
    by_step |= {"chosen, mean": values["subset_mean"], "chosen, fused": values["fused"]}
    if pck:
        by_layer["PCK"], by_step["PCK, fused"] = pck["by_layer"], pck["fused"]
    moved = [table(values["by_movement"])] if "by_movement" in values else []
    return [table(by_layer, values["chosen"], what), table(by_step, [values["tau"]], "chosen, fused"), *moved]


def heat(values: Values) -> str:
    """Panel (a) in cells, a row for each step, the better the darker; nothing if the figure has none."""
    if "values" not in values:
        return ""
    numbers = series(values, "values")  # S L
    good = -np.log(numbers) if values["better"] == "lower" else numbers
    low, high = np.nanmin(good), np.nanmax(good)
    shares = 100 * np.nan_to_num((good - low) / max(high - low, 1e-9))
    cells = [
        tag("tr", *(tag("td", style=f"--share: {share:.0f}%") for share in row), title=f"step {step}")
        for step, row in zip(values["steps"], shares, strict=True)
    ]
    about = "Every layer (across) at every step (down); dark is good."
    return tag("div", tag("table", *cells, class_="heat"), tag("p", about, class_="note"), class_="wide")


def usage(preset: Values, model: str) -> str:
    """The recipe as a file, and the command that uses it."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in preset.items())
    command = f"bachvid run STORY --model {shlex.quote(model)} --preset preset.json"
    parts = (tag("pre", escape(command)), tag("pre", escape(f"{{\n{lines}\n}}")))
    return tag("section", tag("h2", "The preset, and its use"), *parts)


def ranges(layers: Sequence[Any]) -> str:
    """Layers in few words, such as 2–5, 9."""
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs(layers))
