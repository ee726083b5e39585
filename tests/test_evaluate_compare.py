"""Runs held against each other: intervals, paired differences, agreement beyond chance, and the tables."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bachvid.evaluate.compare import Comparison, where_all_succeeded
from bachvid.evaluate.figures import FIGURES, Interval
from bachvid.evaluate.plans import PLANS
from bachvid.evaluate.report import Column, briefly, fully, report, run_rows
from bachvid.evaluate.runs import Run, copy
from bachvid.evaluate.table import aligned, markdown

NAMES = ("vanilla_shared", "ours_shared", "min_similarity=0.5", "shuffled")
RUNS = [Run(name, f"about {name}", copy) for name in NAMES]
MEASURES = ("psnr_bg", "cells", "hidden", "attributes", "badge", "action", "off_palette")


def made_up(groups: int) -> list[dict[str, float]]:
    """Groups that differ much, in which every run is by 0.1 better than the one before it."""
    rng, found = random.Random(0), []
    for _ in range(groups):
        of_group = rng.gauss(0.4, 0.1)
        found.append(
            {
                f"{name}.{measure}": of_group + 0.1 * n + rng.gauss(0, 0.001)
                for n, name in enumerate(NAMES)
                for measure in MEASURES
            }
            | {f"{name}.success": 1.0 for name in NAMES}
            | {"vanilla.action": 1.0, "mask.iou": 0.7}
        )
    return found


def test_differences_are_paired_within_groups() -> None:
    groups = made_up(20)
    found = Comparison.of(RUNS, groups, 0)
    assert list(found.runs) == list(NAMES) and list(found.differences) == list(NAMES[1:])
    for n, name in enumerate(NAMES[1:], start=1):
        difference = found.differences[name]["cells"]
        exact = sum(each[f"{name}.cells"] - each["vanilla_shared.cells"] for each in groups) / 20
        assert difference.mean == pytest.approx(exact) == pytest.approx(0.1 * n, abs=0.001)
        assert difference.low <= difference.mean <= difference.high
        spread = found.runs[name]["cells"]
        assert difference.high - difference.low < (spread.high - spread.low) / 20


def test_a_group_counts_in_a_difference_where_both_runs_have_a_value() -> None:
    groups = made_up(3)
    groups[0]["ours_shared.psnr_bg"] = math.nan
    groups[1]["vanilla_shared.psnr_bg"] = math.nan
    found = Comparison.of(RUNS, groups, 0)
    exact = groups[2]["ours_shared.psnr_bg"] - groups[2]["vanilla_shared.psnr_bg"]
    assert found.differences["ours_shared"]["psnr_bg"].mean == pytest.approx(exact)


def test_agreement_beyond_chance_is_nothing_for_strangers_and_all_for_perfection() -> None:
    values = {"vanilla_shared": 0.5, "ours_shared": 0.9, "min_similarity=0.5": 1.0, "shuffled": 0.2}
    group = {f"{name}.{measure}": value for name, value in values.items() for measure in MEASURES}
    found = Comparison.of(RUNS, [group] * 3, 0).corrected
    expected = {"vanilla_shared": 0.375, "ours_shared": 0.875, "min_similarity=0.5": 1.0, "shuffled": 0.0}
    assert {name: each["badge"].mean for name, each in found.items()} == pytest.approx(expected)
    assert not Comparison.of(RUNS[:3], [group] * 3, 0).corrected


def test_the_endpoint_asks_for_agreement_that_nothing_paid_for() -> None:
    group = {f"{name}.{measure}": 0.5 for name in NAMES for measure in MEASURES}
    better = group | {"ours_shared.badge": 0.7, "ours_shared.cells": 0.8}
    better |= {"ours_shared.action": 0.47, "ours_shared.off_palette": 0.55}
    found = Comparison.of(RUNS, [better] * 2, 0).endpoint
    expected = {"badge_gain": 0.2, "cells_gain": 0.3, "action_drop": 3.0, "offpalette_ratio": 0.1}
    assert {name: each.mean for name, each in found.items()} == pytest.approx(expected)


def test_where_all_succeeded_no_run_gains_by_what_it_lost() -> None:
    groups = made_up(4)
    groups[1]["ours_shared.success"] = 0.75
    assert where_all_succeeded(RUNS, groups) == [groups[0], *groups[2:]]
    assert where_all_succeeded(RUNS[:1], groups) == groups


def test_cells_show_the_mean_and_how_sure_it_is() -> None:
    found, column = Interval(0.5, 0.25, 0.625), Column("cells", "cells %")
    assert fully(found, column, False) == "50.0 (25.0 .. 62.5)"
    assert fully(found, column, True) == "+50.0 (+25.0 .. +62.5)"
    assert briefly(found, column, False) == "50.0 ±18.8"
    assert fully(Interval(*[math.nan] * 3), column, False) == "-"
    rows = run_rows({"ours": {"cells": found}, "oracle": {}}, [column], fully)
    assert rows == [("", "cells %"), ("ours", "50.0 (25.0 .. 62.5)"), ("oracle", "-")]
    assert markdown(rows).splitlines() == [
        "|        | cells %             |",
        "|--------|---------------------|",
        "| ours   | 50.0 (25.0 .. 62.5) |",
        "| oracle | -                   |",
    ]
    assert aligned(rows).splitlines()[0] == "        cells %"


def test_a_comparison_is_written_for_people_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    groups = made_up(5)
    groups[0]["ours_shared.success"] = 0.5
    groups[0]["ours_shared.psnr_bg"] = math.nan
    recipe = {"steps": 20, "tau_mask": 9, "tau_match": 7}
    recipe |= {f"{kind}_layers": [1, 2] for kind in ("mask", "match", "kv")}
    settings: dict[str, Any] = {"model": "m", "family": "wan", "prompts": 5, "seed": 3, "what": "controls"}
    plan = replace(PLANS["controls"], figures=[FIGURES[2]])
    report(plan, RUNS, groups, settings | {"recipe": recipe}, tmp_path / "a.json")
    values = json.loads((tmp_path / "a.json").read_text())
    assert (values["groups"], values["prompts"], values["where_all_succeeded"]["groups"]) == (5, 5, 4)
    assert values["figures"] == {"mask_iou": values["model_alone"]["mask"]["iou"]}
    assert values["figures"]["mask_iou"]["mean"] == pytest.approx(0.7)
    assert values["bars"] == {"mask_iou": [">=", 0.55]}
    assert values["differences"]["ours_shared"]["cells"]["mean"] == pytest.approx(0.1, abs=0.001)
    assert values["about"]["shuffled"] == "about shuffled" and "vanilla_shared" not in values["against"]
    written, shown = (tmp_path / "a.md").read_text(), capsys.readouterr().out
    for text in (written, shown):
        assert "m, 5 groups of 5, seed 3; tau 9 (mask) and 7 (match) of 20 steps; layers mask 1 2" in text
        assert "mask_iou" in text and "reached" in text
        assert "Where every run succeeded: 4 of 5 groups" in text and "Agreement beyond chance" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]
