"""Weights on disk: read tensor by tensor from one file or from shards, and put into a model strictly."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from bachvid.models.layouts import SAME, Layout, Rows

SAFE = (".safetensors",)
PICKLED = (".pt", ".pth", ".bin")
WRAPPERS = ("module", "model", "state_dict")  # what training frameworks wrap the tensors in
QUANTISED = re.compile(r"scale_weight|weight_scale|scale_input|scaled_fp8|absmax|quant_")  # names of scales
PREFIX = "model.diffusion_model."  # and put before their names
SCALED = "scaled_fp8"  # a tensor that marks ComfyUI's 8 bits: other weights have a scale beside them

Model = TypeVar("Model", bound=nn.Module)


class WeightsError(ValueError):
    """Weights that are missing, damaged, or not those of the model they are wanted for."""


def load(
    build: Callable[[], Model],
    weights: Weights,
    layout: Layout = SAME,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    wide: tuple[str, ...] = (),
) -> Model:
    """The model that `build` makes, in eval mode; its parameters are read, cast and moved one by one.

    Of .safetensors and of PyTorch's newer archives, one tensor at a time is in memory beside the model.
    Parameters with a name part in `wide` stay float32. Raises WeightsError unless every stored tensor that
    the layout keeps is used, every parameter found and every shape equal.
    """
    with torch.device("meta"):
        model = build()
    assert not list(model.buffers()), "a buffer is in no file, and one made on meta is empty"
    sources = {name: layout.source(name) for name, _ in model.named_parameters()}
    _check_names(weights, {source.name for source in sources.values()}, layout)
    _check_shapes(weights, {sources[name]: parameter.shape for name, parameter in model.named_parameters()})
    filled: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        kept = kept_dtype(name, dtype, wide)
        tensor = weights.read(sources[name]).to(device, kept, copy=True)  # a copy: no view keeps a file open
        filled[id(parameter)] = nn.Parameter(tensor)
    for module in model.modules():  # by identity, so what was one parameter in two places still is
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, filled[id(parameter)])
    return model.eval()


def kept_dtype(name: str, dtype: torch.dtype, wide: Iterable[str]) -> torch.dtype:
    """What a parameter of a model in `dtype` is held in: float32 where a part of its name is in `wide`."""
    return torch.float32 if set(wide) & set(name.split(".")) else dtype


class Weights:
    """The tensors in a file, or in a folder with one file or shards: names and shapes now, values when read.

    What training frameworks put around the tensors and their names is taken off, and weights in ComfyUI's 8
    bits are read at their scale. Raises WeightsError for files that are missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored: dict[str, _Stored] = {}
        for file, expected in weight_files(path).items():
            found = dict(_safetensors(file) if file.suffix in SAFE else _pickled(file))
            if expected is not None and expected != set(found):
                raise WeightsError(
                    f"{file} does not hold the {len(expected)} tensors that the index beside it lists "
                    f"({_some(expected ^ set(found))} differ); fetch both again"
                )
            twice = set(found) & set(self._stored)
            if twice:
                raise WeightsError(
                    f"{path} holds {_some(twice)} in more than one file; keep one set of weights"
                )
            self._stored.update(found)
        self._stored = {name.removeprefix(PREFIX): stored for name, stored in self._stored.items()}
        if SCALED in self._stored:
            self._stored = dict(_with_scales(self._stored))
        self.shapes = {name: stored.shape for name, stored in self._stored.items()}

    def read(self, source: Rows) -> Tensor:
        """The values of a tensor, or of the rows that `source` takes of it; maybe a view of the file."""
        stored = self._stored[source.name]
        if source.of == 1:
            values = stored.values[...]
        else:
            rows = stored.shape[0] // source.of
            values = torch.cat([stored.values[block * rows : (block + 1) * rows] for block in source.blocks])
        return values if stored.scale is None else values.float() * stored.scale[...].float()


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    values: Any  # sliced, gives a tensor: a slice of a safetensors file, or a mapped tensor
    scale: Any = None  # one number that all of them are to be multiplied by, stored alike


def _with_scales(stored: Mapping[str, _Stored]) -> Iterator[tuple[str, _Stored]]:
    """The tensors of a model in ComfyUI's 8 bits, with the scales of those that have one.

    What its own arithmetic in 8 bits would need is left out.
    """
    for name, tensor in stored.items():
        if name == SCALED or name.endswith((".scale_weight", ".scale_input")):
            continue
        part, _, kind = name.rpartition(".")
        scale = stored.get(f"{part}.scale_{kind}")  # of a weight; nothing else has one
        yield name, tensor._replace(scale=None if scale is None else scale.values)


def weight_files(path: Path) -> dict[Path, set[str] | None]:
    """The files that hold the tensors of `path`, each with the names it must hold where an index says so."""
    if path.is_file():
        return {path: None}
    if not path.is_dir():
        raise WeightsError(f"{path} does not exist; fetch the checkpoint again, or give another folder")
    for suffixes in (SAFE, PICKLED):
        indices = [file for suffix in suffixes for file in sorted(path.glob(f"*{suffix}.index.json"))]
        if len(indices) > 1:
            raise WeightsError(f"{path} has more than one index: {_some(f.name for f in indices)}; keep one")
        if indices:
            return _shards(indices[0])
        if files := files_in(path, suffixes):
            return dict.fromkeys(files)
    raise WeightsError(f"{path} holds no {' '.join(SAFE + PICKLED)} file; fetch the checkpoint again")


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files with one of these endings, in their order."""
    return [file for file in sorted(folder.iterdir()) if may_hold_weights(file, suffixes)]


def may_hold_weights(file: Path, suffixes: Iterable[str]) -> bool:
    """Whether a file has one of these endings, and is not hidden as what downloads and file systems leave."""
    return file.suffix in suffixes and not file.name.startswith(".")


def find_kinds(
    paths: Iterable[Path], kinds: Mapping[str, Callable[[Mapping[str, tuple[int, ...]]], bool]]
) -> dict[str, list[Path]]:
    """The sets of weights that are of each kind, which is told by the names and shapes of their tensors.

    Files that cannot be read may be anybody's, such as an optimizer's. Only where some kinds are found and
    others are not, the first of them is thought to be what is missing, and its WeightsError is raised.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in kinds}
    unread = []
    for path in paths:
        try:
            shapes = Weights(path).shapes
        except WeightsError as error:
            unread.append(error)
            continue
        if kind := next((kind for kind, fits in kinds.items() if fits(shapes)), None):
            found[kind].append(path)
    if unread and any(found.values()) and not all(found.values()):
        raise unread[0]
    return found


def _shards(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index} has no weight_map; fetch it again")
    shards: dict[Path, set[str] | None] = {}
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        # A name out of a file must not lead out of the folder.
        if shard != Path(shard).name or "\\" in shard or not shard.endswith(SAFE + PICKLED):
            raise WeightsError(f"{index} names {shard!r}, which is no weights file beside it; fetch it again")
        if not (index.parent / shard).is_file():
            raise WeightsError(f"{index.parent / shard} is missing, {index.name} lists it; fetch it again")
        shards[index.parent / shard] = {name for name, where in weight_map.items() if where == shard}
    return shards


def _safetensors(file: Path) -> Iterator[tuple[str, _Stored]]:
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(_damaged(file, error)) from error
    for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
        values = handle.get_slice(name)
        yield name, _Stored(tuple(values.get_shape()), values)


def _pickled(file: Path) -> Iterator[tuple[str, _Stored]]:
    try:
        with file.open("rb") as opened:
            mapped = opened.read(2) == b"PK"  # PyTorch's older format, which is no archive, cannot be
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} holds more than tensors, and could run code, so it stays shut; save it as .safetensors"
        ) from error
    except Exception as error:  # what no pickle is fails in many ways, of which IndexError is one
        raise WeightsError(_damaged(file, error)) from error
    while isinstance(state, dict) and (inner := next((key for key in WRAPPERS if key in state), None)):
        state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(values, Tensor) for values in state.values()):
        raise WeightsError(f"{file} is no table of tensors; give a file that is, best as .safetensors")
    for name, values in state.items():
        yield name, _Stored(tuple(values.shape), values)


def _damaged(file: Path, error: Exception) -> str:
    if not file.exists():
        return _nowhere(file)
    with file.open("rb") as opened:
        if opened.read(19) == b"version https://git":
            return f"{file} is a pointer to a large file, not the file; run `git lfs pull` in {file.parent}"
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return f"{file} ({file.stat().st_size:,} bytes) cannot be read: {reason}; fetch it again"


def _nowhere(file: Path) -> str:
    """What to do about a file that is not there, though there may be a link to it."""
    if file.is_symlink():
        return (
            f"{file} is a link to {file.readlink()}, which is not there; copy the checkpoint with what "
            "its links lead to (cp -rL), or fetch it again"
        )
    return f"{file} is missing; fetch the checkpoint again"


def _check_names(weights: Weights, wanted: set[str], layout: Layout) -> None:
    stored = {name for name in weights.shapes if layout.keeps(name)}
    missing, extra = wanted - stored, stored - wanted
    if missing or extra:
        if scales := {name for name in extra if QUANTISED.search(name)}:
            raise WeightsError(
                f"{weights.path} is quantised (it has {_some(scales)}); give the weights as they were before"
            )
        what = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(extra)} too many"] * bool(extra)
        raise WeightsError(
            f"{weights.path} does not fit its config: it {' and '.join(what)}; take both from one download"
        )


def _check_shapes(weights: Weights, wanted: Mapping[Rows, torch.Size]) -> None:
    for source, shape in wanted.items():
        whole = (shape[0] // len(source.blocks) * source.of, *shape[1:])
        if weights.shapes[source.name] != whole:
            raise WeightsError(
                f"{weights.path} does not fit its config: {source.name} is {weights.shapes[source.name]} "
                f"instead of {whole}; take both from one download"
            )


def _some(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    first, rest = sorted(names)[:3], sorted(names)[3:]
    return ", ".join(first) + (f" and {len(rest):,} more" if rest else "")


def count(pattern: str, names: Mapping[str, object]) -> int:
    """How many numbers from 0 on the names have where the pattern has its group."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def only(found: list[Path], what: str, folder: Path, from_where: str) -> Path:
    """The one path that was found; WeightsError if there is none, which says what to fetch, or more."""
    if not found:
        raise WeightsError(f"{folder} holds no {what}; put {from_where} there")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise WeightsError(f"{folder} must hold one {what}, and there is {names}; keep the one you want")
    return found[0]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises WeightsError if there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(_nowhere(file)) from error
    except ValueError as error:
        raise WeightsError(f"{file} is not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file} holds no JSON object; fetch it again")
    return values


def read_config(file: Path, key: str, *known: str, fix: str = "put the right part there") -> dict[str, Any]:
    """The values of a config file, which must say under `key` that it is of a known kind."""
    values = read_json(file)
    if values.get(key) not in known:
        raise WeightsError(f"{file} describes a {values.get(key)}, not a {' or '.join(known)}; {fix}")
    return values


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, like `save` all at once."""
    _replace(file, (json.dumps(values, indent=2) + "\n").encode())


def save(tensors: Mapping[str, Tensor], file: Path, **about: str) -> None:
    """Write a safetensors file, `about` in its header; a reader sees the old file or the new, never a half.

    It has the permissions of any new file: safetensors' own writer would keep it from everyone else.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(file, serialised(plain, {"format": "pt", **about}))


def _replace(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
