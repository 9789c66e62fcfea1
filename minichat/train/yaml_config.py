"""YAML → frozen dataclasses, and back. What is unknown or of the wrong type is an error that names the field."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Hashable, Mapping
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


def override(content: dict[str, Any], assignment: str) -> None:
    """Put `key.sub=value` into nested dicts and lists; the value is read as YAML.

    Raises `SettingsError` for what is no assignment, or leads through something that holds no keys.
    """
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise SettingsError(f"{assignment!r} is no setting: write key.sub=value, such as optimizer.rate=1e-4.")
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
            place[key] = read_yaml(text, path)
        elif isinstance(place, dict):
            place[key] = place.get(key)
            if place[key] is None:
                place[key] = {}
        place = place[key]


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
        return value
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
