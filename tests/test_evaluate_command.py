"""`bachvid evaluate`: figures with intervals and bars, results on disk, and whole runs at toy size."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import pytest
from small_stage import small_model
from stage_models import untrained

from bachvid.__main__ import main
from bachvid.errors import UsageError
from bachvid.evaluate.figures import FIGURES, Interval, figures_of
from bachvid.evaluate.ledger import Ledger
from bachvid.evaluate.table import aligned, figure_rows

# Figures, intervals and bars.


def made_up(groups: int, seed: int) -> list[dict[str, float]]:
    """Groups whose every figure is known on average: each named value scatters round its own mean."""
    rng = random.Random(seed)
    return [{name: value + rng.gauss(0, 0.01) for name, value in AVERAGE.items()} for _ in range(groups)]


RUNS = ("vanilla_shared", "vanilla_own", "ours_shared", "ours_own", "only_background", "random_match")
AVERAGE = {
    f"{run}.{what}": 0.5 for run in RUNS for what in ("action", "hidden", "cells", "off_palette", "lost")
}
AVERAGE |= {f"{run}.{what}": 20.0 for run in RUNS for what in ("psnr_bg", "psnr_fg")}
AVERAGE |= {"vanilla.action": 1.0, "vanilla.stated": 1.0, "vanilla.seconds": 3.0}
AVERAGE |= {"mask.iou": 0.8, "match.pck1": 0.9, "match.mse": 1.0, "match.mse_same_place": 10.0}


def test_intervals_are_the_same_for_the_same_seed() -> None:
    groups = made_up(10, 0)
    assert figures_of(groups, 3) == figures_of(groups, 3) != figures_of(groups, 4)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(40):
        found = figures_of(made_up(30, trial), trial)["mask_iou"]
        hits += found.low <= 0.8 <= found.high
    assert 34 <= hits <= 40


def test_figures_say_what_their_names_say() -> None:
    values = AVERAGE | {
        "ours_shared.psnr_bg": 27.0, "ours_own.psnr_fg": 24.0, "ours_shared.hidden": 0.9,
        "ours_shared.action": 0.47, "ours_shared.lost": 1, "ours_own.lost": 2,
        "ours_shared.off_palette": 0.55, "only_background.psnr_fg": 19.0, "random_match.psnr_fg": 18.0,
    }  # fmt: skip
    found = {name: interval.mean for name, interval in figures_of([values] * 2, 0).items()}
    expected = {
        "psnr_bg_shared": 27, "psnr_bg_gain_shared": 7, "psnr_bg_gain_own": 0, "psnr_fg_gain_shared": 0,
        "psnr_fg_gain_own": 4, "hidden_share": 0.8, "cells_share": 0, "action_drop": 3, "lost": 3,
        "fg_gain_over_bg_only": 1, "fg_gain_over_random_match": 2, "offpalette_ratio": 0.1,
        "match_mse_ratio": 0.1, "match_pck1": 0.9, "mask_iou": 0.8,
        "seconds_per_video": 3, "action_vanilla": 1, "stated_vanilla": 1,
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_clean_videos_divide_by_no_zero_and_unmeasured_values_are_left_out() -> None:
    clean = AVERAGE | {"vanilla_shared.off_palette": 0.0, "ours_shared.off_palette": 0.0}
    gap = clean | {"ours_shared.psnr_bg": math.nan}
    found = figures_of([clean, gap, clean | {"ours_shared.psnr_bg": 22.0}], 0)
    assert found["offpalette_ratio"].mean == 0
    assert found["psnr_bg_shared"].mean == 21
    nothing = figures_of([gap, gap], 0)["psnr_bg_shared"]
    assert all(math.isnan(value) for value in nothing)


def test_nothing_lacks_where_vanilla_videos_agree_wholly() -> None:
    whole = AVERAGE | {"vanilla_shared.cells": 1.0, "ours_shared.cells": 1.0, "match.mse_same_place": 0.0}
    found = figures_of([whole], 0)
    assert math.isnan(found["cells_share"].mean) and math.isnan(found["match_mse_ratio"].mean)
    one = figures_of([whole, AVERAGE | {"ours_shared.cells": 0.75}], 0)["cells_share"]
    assert 0 < one.mean < 1 and math.isfinite(one.high)


def test_a_bar_is_cleared_by_the_worse_end_of_the_interval() -> None:
    by_name = {figure.name: figure for figure in FIGURES}
    found = Interval(0.72, 0.69, 0.75)
    assert by_name["mask_iou"].missing(found, "cogvideox") == pytest.approx(0.01)
    assert by_name["mask_iou"].missing(found, "wan") == pytest.approx(-0.14)
    assert by_name["action_drop"].missing(Interval(1, 0, 2.5), "cogvideox") == pytest.approx(0.5)
    assert by_name["action_vanilla"].missing(Interval(0.975, 0.95 - 2**-53, 1), "cogvideox") == 0
    found = dict.fromkeys(by_name, Interval(0.75, 0.71, 0.79)) | {"action_drop": Interval(*[math.nan] * 3)}
    lines = {line.split()[0]: line for line in aligned(figure_rows(found, "cogvideox")).splitlines()[2:]}
    assert lines["mask_iou"].endswith("reached")
    assert lines["psnr_bg_shared"].endswith("missed by 27.3")
    assert lines["action_drop"].endswith("not measured")
    wan = aligned(figure_rows(found, "wan"))
    assert "0.55" in wan and re.search(r"psnr_bg_shared .*none$", wan, re.M)


# The ledger.


def test_a_ledger_goes_on_after_a_crash_and_keeps_what_is_not_a_number(tmp_path: Path) -> None:
    path, settings = tmp_path / "a.groups.jsonl", {"seed": 1, "layers": [1, 2]}
    Ledger(path, settings).add("0", {"x": 1.5, "y": math.nan})
    with path.open("a") as file:
        file.write('\n{"of": "1", "measu')  # killed while writing
    again = Ledger(path, settings)
    assert list(again.done()) == ["0"]
    again.add("2", {"x": 2.5, "y": 3.5})
    Ledger(path, settings).add("1", {"x": 0.5, "y": 1.0})
    found = again.done()
    assert sorted(found) == ["0", "1", "2"] and found["2"] == {"x": 2.5, "y": 3.5}
    assert found["0"]["x"] == 1.5 and math.isnan(found["0"]["y"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_ledger_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.groups.jsonl"
    Ledger(path, {"seed": 1, "steps": 20})
    with pytest.raises(UsageError, match=r"another steps \(20, not 25\)\. Delete it, or choose another"):
        Ledger(path, {"seed": 1, "steps": 25})
    with pytest.raises(UsageError, match=r"another steps \(20, not 25\)\. Ask somebody\.$"):
        Ledger(path, {"seed": 1, "steps": 25}, "Ask somebody.")


# Whole runs.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "random-tiny")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a calibration of three layers leaves of its ranking."""
    folder = tmp_path_factory.mktemp("calibration")
    quality = {"without": [0.1, 0.9, 0.5], "chosen": [1, 3]}
    likeness = {"without": [0.9, 0.2, 0.1], "chosen": [3]}
    (folder / "figures").mkdir()
    (folder / "figures" / "vital.json").write_text(json.dumps({"quality": quality, "likeness": likeness}))
    return folder


def evaluate(model: Path, out: Path, *more: str) -> int:
    given = {"--model": str(model), "--out": str(out), "--prompts": "2", "--steps": "4", "--groups": "1"}
    return main(["evaluate", "--stage", *(part for pair in given.items() for part in pair), *more])


def test_an_evaluation_from_prompts_to_figures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.json"
    assert evaluate(model, out) == 0
    values = json.loads(out.read_text())
    assert (values["model"], values["groups"], values["seed"]) == ("random-tiny", 1, 0)
    assert list(values["figures"]) == [figure.name for figure in FIGURES]
    assert all(list(each) == ["mean", "low", "high"] for each in values["figures"].values())
    assert values["figures"]["seconds_per_video"]["mean"] > 0
    assert set(values["runs"]) == set(RUNS) and list(values["model_alone"]) == ["vanilla", "mask", "match"]
    assert values["settings"]["recipe"]["tau_mask"] == 2 and values["settings"]["recipe"]["steps"] == 4
    assert "mask_iou" in capsys.readouterr().out
    assert re.search(r"^\| mask_iou +\| ", (tmp_path / "out.md").read_text(), re.M)

    ledger, text = tmp_path / "out.groups.jsonl", out.read_text()
    lines = ledger.read_text()
    out.unlink()
    assert evaluate(model, out) == 0  # all is measured: nothing is measured again
    assert (ledger.read_text(), out.read_text()) == (lines, text)
    assert evaluate(model, out, "--steps", "3") == 2
    assert "another recipe" in capsys.readouterr().err
    assert evaluate(model, out, "--what", "options") == 2
    assert "another what (bars, not options)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def layers_out(model: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an evaluation of two groups left behind."""
    out = tmp_path_factory.mktemp("layers") / "whole.json"
    assert evaluate(model, out, "--what", "layers", "--calibration", str(calibration), "--groups", "2") == 0
    return out


def test_the_layers_that_borrow(layers_out: Path) -> None:
    values = json.loads(layers_out.read_text())
    asked = ["by_quality", "by_likeness", "all", "random"]  # beside the preset, which lends from some layers
    assert list(values["runs"]) == ["vanilla_shared", "ours_shared", *asked]
    assert set(values["against"].values()) == {"vanilla_shared"} and len(values["differences"]) == 5
    caches = {run: values["runs"][run]["cache_gb"]["mean"] for run in values["runs"]}
    assert caches["by_quality"] == caches["by_likeness"] == caches["random"] < caches["all"]
    assert caches["vanilla_shared"] == 0
    text = layers_out.with_suffix(".md").read_text()
    assert "* by_quality: layers 1 3 borrow" in text and "* by_likeness: layers 2 3 borrow" in text


def test_shards_and_a_killed_run_measure_what_one_process_would(
    model: Path, calibration: Path, layers_out: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts.json"
    ledgers = [path.with_suffix(".groups.jsonl") for path in (layers_out, parts)]
    settings, first, second = ledgers[0].read_text().split("\n")
    begun = f"{settings}\n{first}\n{second[:100]}"  # killed while writing the second group
    ledgers[1].write_text(begun)
    plan = ("--what", "layers", "--calibration", str(calibration), "--groups", "2")
    evaluate(model, parts, *plan, "--shard", "1/2")
    assert not parts.exists() and ledgers[1].read_text() == begun
    evaluate(model, parts, *plan, "--shard", "2/2")
    assert ledgers[1].read_text().startswith(begun + "\n")
    one, two = (json.loads(path.read_text()) for path in (layers_out, parts))
    costs = {"seconds", "pre_run_seconds", "cpu_gb", "gpu_gb"}
    for run, measured in one["runs"].items():
        for name in measured.keys() - costs:
            assert measured[name] == two["runs"][run][name], (run, name)


def test_the_controls(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "controls.json"
    assert evaluate(model, out, "--what", "controls", "--seed", "1") == 0
    values = json.loads(out.read_text())
    runs = values["runs"]
    assert runs["oracle"]["psnr_bg"]["mean"] > 28 and runs["oracle_decoded"]["psnr_bg"]["mean"] is None
    assert runs["oracle"]["success"]["mean"] == 1
    for run in (
        "vanilla_own",
        "ours_shared",
        "ours_own",
        "only_foreground",
        "all_layers",
        "random_layers",
        "truth",
    ):
        costs = {
            name: runs[run][name]["mean"] for name in ("seconds", "pre_run_seconds", "cpu_gb", "cache_gb")
        }
        assert all(math.isfinite(cost) for cost in costs.values()), run
        assert (costs["pre_run_seconds"] > 0) == (costs["cache_gb"] > 0) == (run != "vanilla_own")
        assert costs["seconds"] > costs["pre_run_seconds"] and costs["cpu_gb"] > 0.05
    assert runs["all_layers"]["cache_gb"]["mean"] > runs["random_layers"]["cache_gb"]["mean"]
    assert list(values["figures"]) == list(values["bars"]) == [figure.name for figure in FIGURES]
    assert list(values["endpoint"]) == ["badge_gain", "cells_gain", "action_drop", "offpalette_ratio"]
    assert values["against"]["ours_own"] == "vanilla_own" and "vanilla_shared" not in values["against"]
    shown, written = capsys.readouterr().out, (tmp_path / "controls.md").read_text()
    assert all(f"\n{run} " in shown and f"\n| {run} " in written for run in runs)
    assert "Endpoint" in shown and "Endpoint" in written


def test_the_grid(model: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.json"
    assert evaluate(model, out, "--what", "grid", "--calibration", str(calibration)) == 0
    values = json.loads(out.read_text())
    cells = {f"tau={tau} {size}" for tau in (3, 5, 10, 15) for size in ("small", "paper", "large")}
    assert set(values["runs"]) == {"vanilla_shared", "ours_shared", *cells}
    read_at = [
        re.match(r"tau (\d) of 4, as noisy as", values["about"][f"tau={tau} paper"]) for tau in (3, 15)
    ]
    assert [found and int(found[1]) for found in read_at] == [0, 1]
    assert all(values["runs"][cell]["pre_run_seconds"]["mean"] > 0 for cell in cells)


def test_the_options(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "options.json"
    assert evaluate(model, out, "--what", "options") == 0
    values = json.loads(out.read_text())
    assert set(values["against"].values()) == {"ours_shared", "vanilla_shared"}
    assert values["against"]["ours_shared"] == "vanilla_shared"
    assert {"normalize=False", "min_similarity=0.5", "branches=both", "noise=own"} <= set(
        values["differences"]
    )
    assert values["differences"]["refresh=True"].keys() == values["runs"]["refresh=True"].keys()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--what", "grid"), "goes by a ranking of layers"),
        (("--what", "controls", "--calibration", "."), "needs no ranking"),
        (("--what", "layers", "--calibration", "nowhere"), "nowhere/figures/vital.json holds no ranking"),
        (("--out", "here.md"), "here.md does not end in"),
        (("--groups", "0"), "at least one group"),
    ],
)
def test_flags_that_do_not_go_together(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: tuple[str, ...], sentence: str
) -> None:
    assert evaluate(model, tmp_path / "out.json", *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_not_trained_on_the_stage_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    foreign = untrained(model, tmp_path / "foreign")
    assert evaluate(foreign, tmp_path / "results" / "out.json") == 2
    said = capsys.readouterr().err
    assert "foreign was not trained on the stage" in said and "training.json" in said and "--model" in said
    assert list(tmp_path.iterdir()) == [foreign]
