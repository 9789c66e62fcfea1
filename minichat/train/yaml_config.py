"""YAML → frozen dataclasses, and back. What is unknown or of the wrong type is an error that names the field."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from minichat.errors import SettingsError, sentence

T = TypeVar("T")


class _Reader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as people mean it (in YAML 1.1 it is a word), and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """What a text of YAML holds. Raises `SettingsError`, naming the line, where it is none; `where` begins it."""
    try:
        return yaml.load(text, _Reader)  # a SafeLoader
    except RecursionError:
        raise SettingsError(f"{where} is nested too deeply to be read: it should hold keys and their values.") from None
    except ValueError as error:  # a date that there is not, or a number of thousands of digits
        raise SettingsError(f"{where} holds a value that cannot be read ({sentence(error)}): correct it.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise SettingsError(f"{line} is no YAML ({getattr(error, 'problem', None) or error}): correct it.") from None


def write_yaml(value: Any) -> str:
    """A dataclass as YAML that `build` reads back equal."""
    held = plain(value)
    readable: str = yaml.safe_dump(held, sort_keys=False, allow_unicode=True)
    # PyYAML writes some kinds of white space as they are and reads them back as a space.
    return readable if yaml.safe_load(readable) == held else str(yaml.safe_dump(held, sort_keys=False))


def plain(value: Any) -> Any:
    """Dataclasses and tuples as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# --- Names of settings from before the first release: read for one release more, and what they are now is told.
#
# Keys by their dotted names, with their parents by the new names and without the numbers of lists.


_KEYS = {
    "pretraining": "qformer",
    "qformer.new.queries": "num_queries",
    "qformer.new.contrast_width": "embed_dim",
    "vision.contrast": "contrastive_weight",
    "language.start": "initialize_from",
    "language.vocabulary": "vocab_size",
    "language.context": "context_length",
    "language.feed_forward": "intermediate_size",
    "model.checkpoint_llm": "gradient_checkpointing",
    "model.vision_checkpoint": "vision_gradient_checkpointing",
    "model.vision_drop_path": "vision_drop_path_rate",
    "data.train.form": "format",
    "data.validation.form": "format",
    "data.stream": "streaming",
    "data.max_tokens": "max_length",
    "data.max_reply_tokens": "max_reply_length",
    "data.features": "feature_cache",
    "data.workers": "num_workers",
    "optimizer.matrices": "name",
    "optimizer.rate": "lr",
    "optimizer.floor": "min_lr",
    "optimizer.warmup_rate": "warmup_lr",
    "optimizer.clip": "max_grad_norm",
    "lora.targets": "target_modules",
    "run.steps": "max_steps",
    "run.device_batch_size": "micro_batch_size",
    "report.pictures": "samples",
}
_VALUES = {
    "stage": {"replies": "finetune", "pretraining": "qformer", "naming": "word_alignment"},
    "data.train.format": {"drawn": "synthetic"},
    "data.validation.format": {"drawn": "synthetic"},
}


def new_names(content: Any, told: dict[str, str], name: str = "") -> Any:
    """The same content, a configuration or what is in it at `name`, in new names; `told` gets old → new.

    Raises `SettingsError` where a setting is there by both.
    """
    if isinstance(content, list):
        return [new_names(item, told, name) for item in content]
    if not isinstance(content, dict):
        now = _VALUES.get(name, {}).get(content) if isinstance(content, str) else None
        if now is not None:
            told[f"{name}: {content}"] = f"{name}: {now}"
        return content if now is None else now
    made = {}
    for key, value in content.items():
        old = _join(name, key)
        now = _KEYS.get(old, key)
        new = name if str(key).isdigit() else _join(name, now)
        if now != key:
            if now in content:
                raise SettingsError(f"{old} is the old name of {new}, and both are given: drop {old}.")
            told[old] = new
        made[now] = new_names(value, told, new)
    return made


# --- What is given beside a file: `key.sub=value`.


def override(content: dict[str, Any], assignments: Iterable[str], told: dict[str, str]) -> None:
    """Put each `key.sub=value` into nested dicts and lists; the value is read as YAML, old names by the new ones.

    Raises `SettingsError` for what is no assignment, or leads through something that holds no keys.
    """
    spelled: dict[tuple[str, ...], str] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SettingsError(f"{assignment!r} is no setting: write key.sub=value, such as optimizer.lr=1e-4.")
        value: Any = read_yaml(text, path)
        for key in reversed(keys):
            value = {key: value}
        value = new_names(value, told)
        now = []
        for _ in keys:
            ((key, value),) = value.items()
            now.append(key)
        if (before := spelled.setdefault(tuple(now), path)) != path:
            raise SettingsError(f"{before} and {path} are names of one setting, and both are given: drop one.")
        _put(content, now, value)


def _put(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    path = ".".join(keys)
    place: Any = content
    for number, part in enumerate(keys):
        key: Any = part
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                shown = ".".join(keys[:number])
                raise SettingsError(f"{path}: {shown} is a list of {len(place)}; {part!r} is not in it.")
            key = int(part)
        elif not isinstance(place, dict):
            raise SettingsError(f"{path}: {'.'.join(keys[:number])} is {place!r}, which holds no keys.")
        if number == len(keys) - 1:
            place[key] = value
        elif isinstance(place, dict):
            place[key] = place.get(key)
            if place[key] is None:
                place[key] = {}
        place = place[key]


# --- Nested dicts → dataclasses.


def build(kind: type[T], content: Any, name: str = "") -> T:
    """Make the dataclass `kind` of nested dicts; fields that are not given keep their defaults.

    A list of one may be given as that one alone, and a dataclass with one required field as that field's text.
    Raises `SettingsError` for an unknown key, naming the nearest known one, and for a value of the wrong type.
    """
    if not isinstance(content, Mapping):
        raise SettingsError(f"{name or 'The configuration'} is {content!r}; it must hold keys and their values.")
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise SettingsError(f"{_join(name, key)} is not known; {_nearest(str(key), hints, name)}")
    given = {str(key): _read(hints[key], value, _join(name, key)) for key, value in content.items()}
    if missing := [field for field in _required(kind) if field not in given]:
        raise SettingsError(f"{_join(name, missing[0])} is missing: give it.")
    return kind(**given)


def _read(kind: Any, value: Any, name: str) -> Any:
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in members:
            return None
        (kind,) = (member for member in members if member is not types.NoneType)
        return _read(kind, value, name)
    if origin is typing.Literal:
        if value not in members or isinstance(value, bool):
            raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(map(str, members))}.")
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        return tuple(_read(members[0], item, f"{name}.{number}") for number, item in enumerate(items))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise SettingsError(f"{name} is {value!r}; it must hold keys and their values.")
        return {
            key: item if members[1] is Any else _read(members[1], item, _join(name, key)) for key, item in value.items()
        }
    if dataclasses.is_dataclass(kind):
        if isinstance(value, str) and len(required := _required(kind)) == 1:
            value = {required[0]: value}
        return build(typing.cast("type[Any]", kind), value, name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"{name} is {value!r}; it must be {_WORDS[kind]}.")
    return value


def need(held: bool, name: str, value: object, wanted: str) -> None:
    """Raise `SettingsError` for the field `name` where `held` is false."""
    if not held:
        raise SettingsError(f"{name} is {value!r}; it must be {wanted}.")


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _required(kind: Any) -> list[str]:
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _nearest(key: str, known: Mapping[str, Any], name: str) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {_join(name, close[0])}?" if close else f"known here are {', '.join(known)}."
