"""Runs held against each other: all that was measured, paired differences, and agreement beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bachvid.evaluate.figures import (
    ENDPOINT,
    Bars,
    Figure,
    Interval,
    Measured,
    everything_of,
    figures_of,
    share_of_way,
)
from bachvid.evaluate.runs import Run

FLOOR = "shuffled"  # the run whose agreement is chance
MODEL = ("vanilla", "mask", "match")  # what is measured of no run
CORRECTED = ("cells", "hidden", "attributes", "badge")  # agreements of 0..1, of which chance has its part

ByRun = Mapping[str, Mapping[str, Interval]]  # by run and measure


@dataclass(frozen=True)
class Comparison:
    """What a plan's runs came to over some groups."""

    groups: int
    figures: Mapping[str, Interval]  # those that were asked for
    runs: ByRun
    differences: ByRun  # paired, of a run to the one that it is held against
    corrected: ByRun  # (agreement - chance) / (1 - chance), where a run measures chance
    endpoint: Mapping[str, Interval]  # the figures of `ENDPOINT`, where their runs are there
    model: ByRun  # what was measured of the model alone, of its masks and of its matches

    @classmethod
    def of(
        cls, runs: Sequence[Run], groups: Sequence[Measured], seed: int, figures: Sequence[Figure] = ()
    ) -> Comparison:
        """The comparison of runs that were measured in all these groups, and these figures."""
        measured = {run.name: [_of_run(run.name, group) for group in groups] for run in runs}
        against = {
            run.name: run.against for run in runs if run.against in measured and run.against != run.name
        }
        controlled = FLOOR in measured
        return cls(
            groups=len(groups),
            figures=figures_of(groups, seed, figures),
            runs={name: everything_of(found, seed) for name, found in measured.items()},
            differences={
                name: everything_of(list(map(_difference, measured[name], measured[base])), seed)
                for name, base in against.items()
            },
            corrected={name: _beyond_chance(name, groups, seed) for name in measured} if controlled else {},
            endpoint=figures_of(groups, seed, ENDPOINT) if controlled else {},
            model={name: everything_of([_of_run(name, group) for group in groups], seed) for name in MODEL},
        )


def where_all_succeeded(runs: Sequence[Run], groups: Sequence[Measured]) -> list[Measured]:
    """The groups in which every video of every run succeeded: there no run gains by losing what is hard."""
    return [group for group in groups if all(group[f"{run.name}.success"] == 1 for run in runs)]


def _of_run(name: str, group: Measured) -> Measured:
    """What was measured of one run."""
    found = {key.rpartition("."): value for key, value in group.items()}
    return {measure: value for (run, _, measure), value in found.items() if run == name}


def _difference(ours: Measured, theirs: Measured) -> Measured:
    """In one group, what both runs have measures of."""
    return {measure: ours[measure] - theirs[measure] for measure in ours if measure in theirs}


def _beyond_chance(name: str, groups: Sequence[Measured], seed: int) -> Mapping[str, Interval]:
    whatever = Bars(0, 0)
    shares = [
        Figure(measure, share_of_way(name, FLOOR, measure), "higher", whatever) for measure in CORRECTED
    ]
    return figures_of(groups, seed, shares)
