"""HTML for a page that stands alone: elements, tables, pictures inside the page, and how it all looks."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bachvid.calibrate.plots import BLUE, FAINT, INK, ORANGE, PAPER

COLOURS = {PAPER: "paper", INK: "ink", "#000000": "ink", FAINT: "faint", BLUE: "blue", ORANGE: "orange"}
SHAPES = ("svg", "g", "defs", "path", "use", "text", "tspan", "rect", "image", "clipPath")


def document(title: str, *content: str) -> str:
    """A whole page, which may run no script and ask nothing of the network, whatever is put into it."""
    rules = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        tag("title", escape(title)),
        tag("style", STYLE),
    )
    page = tag("html", tag("head", *head), "\n", tag("body", tag("main", *content)), lang="en")
    return f"<!doctype html>\n{page}\n"


def tag(name: str, *content: str, **attributes: str) -> str:
    """An element; its content is HTML already, its attributes are plain text (`class_` is `class`)."""
    said = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{said}>{''.join(content)}</{name}>"


def text(value: Any) -> str:
    """A plain value for people: numbers with three digits, a pair as a stretch, a dash for nothing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, list | tuple):
        return " to ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def listing(value: Any) -> str:
    """Any value of a JSON file as HTML; lists of more than plain values are folded."""
    if isinstance(value, Mapping):
        pairs = (
            (tag("dt", escape(name.replace("_", " "))), tag("dd", listing(each)))
            for name, each in value.items()
        )
        return tag("dl", *(part for pair in pairs for part in pair))
    if not isinstance(value, list):
        return escape(text(value))
    if not any(isinstance(each, list | dict) for each in value):
        return escape(", ".join(map(text, value)))
    items = tag("ol", *(tag("li", listing(each)) for each in value))
    return tag("details", tag("summary", f"{len(value)} in all"), items)


def table(columns: Mapping[str, Sequence[Any]], marked: Collection[Any] = (), bar: str = "") -> str:
    """Columns under their names; rows whose first cell is in `marked` stand out, one column has bars."""
    most = max((each for each in columns.get(bar, ()) if each is not None and each == each), default=0) or 1
    rows = [tag("tr", *(tag("th", escape(name)) for name in columns))]
    for row in zip(*columns.values(), strict=True):
        cells = []
        for name, each in zip(columns, row, strict=True):
            known = name == bar and each is not None and each == each
            look = {"class_": "bar", "style": f"--share:{100 * each / most:.1f}%"} if known else {}
            cells.append(tag("td", escape(text(each)), **look))
        rows.append(tag("tr", *cells, **({"class_": "marked"} if row[0] in marked else {})))
    return tag("div", tag("table", *rows), class_="wide")


def picture(path: Path, about: str) -> str:
    """A .png or .svg file as part of the page."""
    if path.suffix == ".svg":
        svg = ElementTree.fromstring(path.read_bytes())
        adopt(svg, path.stem)
        for size in ("width", "height"):
            svg.attrib.pop(size, None)  # it is as wide as the page
        svg.attrib |= {"role": "img", "aria-label": about}
        return ElementTree.tostring(svg, encoding="unicode")
    return tag("img", src=f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}", alt=about)


def adopt(element: ElementTree.Element, name: str) -> None:
    """Makes what stands in an .svg file part of a page: in its colours, under names of its own, shapes only.

    Two pictures on a page may not share names, and a file could hold anything: scripts and addresses go.
    """
    kept = {}
    for key, value in element.attrib.items():
        key = local(key)
        leads_out = key == "href" and not value.startswith(("#", "data:image/png;base64,"))
        if key.startswith("on") or leads_out or re.search(r"url\((?!#)", value):
            continue
        for colour, variable in COLOURS.items():
            value = value.replace(colour, f"var(--{variable})")
        kept[key] = f"{name}-{value}" if key == "id" else re.sub(r"(^|url\()#", rf"\1#{name}-", value)
    element.tag, element.attrib = local(element.tag), kept
    for child in [*element]:
        if local(child.tag) in SHAPES:
            adopt(child, name)
        else:
            element.remove(child)


def local(name: str) -> str:
    """A name without its XML namespace."""
    return name.rpartition("}")[2]


STYLE = """
:root { --paper: #fff; --ink: #20212a; --faint: #676979; --rule: #e2e3ea; --wash: #f5f6f9; --blue: #0072b2;
  --orange: #d55e00; --tint: #0072b230 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15161c; --ink: #e6e7ee; --faint: #9c9eae; --rule: #30323e; --wash: #1d1f27;
    --blue: #56b4e9; --orange: #f0924a; --tint: #56b4e940 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1080px; margin: auto; padding: clamp(24px, 5vw, 64px) clamp(16px, 4vw, 40px) }
header p:first-child { margin: 0; color: var(--faint) }
h1 { margin: 0; font-size: clamp(28px, 4vw, 42px); line-height: 1.15; overflow-wrap: anywhere }
h2 { margin: 0 0 .5em; font-size: 21px; line-height: 1.3 }
h2 small { display: block; font-size: 14px; font-weight: 400; color: var(--faint) }
.lead { font-size: clamp(17px, 2vw, 20px) }
section { margin-top: 56px }
section > p, figcaption { max-width: 75ch }
.careful { padding: 16px 20px; border-left: 4px solid var(--orange); background: var(--wash) }
.careful ul { margin: 0; padding-left: 1.2em }
.choices { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)) }
article { min-width: 0; padding: 20px; border-radius: 10px; background: var(--wash) }
.strip { display: flex; gap: 1px; height: 72px; margin: 20px 0 26px }
.strip span { flex: 1; position: relative; display: flex; align-items: flex-end; background: var(--rule) }
.strip i { width: 100%; background: var(--faint) }
.strip .layers { background: var(--blue) }
.strip .borderline { background-image: repeating-linear-gradient(45deg, #0000 0 3px, var(--wash) 3px 5px) }
.strip b { position: absolute; top: 100%; left: 50%; translate: -50%; font: 11px/1.8 system-ui, sans-serif }
figure { margin: 32px 0 }
figcaption, dl, table, pre, .note { font-size: 14px }
figcaption, th, dt, .note, .strip b { color: var(--faint); font-weight: 400 }
figcaption { margin-top: 10px }
.wide { overflow-x: auto }
.wide svg, .wide img { display: block; width: 100%; min-width: 640px; height: auto; stroke-linejoin: round }
.wide img { width: auto; max-width: 100%; border-radius: 6px }
.wide svg text { font-family: inherit !important }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
tr { border-bottom: 1px solid var(--rule) }
th, td { padding: 3px 18px 3px 4px; text-align: left; white-space: nowrap }
article td { white-space: normal; overflow-wrap: anywhere }
.marked { background: var(--tint); font-weight: 600 }
.bar { min-width: 140px; background: linear-gradient(90deg, var(--tint) var(--share), #0000 0) }
.heat { width: 100%; max-width: 720px }
.heat tr { border: 0 }
.heat td { padding: 0; min-width: 12px; height: 9px }
.heat td { background: color-mix(in srgb, var(--blue) var(--share), var(--wash)) }
.tables { display: flex; flex-wrap: wrap; gap: 24px 56px; align-items: flex-start; margin-top: 12px }
.tables > * { max-width: 100% }
summary { cursor: pointer; color: var(--blue) }
a { color: var(--blue) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 12px 0 0 }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere }
pre { overflow-x: auto; padding: 14px 16px; border-radius: 8px; background: var(--wash); line-height: 1.5 }
"""
