"""An accelerator that is not there: tensors that say they lie on another device and compute on the CPU.

    with elsewhere():
        main(["run", "--device", str(DEVICE), ...])

It is as strict as the strictest real one. No operation but a copy may mix its tensors with the CPU's, single
numbers excepted, and those only where they are no view: on MPS, PyTorch 2.13 takes a view of any entry of a
table for the table's first. And it knows no float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # a name that PyTorch knows; what our code only outlines on it gets values here
COPIES = ("copy_", "_to_copy")


class There(Tensor):
    """A tensor on `DEVICE`, whose values lie in `here`."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        if here.dtype is torch.float64:
            raise TypeError(f"{DEVICE} knows no float64")
        there = cls._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(op, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Sees also what makes tensors."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(op, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """Makes tensors of numbers on the CPU first: PyTorch has no values to give those on the meta device."""

    def __torch_function__(self, made: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if made is torch.Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if made is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return made(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return made(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """While this lasts, `DEVICE` can be computed on."""
    with FromNumbers(), Everywhere():
        yield


def carried_out(op: Any, args: Any, kwargs: Any) -> Any:
    """What the operation gives, on the device that it belongs to."""
    name, found = op.overloadpacket.__name__, tree_leaves((args, kwargs))
    there = any(isinstance(each, There) for each in found)
    if there and name not in COPIES and any(is_stranger(each) for each in found):
        raise RuntimeError(f"{op} mixes devices")
    out = op(*tree_map(here, args), **tree_map(here, kwargs))
    asked = kwargs.get("device")
    if name == "_local_scalar_dense" or not (there if asked is None else asked == DEVICE):
        return out
    out = tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, out)
    return return_and_correct_aliasing(op, args, kwargs, out) if there else out


def is_stranger(each: Any) -> bool:
    """Whether it is a tensor that must not meet those on `DEVICE`."""
    near = isinstance(each, Tensor) and not isinstance(each, There)
    return near and bool(each.ndim or each.storage_offset())


def here(each: Any) -> Any:
    """The CPU in place of `DEVICE`."""
    if isinstance(each, There):
        return each.here
    return torch.device("cpu") if isinstance(each, torch.device) and each == DEVICE else each
