"""Saved posteriors and checkpoints damaged in many ways, and what becomes of loading them.

A damage changes files in place, drawn from a generator, and says whether a load may give other numbers than were saved:
only one that puts new digests on what it changed may.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bayeslora_pyro.adapters import PEFT_CONFIG, PEFT_TENSORS
from bayeslora_pyro.checkpoints import SIGNED
from bayeslora_pyro.digests import digest_of_file, signed
from bayeslora_pyro.folders import CONFIG, TENSORS

FILES = (CONFIG, TENSORS, PEFT_CONFIG, PEFT_TENSORS)

Damage = Callable[[Path, random.Random], None]


def resign(folder: Path) -> None:
    """Puts the digests of what a folder holds now into its record, as somebody would who forges one."""
    path = folder / CONFIG
    record = json.loads(path.read_text())
    if isinstance(record, dict) and isinstance(record.get("sha256"), dict):
        for name in set(record["sha256"]) & (set(FILES) - {CONFIG}):
            record["sha256"][name] = digest_of_file(folder / name)
        record = signed(record, CONFIG)
    path.write_text(json.dumps(record))


def truncate(path: Path, source: random.Random) -> None:
    """Cuts a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: source.randrange(len(data))])


def flip(path: Path, source: random.Random) -> None:
    """Flips one to eight bits."""
    data = bytearray(path.read_bytes())
    for _ in range(source.choice((1, 1, 1, 2, 8))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(data)


def overwrite(path: Path, source: random.Random) -> None:
    """Overwrites a stretch with zeros or noise, as a broken disk does."""
    data = bytearray(path.read_bytes())
    start, size = source.randrange(len(data)), source.randrange(1, 512)
    noise = bytes(size) if source.random() < 0.5 else source.randbytes(size)
    data[start : start + size] = noise
    path.write_bytes(data)


def reshape(path: Path, source: random.Random) -> None:
    """Gives a file of tensors a tensor that is missing, of another shape, dtype or name, or not finite."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    if SIGNED in metadata:  # as an earlier version wrote it
        metadata = {"header": metadata[SIGNED].partition(" ")[2]}
    tensors = load_file(path)
    name = source.choice(sorted(tensors))
    value = tensors.pop(name)
    changes: dict[str, Callable[[], Any]] = {
        "gone": dict,
        "renamed": lambda: {f"{name}x": value},
        "flat": lambda: {name: value.reshape(-1).repeat(2)},
        "empty": lambda: {name: value.reshape(-1)[:0]},
        "deep": lambda: {name: value.reshape(1, 1, *value.shape)},
        "half": lambda: {name: value.to(torch.float16)},
        "whole": lambda: {name: value.to(torch.int64)},
        "more": lambda: {
            name: value,
            source.choice(("model.x", "optimizer.x.y", "snapshot.-1.z")): value.clone(),
        },
    }
    save_file(tensors | changes[source.choice(sorted(changes))](), path, metadata)


HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2**50,
    2**63,
    10**30,
    -(10**30),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\ud800",
    "x" * 100_000,
    "../../../../etc/passwd",
    "__import__('os').system('touch hacked')",
    "os.system",
    "antigravity",
    [],
    {},
    [[]],
    {"__class__": "os.system"},
    {"__reduce__": ["os.system", ["touch hacked"]]},
)


def poison(value: Any, source: random.Random) -> Any:
    """Replaces one place of some JSON by something hostile."""
    places = list(_places(value))
    owner, key = source.choice(places)
    owner[key] = source.choice(HOSTILE)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(pairs):
        yield value, key
        yield from _places(child)


def nest(path: Path, source: random.Random) -> None:
    """Nests one value of a JSON file deeply."""
    text = path.read_text()
    place = text.index(":", source.randrange(len(text) // 2)) + 1
    depth = source.choice((200, 900, 2_000, 100_000))
    path.write_text(text[:place] + "[" * depth + "]" * depth + ", " + json.dumps("x") + ":" + text[place:])


def poison_json(path: Path, source: random.Random) -> None:
    """Puts something hostile into a JSON file."""
    path.write_text(json.dumps(poison(json.loads(path.read_text()), source)))


PEFT_FIELDS: dict[str, tuple[Any, ...]] = {
    "megatron_config": ({}, {"tensor_model_parallel_size": 1}),
    "megatron_core": ("antigravity",),
    "auto_mapping": ({"base_model_class": "system", "parent_library": "antigravity"},),
    "base_model_name_or_path": ("/nowhere", "../../etc", 3),
    "init_lora_weights": ("eva", "loftq", "pissa", "olora", "corda", "gaussian"),
    "layers_to_transform": ([0], "all", [10**30]),
    "modules_to_save": (["bert"], [""]),
    "r": (0, -1, 2**50, "2"),
    "rank_pattern": ({".*": 5}, {"(a+)+$": 1}, {"(": 1}),
    "target_modules": ("all-linear", ".*", "(", [], "x" * 10_000),
    "use_dora": (True,),
}


def hostile_peft(path: Path, source: random.Random) -> None:
    """Sets fields of PEFT's configuration that make it do more than load."""
    config = json.loads(path.read_text())
    for name in source.sample(sorted(PEFT_FIELDS), 2):
        config[name] = source.choice(PEFT_FIELDS[name])
    path.write_text(json.dumps(config))


def change_version(path: Path, source: random.Random) -> None:
    """Gives the record another format."""
    record = json.loads(path.read_text())
    record["format"] = source.choice((0, 1, 2, 4, 9, 2**70, -1, 1.5, 3.0, "3", None, True, [3]))
    path.write_text(json.dumps(record))


FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


class Watch:
    """Counts what would be the execution of foreign code: shells, pickles, sockets, and imports of new modules.

    An audit hook cannot be taken off, so there is one for the process, which only counts while it is asked to.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._active = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Any) -> None:
        if not self._active:
            return
        is_new = event == "import" and str(arguments[0]).partition(".")[0] not in sys.modules
        if is_new or event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.80}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._active = True
        try:
            yield
        finally:
            self._active = False
