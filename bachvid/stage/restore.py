"""From a folder that `export` wrote back to a training's work folder: shipped weights can learn on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bachvid.models.checkpoint import open_checkpoint
from bachvid.stage.train_dit import DiTTask
from bachvid.stage.train_text import TextTask
from bachvid.stage.train_vae import VAETask
from bachvid.stage.training import State, Task, Work, snapshot


def restore(folder: Path, work: Work, make: Callable[[str], Task]) -> list[str]:
    """Write a checkpoint of every part of the model in `folder` that the work folder has none of; returns
    their names.

    `make` gives a part's task. What is not shipped begins anew: optimizers, encoded clips, and the head that
    the text encoder was trained with. ValueError where the folder is not such a model's, or another's.
    """
    shipped, record = open_checkpoint(folder), folder / "training.json"
    if not record.exists():
        raise ValueError(f"{record} is missing: only a model that `bachvid stage train` wrote can learn on")
    history = json.loads(record.read_text(encoding="utf-8"))["parts"]
    trained: dict[str, Callable[[], Any]] = {
        VAETask.name: shipped.vae,
        TextTask.name: lambda: shipped.text_encoder().model,
        DiTTask.name: shipped.transformer,
    }
    missing = [part for part in trained if work.load(part) is None]
    if TextTask.name in missing:
        shutil.copytree(folder / "tokenizer", work.folder / "tokenizer", dirs_exist_ok=True)
    for part in missing:
        task = make(part)
        learner: Any = task.model.encoder if part == TextTask.name else task.model
        weights = trained[part]().state_dict()
        if shapes(weights) != shapes(learner.state_dict()):
            raise ValueError(f"the {part} in {folder} has other shapes: give the folder of the very --model")
        learner.load_state_dict(weights)
        work.save(part, snapshot(task, deepcopy(task.model), past(history[part])))
    return missing


def shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """What must be equal for weights to fit."""
    return {name: weight.shape for name, weight in weights.items()}


def past(part: dict[str, Any]) -> State:
    """Where a part's training stood, from the record that `export` kept of it."""
    return State(
        step=part["steps"],
        optimizers_from=part["steps"],
        seconds=60 * part["minutes"],
        curve=part["curve"],
        inspections=part["measured"],
        recipes=part["recipes"],
    )
