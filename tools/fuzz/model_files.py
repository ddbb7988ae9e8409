"""Damaged model files, made from the tiny models: every damage has a name, and is made again from it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .values import GONE, paths, with_part

STEM = "fuzz"
WEB_PAGE = b"<!DOCTYPE html><html><body>404</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
TOKENIZER_TENSORS = {"spiece_model": "tokenizer.model", "tokenizer.json": "tokenizer.json"}
DTYPES = {"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "u8": torch.uint8, "i8": torch.int8}
DTYPES |= {"bool": torch.bool, "f64": torch.float64, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
DTYPES |= {"complex": torch.complex64}
CONFIG_LEAVES = {
    "None": None,
    "x": "x",
    "empty": "",
    "list": [],
    "ones": [1] * 12,
    "dict": {},
    "minus_1": -1,
    "0": 0,
    "1.5": 1.5,
    "1e308": 1e308,
    "million_million": 10**12,
    "bigint": 10**30,
    "True": True,
    "nan": float("nan"),
    "inf": float("inf"),
    "gone": GONE,
}
JSON_BYTES = {
    "empty": b"",
    "cut": b'{"a": ',
    "null": b"null",
    "number": b"5",
    "list": b"[]",
    "object": b"{}",
    "text": b'"a"',
    "utf16": b"\xff\xfe{\x00}\x00",
    "latin": b'{"a": "\xe9"}',
    "mark_before": b"\xef\xbb\xbf{}",
    "nul": b"\x00" * 100,
    "deep": b"[" * 100_000,
    "deep_object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge_int": b'{"a": ' + b"9" * 5000 + b"}",
    "half": b'{"a": "\\ud83d"}',
    "tokens": b'{"added_tokens_decoder": {"x": 5}, "model": 5, "added_tokens": [5]}',
    "tokens_null": b'{"added_tokens_decoder": {"1": null}, "model": null, "added_tokens": null}',
    "ids": b'{"[DET]": "x", "<image>": -1, "a": 1e999}',
    "ids_huge": b'{"[DET]": 1000000000000, "<image>": null}',
    "weight_map": b'{"weight_map": {"a": 5, "b": null}}',
    "weight_map_list": b'{"weight_map": []}',
    "weight_map_climbs": b'{"weight_map": {"a": "../../../etc/passwd"}}',
}


@dataclass(frozen=True)
class Target:
    """A file that a loader reads: its node and input, its folder in models/, and the tiny model that stands for it."""

    node: str
    input: str
    folder: str
    file: str
    folders: bool = True  # whether it is also published as a folder
    unused: tuple[str, ...] = ()  # prefixes of tensors that the graph behind the loader does not read


TARGETS = (
    Target("MuLanLoader", "text_encoder", "text_encoders", "tiny_internvl.safetensors"),
    Target("MuLanLoader", "adapter", "mulan", "tiny_sd15_adapter.safetensors", folders=False),
    Target(
        "InternVLLoader",
        "checkpoint",
        "internvl",
        "tiny_internvl_vision.safetensors",
        unused=("clip_projector2.", "qllama.", "query_tokens"),
    ),
    Target("InternVLChatLoader", "checkpoint", "internvl_chat", "tiny_internvl_chat.safetensors"),
    Target("VisionLLMLoader", "checkpoint", "visionllm", "tiny_visionllm.safetensors"),
)
Make = Callable[["Tiny", Path], object]  # writes the file or folder at the path


class Tiny:
    """A tiny model in memory."""

    def __init__(self, path: Path):
        self.bytes = path.read_bytes()
        self.tensors = load_file(path)
        with safe_open(path, "pt") as file:
            self.metadata = dict(file.metadata() or {})
        self.config = json.loads(self.metadata.get("config", "{}"))

    @property
    def floats(self) -> list[str]:
        return sorted(name for name, tensor in self.tensors.items() if tensor.is_floating_point())

    def save(self, path: Path, tensors: dict | None = None, config=None, **metadata: str) -> None:
        told = {**self.metadata, **metadata}
        if config is not None:
            told["config"] = config if isinstance(config, str) else json.dumps(config)
        kept = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in (self.tensors if tensors is None else tensors).items()
        }
        save_file(kept, path, told)

    def publish(self, folder: Path, config=None) -> None:
        """As a folder: config.json, two shards with their index, the tokenizer's files."""
        folder.mkdir()
        weights = {name: tensor for name, tensor in self.tensors.items() if name not in TOKENIZER_TENSORS}
        names, weight_map = sorted(weights), {}
        for number, part in enumerate((names[::2], names[1::2]), 1):
            shard = f"model-{number:05}-of-00002.safetensors"
            save_file({name: weights[name].contiguous() for name in part}, folder / shard)
            weight_map |= dict.fromkeys(part, shard)
        told = dict(self.config if config is None else config)
        for name, content in (told.pop("tokenizer", None) or {}).items():
            (folder / name).write_text(json.dumps(content), "utf-8")
        (folder / "config.json").write_text(json.dumps(told), "utf-8")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
        for tensor, name in TOKENIZER_TENSORS.items():
            if tensor in self.tensors:
                (folder / name).write_bytes(self.tensors[tensor].numpy().tobytes())


@dataclass(frozen=True)
class Damage:
    """`suffix`: of the file, "" for a folder. `answers`: False where an answer would be wrong without a word."""

    suffix: str
    make: Make
    answers: bool = True


def damages(target: Target, tiny: Tiny) -> dict[str, Damage]:
    """All damages of one file, by name."""
    found: dict[str, Damage] = {"file:right": Damage(".safetensors", lambda tiny, path: tiny.save(path))}
    for name, content in _contents(tiny).items():
        for suffix in (".safetensors", ".pth"):
            found[f"bytes:{name}{suffix}"] = Damage(suffix, _writes(content), answers=False)
    for name, header in _headers().items():
        found[f"header:{name}"] = Damage(".safetensors", _writes(header), answers=False)
    found |= _tensors(tiny) | _pickles(tiny) | _configs(tiny)
    found["file:folder"] = Damage(".safetensors", lambda tiny, path: path.mkdir(), answers=False)
    found["file:link_loop"] = Damage(".safetensors", lambda tiny, path: path.symlink_to(path.name), answers=False)
    if target.folders:
        found |= _folders(tiny)
    return {
        name: replace(damage, answers=True) if name.split(":")[-1].startswith(target.unused) else damage
        for name, damage in found.items()
    }


def _writes(content: bytes) -> Make:
    return lambda tiny, path: path.write_bytes(content)


def _contents(tiny: Tiny) -> dict[str, bytes]:
    whole = tiny.bytes
    return {
        "empty": b"",
        "one": b"\x80",
        "seven": b"\x80" * 7,
        "zeros": b"\x00" * 4096,
        "web_page": WEB_PAGE,
        "pointer": POINTER,
        "json": b'{"a": 1}',
        "text": b"hello\n" * 1000,
        "zip": b"PK\x03\x04" + b"\x00" * 100,
        "gguf": b"GGUF" + b"\x03\x00\x00\x00" + b"\x00" * 64,
        "pickle_code": b"cos\nsystem\n(S'true'\ntR.",
        "cut_8": whole[:8],
        "cut_100": whole[:100],
        "cut_half": whole[: len(whole) // 2],
        "cut_last": whole[:-1],
        "longer": whole + b"\x00" * 100,
        "flipped_header": whole[:20] + b"\xff" * 10 + whole[30:],
    }


def _headers() -> dict[str, bytes]:
    def header(text: bytes, data: bytes = b"\x00" * 64) -> bytes:
        return struct.pack("<Q", len(text)) + text + data

    return {
        "huge_length": struct.pack("<Q", 2**62) + b"{}",
        "zero_length": struct.pack("<Q", 0),
        "no_tensors": header(b"{}", b""),
        "list": header(b"[]", b""),
        "deep": header(b'{"a":' + b"[" * 100_000, b""),
        "offsets_swapped": header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}'),
        "offsets_past": header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80000]}}'),
        "overlap": header(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        ),
        "shape_negative": header(b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'),
        "shape_huge": header(b'{"a":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,8]}}'),
        "dtype_unknown": header(b'{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}'),
        "metadata_number": header(
            b'{"__metadata__":{"config":5},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        ),
    }


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    return lambda tiny, path: tiny.save(path, {**tiny.tensors, name: change(tiny.tensors[name])})


def _with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[0] = value
    return spoilt


SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scalar": lambda t: t.reshape(-1)[0].clone(),
    "flat": lambda t: t.flatten(),
    "extra_dim": lambda t: t[None],
    "extra_dims": lambda t: t[None, None, None],
    "row": lambda t: torch.cat([t, t[:1]]) if t.ndim else t[None],
    "less": lambda t: t[:-1] if t.ndim else t[None],
    "zero": lambda t: t[:0] if t.ndim else t[None][:0],
    "turned": lambda t: t.movedim(0, -1) if t.ndim > 1 else t[:, None] if t.ndim else t[None],
    "twice": lambda t: torch.cat([t, t]) if t.ndim else t[None],
}


def _tensors(tiny: Tiny) -> dict[str, Damage]:
    found: dict[str, Damage] = {}
    for name in sorted(tiny.tensors):
        for kind, change in SHAPES.items():
            same = change(tiny.tensors[name]).shape == tiny.tensors[name].shape  # then nobody can tell
            found[f"shape:{kind}:{name}"] = Damage(".safetensors", _changed(name, change), answers=same)

        def without(tiny, path, name=name):
            tiny.save(path, {other: tensor for other, tensor in tiny.tensors.items() if other != name})

        found[f"missing:{name}"] = Damage(".safetensors", without)
        for kind, dtype in DTYPES.items():
            whole = not (dtype.is_floating_point or dtype == tiny.tensors[name].dtype)
            change = lambda t, dtype=dtype: t.to(dtype)
            found[f"dtype:{kind}:{name}"] = Damage(".safetensors", _changed(name, change), answers=not whole)
    for name in tiny.floats:
        for kind, value in (("nan", float("nan")), ("inf", float("inf"))):
            change = lambda t, value=value: _with_value(t, value)
            found[f"{kind}:{name}"] = Damage(".safetensors", _changed(name, change), answers=False)
    for kind, dtype in DTYPES.items():

        def all_of(tiny, path, dtype=dtype):
            tiny.save(path, {name: t.to(dtype) if name in tiny.floats else t for name, t in tiny.tensors.items()})

        found[f"all_dtype:{kind}"] = Damage(".safetensors", all_of, answers=dtype.is_floating_point)

    def extra(**tensors):
        return lambda tiny, path: tiny.save(path, {**tiny.tensors, **tensors})

    def renamed(change):
        return lambda tiny, path: tiny.save(path, {change(name): tensor for name, tensor in tiny.tensors.items()})

    one, first = torch.zeros(1), sorted(tiny.tensors)[0]
    found["extra:tensor"] = Damage(".safetensors", extra(**{"not.known": one}))
    found["extra:odd_names"] = Damage(".safetensors", extra(**{"": one, ".": one, "\u2028": one, "a" * 5000: one}))
    for number in ("x", "-1", "99", "1.5", "99999999999999999999", "\u0663"):
        layered = next((name for name in tiny.tensors if ".layers." in name or ".blocks." in name), first)
        parts = [number if part.isdigit() else part for part in layered.split(".")]
        found[f"extra:layer:{number}"] = Damage(".safetensors", extra(**{".".join(parts): tiny.tensors[layered]}))
    found["names:prefixed"] = Damage(".safetensors", renamed("module.".__add__))
    found["names:upper"] = Damage(".safetensors", renamed(str.upper), answers=False)
    found["names:numbers"] = Damage(".safetensors", renamed(lambda name: str(zlib.crc32(name.encode()))), answers=False)
    found["names:odd"] = Damage(".safetensors", lambda tiny, path: tiny.save(path, {"": one, ".": one}), answers=False)
    found["tensors:none"] = Damage(".safetensors", lambda tiny, path: tiny.save(path, {}), answers=False)
    return found


def _pickles(tiny: Tiny) -> dict[str, Damage]:
    first = tiny.floats[0]

    def saves(change: Callable[[dict], object]) -> Make:
        return lambda tiny, path: torch.save(change(dict(tiny.tensors)), path)

    made: dict[str, tuple[Callable[[dict], object], bool]] = {
        "right": (lambda tensors: tensors, True),
        "empty": (lambda tensors: {}, False),
        "list": (list, False),
        "none": (lambda tensors: None, False),
        "tensor": (lambda tensors: torch.zeros(3), False),
        "number": (lambda tensors: 5, False),
        "int_keys": (lambda tensors: dict(enumerate(tensors.values())), False),
        "mixed_keys": (lambda tensors: {**tensors, 5: torch.zeros(1)}, True),
        "tuple_key": (lambda tensors: {**tensors, (1, 2): torch.zeros(1)}, True),
        "state_dict": (lambda tensors: {"state_dict": tensors}, True),
        "nested": (lambda tensors: {"model": {"module": tensors}}, True),
        "values_none": (lambda tensors: {**tensors, first: None}, False),
        "values_list": (lambda tensors: {**tensors, first: [1.0]}, False),
        "values_number": (lambda tensors: {**tensors, first: 5}, False),
        "extra_number": (lambda tensors: {**tensors, "epoch": 5}, True),
        "meta": (lambda tensors: {name: t.to("meta") for name, t in tensors.items()}, False),
        "one_meta": (lambda tensors: {**tensors, first: tensors[first].to("meta")}, False),
        "sparse": (lambda tensors: {**tensors, first: tensors[first].float().to_sparse()}, False),
        "quantized": (
            lambda tensors: {**tensors, first: torch.quantize_per_tensor(tensors[first].float(), 0.1, 0, torch.qint8)},
            False,
        ),
        "complex": (lambda tensors: {**tensors, first: tensors[first].to(torch.complex64)}, False),
        "bool": (lambda tensors: {**tensors, first: tensors[first].bool()}, False),
        "nan": (lambda tensors: {**tensors, first: torch.full_like(tensors[first], float("nan"))}, False),
        "parameters": (
            lambda tensors: {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in tensors.items()},
            True,
        ),
        "expanded": (
            lambda tensors: {
                **tensors,
                first: tensors[first]
                .reshape(-1)[:1]
                .expand_as(tensors[first].reshape(-1))
                .reshape(tensors[first].shape),
            },
            True,
        ),
        "module": (lambda tensors: torch.nn.Linear(2, 2), False),
    }
    return {f"pickle:{name}": Damage(".pth", saves(change), answers) for name, (change, answers) in made.items()}


def _configs(tiny: Tiny) -> dict[str, Damage]:
    found: dict[str, Damage] = {}
    if "config" not in tiny.metadata:
        return found
    for name, content in JSON_BYTES.items():
        text = content.decode("utf-8", "replace")
        make = lambda tiny, path, text=text: tiny.save(path, config=text or " ")
        found[f"config:{name}"] = Damage(".safetensors", make)
    for place in paths(tiny.config):
        for name, leaf in CONFIG_LEAVES.items():
            make = lambda tiny, path, place=place, leaf=leaf: tiny.save(
                path, config=with_part(tiny.config, place, leaf)
            )
            found[f"config:{'/'.join(map(str, place))}={name}"] = Damage(".safetensors", make)
    return found


def _folders(tiny: Tiny) -> dict[str, Damage]:
    found: dict[str, Damage] = {"folder:right": Damage("", lambda tiny, path: tiny.publish(path))}
    names = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    names += [name for tensor, name in TOKENIZER_TENSORS.items() if tensor in tiny.tensors]
    if "tokenizer" in tiny.config:
        names += ["tokenizer_config.json", "added_tokens.json"]

    def spoilt(name: str, change: Callable[[Path], object]) -> Make:
        def make(tiny: Tiny, path: Path) -> None:
            tiny.publish(path)
            (path / name).unlink(missing_ok=True)
            change(path / name)

        return make

    def folder_too(file: Path) -> None:
        file.mkdir()

    def loop(file: Path) -> None:
        file.symlink_to(file.name)

    def dangling(file: Path) -> None:
        file.symlink_to("gone")

    for name in names:
        ways: dict[str, Callable[[Path], object]] = {
            "gone": lambda file: None,
            "folder": folder_too,
            "link_loop": loop,
            "link_dangling": dangling,
        }
        for kind, content in JSON_BYTES.items():
            ways[f"bytes_{kind}"] = lambda file, content=content: file.write_bytes(content)
        ways["web_page"] = lambda file: file.write_bytes(WEB_PAGE)
        ways["pointer"] = lambda file: file.write_bytes(POINTER)
        for kind, change in ways.items():
            found[f"folder:{name}:{kind}"] = Damage("", spoilt(name, change))
    for place in paths(tiny.config):
        for name, leaf in CONFIG_LEAVES.items():

            def make(tiny, path, place=place, leaf=leaf):
                tiny.publish(path, with_part(tiny.config, place, leaf))

            if place[0] != "tokenizer":
                found[f"folder:config:{'/'.join(map(str, place))}={name}"] = Damage("", make)
    found["folder:empty"] = Damage("", lambda tiny, path: path.mkdir(), answers=False)
    return found


def remove(path: Path) -> None:
    """Remove the file, link or folder of a case, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write(damage: Damage, tiny: Tiny, path: Path) -> None:
    """Write beside and rename, as downloads do."""
    part = path.with_name(path.name + ".part")
    damage.make(tiny, part)
    os.replace(part, path)
