"""What the three trainings share: one resumable loop, its budget, its processes, its log and its checkpoints.

A part (VAE, text encoder, DiT) is a `Task`: a model, its optimizers, and a loss for step number n. Everything
random in step n is drawn from a generator seeded by n, so a run that was killed and goes on ends with the
weights it would have had.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

CHECKPOINT_SECONDS = 60.0
INSPECT_SECONDS = 600.0
LOG_SECONDS = 20.0


@dataclass(frozen=True)
class Pace:
    """Learning rates and weight averaging over a training."""

    warmup: int = 50  # steps
    decay: float = 0.45  # the last share of the budget, over which the rates fall linearly to nothing
    lap: float = 1.0  # what a lap begins with, of the full rates: see `Budget`
    ema: float = 0.998  # of every step, while the rates are full
    last_ema: float = 0.9995  # at the end, where the weights hardly move
    clip: float = 1.0  # largest norm of a gradient

    def rate(self, step: int, progress: float) -> float:
        """What to multiply every learning rate with; steps count from where the optimizers were new."""
        return min((step + 1) / self.warmup, (1 - progress) / self.decay, 1.0)

    def average(self, step: int, progress: float) -> float:
        """How much of the averaged weights stays; less in the first steps, soon worthless."""
        falling = max(0.0, 1 - (1 - progress) / self.decay)
        return min(self.ema + (self.last_ema - self.ema) * falling, (1 + step) / (10 + step))


PACE = Pace()


Facts = Mapping[str, float | Tensor]  # to ask a GPU for a number is to wait for it: only the log does


class Task(Protocol):
    """One part's training, as the loop sees it."""

    @property
    def name(self) -> str: ...

    @property
    def recipe(self) -> Any:
        """A dataclass of every number of the training, a `pace` among them."""
        ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizers(self) -> Sequence[Optimizer]: ...

    @property
    def counts(self) -> dict[str, int]:
        """What else a checkpoint must hold for the next steps to be the same."""
        ...

    def begin(self, averaged: nn.Module) -> None:
        """What is left to do when weights are loaded; no clock runs yet."""
        ...

    def loss(self, step: int, progress: float) -> tuple[Tensor, Facts]:
        """The loss of one batch of this process, and numbers for the log."""
        ...

    def inspect(self, model: nn.Module) -> dict[str, Any]:
        """Measurements on held-out material, of the averaged weights."""
        ...


@dataclass
class State:
    """Where a training stands; everything that a checkpoint holds beside weights and optimizers."""

    step: int = 0
    optimizers_from: int = 0  # the step at which they were new: what is shipped has none
    seconds: float = 0.0
    lap: float | None = None  # the seconds at which it began, while one is under way: see `Budget`
    curve: list[list[float]] = field(default_factory=list)  # [step, seconds, loss], every LOG_SECONDS
    inspections: list[dict[str, Any]] = field(default_factory=list)
    recipes: list[dict[str, Any]] = field(default_factory=list)  # each with the step from which it held

    def note(self, recipe: Any) -> None:
        """Keep the recipe that holds from here on, unless it is the one that did."""
        numbers = asdict(recipe)
        if not self.recipes or self.recipes[-1]["recipe"] != numbers:
            self.recipes.append({"from_step": self.step, "recipe": numbers})


@dataclass(frozen=True)
class Budget:
    """How long a part trains; one of three.

    `minutes` and `steps` count from the very beginning; two runs of as many steps are equal to the last bit.
    `more` are minutes of a lap: the last of a training, in which the rates fall to nothing, run once more
    from wherever it stands, on a faster machine perhaps. It begins with the rates that its pace says.
    """

    minutes: float | None = None
    steps: int | None = None
    more: float | None = None

    def begin(self, state: State) -> None:
        """Begin a lap, unless one that was killed is still to be ended."""
        if self.more is not None and state.lap is None:
            state.lap = state.seconds

    def progress(self, state: State, seconds: float, pace: Pace) -> float:
        """The share that is spent, 0 to 1. A later run with a larger budget falls back to a smaller share."""
        if self.steps is not None:
            share = state.step / self.steps
        elif self.more is not None:
            spent = (seconds - (state.lap or 0.0)) / (60 * self.more or 1e-9)
            share = 1 - pace.decay * pace.lap * (1 - spent)
        else:
            share = seconds / (60 * (self.minutes or 1e-9))
        return min(share, 1.0)


class Work:
    """The folder of a training: checkpoints `PART.pt` and a log of JSON lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, **event: Any) -> None:
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **event})
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a checkpoint so that a kill at any time leaves the old one or the new one."""
        path = self.folder / f"{name}.pt"
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, name: str) -> dict[str, Any] | None:
        """The latest checkpoint, or None before the first."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        return torch.load(path, map_location="cpu", weights_only=True)

    def need(self, name: str) -> dict[str, Any]:
        """The latest checkpoint; ValueError before the first."""
        saved = self.load(name)
        if saved is None:
            raise ValueError(f"{self.folder} has no trained {name} yet: run with --part {name} first")
        return saved


@dataclass(frozen=True)
class Team:
    """The processes that train one model together: each draws its own batches, gradients are averaged."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def seed(self, seed: int, step: int) -> int:
        """A seed that no other step, process or nearby base seed has."""
        return (seed * 1_000_003 + step) * 64 + self.rank

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, number: float) -> float:
        """The leader's number, in every process."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return shared.item()


def train(task: Task, budget: Budget, work: Work, team: Team) -> tuple[nn.Module, State]:
    """The averaged model after the whole budget, trained on from the latest checkpoint in `work`."""
    averaged = deepcopy(task.model).eval().requires_grad_(False)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in task.optimizers]
    state = resume(task, averaged, work)
    state.note(task.recipe)
    budget.begin(state)
    task.begin(averaged)
    if team.leads:
        work.log(training=task.name, event="start", step=state.step, spent=round(state.seconds))
    log, look, save = Every(LOG_SECONDS), Every(INSPECT_SECONDS), Every(CHECKPOINT_SECONDS)
    pace = task.recipe.pace
    while (progress := budget.progress(state, team.agree(state.seconds), pace)) < 1:
        began = time.monotonic()
        set_rates(task, rates, pace.rate(state.step - state.optimizers_from, progress))
        facts = one_step(task, averaged, state.step, progress, team)
        state.step += 1
        state.seconds += time.monotonic() - began
        if team.leads and log.due():
            report(task, state, work, {"progress": progress, **facts})
        if team.leads and look.due():
            inspect(task, averaged, state, work)
        if team.leads and save.due():
            work.save(task.name, snapshot(task, averaged, state))
    state.lap = None
    if team.leads:
        inspect(task, averaged, state, work)
        work.save(task.name, snapshot(task, averaged, state))
    return averaged, state


class Every:
    """Something that is due again and again, some seconds after the last time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so, the next time is counted from now."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


def set_rates(task: Task, full: Sequence[Sequence[float]], share: float) -> None:
    """Give every group of every optimizer its `share` of the full learning rate."""
    for optimizer, rates in zip(task.optimizers, full, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share


def one_step(task: Task, averaged: nn.Module, step: int, progress: float, team: Team) -> Facts:
    """Train on one batch; returns this process's loss and other numbers for the log."""
    loss, facts = task.loss(step, progress)
    loss.backward()
    gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
    team.average(gradients)
    norm = nn.utils.clip_grad_norm_(task.model.parameters(), task.recipe.pace.clip)
    for optimizer in task.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    keep = task.recipe.pace.average(step, progress)
    blend = get_ema_multi_avg_fn(keep)
    blend(list(averaged.parameters()), list(task.model.parameters()), 0)
    return {"loss": loss.detach(), "norm": norm, **facts}


def report(task: Task, state: State, work: Work, facts: Facts) -> None:
    """Log the numbers of a step and keep its loss for the training record."""
    state.curve.append([state.step, round(state.seconds, 1), round(float(facts["loss"]), 5)])
    rounded = {name: float(f"{float(fact):.4g}") for name, fact in facts.items()}
    work.log(training=task.name, step=state.step, **rounded)


def inspect(task: Task, averaged: nn.Module, state: State, work: Work) -> None:
    with torch.no_grad():
        found = task.inspect(averaged)
    entry = {"step": state.step, "seconds": round(state.seconds), **found}
    state.inspections.append(entry)
    work.log(training=task.name, event="inspect", **entry)


def snapshot(task: Task, averaged: nn.Module, state: State) -> dict[str, Any]:
    return {
        "model": task.model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in task.optimizers],
        "counts": task.counts,
        "state": vars(state),
    }


def resume(task: Task, averaged: nn.Module, work: Work) -> State:
    """The state of the latest checkpoint, its weights and optimizers loaded; a fresh one if there is none."""
    saved = work.load(task.name)
    if saved is None:
        return State()
    task.model.load_state_dict(saved["model"])
    averaged.load_state_dict(saved["averaged"])
    for optimizer, values in zip(task.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    task.counts.update(saved["counts"])
    return State(**saved["state"])
