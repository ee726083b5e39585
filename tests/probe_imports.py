"""Imports the modules its arguments name, in turn, and prints as JSON what else each import did.

Run by test_house.py in an interpreter of its own, for what is imported once cannot be watched again.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings

# What the package stands on is imported first: only what our own lines do is to be seen.
import av  # noqa: F401
import einops  # noqa: F401
import numpy as np
import safetensors.torch  # noqa: F401
import sentencepiece  # noqa: F401
import torch
import tqdm  # noqa: F401
import transformers  # noqa: F401

SLOW = ("transformers.modeling_utils", "matplotlib")
ACTS = {"os.chdir", "os.mkdir", "os.remove", "os.rename", "os.system", "socket.connect", "subprocess.Popen"}


def main(modules: list[str]) -> None:
    sys.argv = ["probe", "--no-such-flag"]  # whoever parses arguments on import ends the process
    acts: list[str] = []
    sys.addaudithook(lambda event, args: acts.append(f"{event} {args[0]}") if is_act(event, args) else None)
    report = {}
    for module in modules:
        acts.clear()
        before = state()
        report[module] = [*import_aloud(module), *acts]
        after = state()
        changed = [key for key in before | after if before.get(key) != after.get(key)]
        report[module] += [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]
    json.dump(report, sys.stdout)


def import_aloud(module: str) -> list[str]:
    """What a module said while it was imported, if anything."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(module)
        except SystemExit:
            said.write("ended the process")
    return [said.getvalue()] if said.getvalue() else []


def is_act(event: str, args: tuple[object, ...]) -> bool:
    """Whether an audit event reaches out of the interpreter; opening a file does if it is to be written."""
    if event == "open":
        flags = args[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ACTS


def state() -> dict[str, str]:
    """Everything of the process that an import of ours must leave alone, as text."""
    return {
        # These take seconds, and the first makes folders: only a function that needs one may import it.
        "slow libraries": repr([name for name in SLOW if name in sys.modules]),
        **{f"environment {name}": value for name, value in os.environ.items()},
        "sys.path": repr(sys.path),
        "threads": repr(threading.enumerate()),
        "signal handlers": repr([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]),
        "warning filters": repr((len(warnings.filters), warnings.filters[:1])),
        "logging": repr((logging.root.level, logging.root.handlers)),
        "random state": str(hash(random.getstate())),
        "numpy random state": str(hash(np.random.get_state()[1].tobytes())),
        "torch random state": str(hash(torch.get_rng_state().numpy().tobytes())),
        "torch threads": repr((torch.get_num_threads(), torch.get_num_interop_threads())),
        "torch default dtype": repr(torch.get_default_dtype()),
        "torch default device": repr(torch.get_default_device()),
        "torch gradients": repr(torch.is_grad_enabled()),
        "torch determinism": repr(torch.are_deterministic_algorithms_enabled()),
        "torch matmul precision": repr(torch.get_float32_matmul_precision()),
        "torch cudnn": repr((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
