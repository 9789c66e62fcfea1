"""YAML → frozen dataclasses, and back. All that is wrong is told at once, each with its place."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import yaml

from minichat.errors import SettingsError, sentence

T = TypeVar("T")


# --- YAML → nested dicts that know where their keys stand, and back.


class Section(dict[Any, Any]):
    """A mapping that was read. `places`: where each of its keys stands, by its text; `place`: where it begins."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, str] = {}


class _Reader(yaml.SafeLoader):
    """YAML whose plain values are what people mean by them, and in which a key stands once."""

    where = ""
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # filled below

    def place(self, node: yaml.Node) -> str:
        return self.where if self.where == GIVEN else f"{self.where}:{node.start_mark.line + 1}"

    def section(self, node: yaml.MappingNode) -> Iterator[Section]:
        made = Section(self.place(node))
        yield made  # a reference to it may stand within it
        made.update(self.construct_mapping(node))
        made.places = {str(self.construct_object(key)): self.place(key) for key, _ in node.value}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key, _ in reversed(node.value) if keys.count(key.value) > 1), None):
            what = f"the key {twice.value!r} is there twice"
            raise yaml.constructor.ConstructorError(None, None, what, twice.start_mark)
        return super().construct_mapping(node, deep)

    def whole(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        try:
            return int(text, 0 if text[1:2].isalpha() else 10)
        except ValueError:
            what = "a whole number is none, or has thousands of digits"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


class _Writer(yaml.SafeDumper):
    """Puts into quotation marks what either this reader or one of YAML 1.1 would take for anything but a text."""


#: What a plain value must be like to be no text, and the characters with which it begins. As in YAML 1.2's core schema
#: (https://yaml.org/spec/1.2.2/#103-core-schema) `010` is ten, `yes` a word, and `1:30` and a date are texts; YAML 1.1
#: reads eight, true and ninety. `1_000` is a number here, too, as in YAML 1.1 and Python, and `1e-4`, which 1.1 lacks.
_NUMBER = "[0-9]+(?:_[0-9]+)*"
_PLAIN = {
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (rf"[-+]?{_NUMBER}|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+", "-+0123456789"),
    "float": (
        rf"[-+]?(?:\.{_NUMBER}|{_NUMBER}(?:\.(?:{_NUMBER})?)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


_Reader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag.rpartition(":")[2] in ("null", "merge")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_form, _first) in _PLAIN.items():
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_form})\Z"), list(_first))
_Reader.add_constructor("tag:yaml.org,2002:int", _Reader.whole)
_Reader.add_constructor("tag:yaml.org,2002:map", _Reader.section)

#: The place of what no file holds.
GIVEN = "command line"


def read_yaml(text: str, where: str) -> Any:
    """What a text of YAML holds; mappings are `Section`s. `where`: the file's name, or `GIVEN`.

    Raises `SettingsError`, naming the line, where it is no YAML.
    """
    try:
        loader = _Reader(text)
        loader.where = where
        return loader.get_single_data()
    except RecursionError:
        raise SettingsError(f"{where} is nested too deeply to be read: it should hold keys and their values.") from None
    except ValueError as error:  # a date that there is not, or a number of thousands of digits
        raise SettingsError(f"{where} holds a value that cannot be read ({sentence(error)}): correct it.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark and where != GIVEN else where
        raise SettingsError(f"{line} is no YAML ({getattr(error, 'problem', None) or error}): correct it.") from None


def write_yaml(value: Any) -> str:
    """A dataclass as YAML that `build` reads back equal."""
    held = plain(value)
    readable: str = yaml.dump(held, Dumper=_Writer, sort_keys=False, allow_unicode=True)
    # PyYAML writes some kinds of white space as they are and reads them back as a space.
    return readable if yaml.safe_load(readable) == held else str(yaml.dump(held, Dumper=_Writer, sort_keys=False))


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

    Where a setting is there by both, the old one is left, and `build` refuses it.
    """
    if isinstance(content, list):
        return [new_names(item, told, name) for item in content]
    if not isinstance(content, dict):
        value = _VALUES.get(name, {}).get(content) if isinstance(content, str) else None
        if value is not None:
            told[f"{name}: {content}"] = f"{name}: {value}"
        return content if value is None else value
    made = Section(getattr(content, "place", ""))
    places = getattr(content, "places", {})
    for key, value in content.items():
        old = _join(name, key)
        now: Any = _KEYS.get(old, key)
        now = key if now in content else now
        new = name if str(key).isdigit() else _join(name, now)
        if now != key:
            told[old] = new
        made[now] = new_names(value, told, new)
        made.places[str(now)] = places.get(str(key), made.place)
    return made


# --- What is given beside a file: `key.sub=value`.


def override(content: dict[str, Any], assignments: Iterable[str], told: dict[str, str]) -> None:
    """Put each `key.sub=value` into nested dicts and lists; the value is read as YAML, old names by the new ones.

    Raises `SettingsError` for what is no assignment, or leads through something that holds no keys.
    """
    spelled: dict[tuple[Any, ...], str] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SettingsError(f"{assignment!r} is no setting: write key.sub=value, such as optimizer.lr=1e-4.")
        value: Any = _given(text, path)
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


def _given(text: str, path: str) -> Any:
    try:
        return read_yaml(text, GIVEN)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


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
        if isinstance(place, Section) and (number == len(keys) - 1 or place.get(key) is None):
            place.places[key] = GIVEN
        if number == len(keys) - 1:
            place[key] = value
        elif isinstance(place, dict):
            place[key] = place.get(key)
            if place[key] is None:
                place[key] = Section(GIVEN)
        place = place[key]


# --- Nested dicts → dataclasses, and all that is wrong with them.


class Problem(NamedTuple):
    """What is wrong with a setting."""

    name: str
    """The setting, as seen from the dataclass that checks it; none: that one as a whole."""
    text: str
    """The rest of a sentence that begins with the name."""
    others: tuple[str, ...] = ()
    """Other settings that it hangs on: where one of those is wrong itself, this is not told."""


class ConfigError(SettingsError):
    """Settings that cannot be: one sentence, or a line for each with its place."""

    def __init__(self, problems: Sequence[Problem], place: Callable[[str], str] = lambda name: "") -> None:
        self.problems = list(problems)
        places = [f"{at}: " if (at := place(problem.name)) else "" for problem in problems]
        told = [f"{at}{p.name or 'The configuration'} {p.text}" for at, p in zip(places, problems, strict=True)]
        many = f"{len(told)} settings cannot be as they are:"
        super().__init__(told[0] if len(told) == 1 else "\n  ".join([many, *told]))


class Checked:
    """A dataclass that tells all that is wrong with it, and cannot be made where anything is."""

    def __post_init__(self) -> None:
        """Raises `ConfigError`."""
        if found := list(self.problems()):
            raise ConfigError(found)

    def problems(self) -> Iterator[Problem]:
        """None, unless a dataclass has something to check."""
        return iter(())


def need(held: bool, name: str, value: object, wanted: str, *others: str) -> Iterator[Problem]:
    """The problem with the setting `name` where `held` is false."""
    if not held:
        yield Problem(name, f"is {value!r}; it must be {wanted}.", others)


def build(kind: type[T], content: Any, file: str = "") -> T:
    """Make the dataclass `kind` of nested dicts; fields that are not given keep their defaults.

    A list of one may be given as that one alone, and a dataclass with one required field as that field's text.
    Raises `ConfigError` with every unknown key, naming the nearest known one, every value of the wrong type, and all
    that the dataclasses find; each with its place, which is `file` where `content` knows no better.
    """
    builder = _Builder(kind)
    made: T = builder.make(kind, content, "")
    if builder.problems:
        raise ConfigError(builder.problems, lambda name: _place(content, name, file))
    return made


def _place(content: Any, name: str, file: str) -> str:
    """Where a setting stands, or what it would be in."""
    place = file
    for part in name.split("."):
        if isinstance(content, list):
            content = content[int(part)] if part.isdigit() and int(part) < len(content) else None
            place = getattr(content, "place", place)
        elif isinstance(content, Section) and part in content.places:
            place, content = content.places[part], content.get(part)
        elif not part.isdigit():  # a list of one may stand without its brackets
            break
    return place


class _Builder:
    """Makes dataclasses and goes on after what is wrong, so that all of it is found."""

    def __init__(self, kind: type[Any]) -> None:
        self.problems: list[Problem] = []
        self._wrong: list[str] = []  # names of what cannot be judged any more
        self._known = list(_keys(kind, ""))

    def make(self, kind: type[Any], content: Any, name: str) -> Any:
        """An instance, unchecked where something is wrong with it; None where a field of it is missing."""
        if not isinstance(content, Mapping):
            self._note(name, f"is {content!r}; it must hold keys and their values.")
            return None
        hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
        values: dict[str, Any] = {}
        for key, value in content.items():
            if key not in hints:
                self._unknown(str(key), hints, name)
                continue
            before = len(self.problems)
            read = self._read(hints[key], value, _join(name, key))
            if len(self.problems) == before or dataclasses.is_dataclass(read):
                values[key] = read
        for field in (field for field in fields if field.name not in values):
            if field.default is not dataclasses.MISSING:
                values[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                values[field.name] = field.default_factory()
            elif field.name not in content:
                self._note(_join(name, field.name), "is missing: give it.")
        if len(values) < len(fields):
            return None
        made = object.__new__(kind)  # without its own checks, which would end at the first that has something to tell
        vars(made).update(values)
        for problem in made.problems():
            names = [_join(name, problem.name), *problem.others]
            if not any(_touch(one, wrong) for one in names for wrong in self._wrong):
                self._note(names[0], problem.text)
        return made

    def _read(self, kind: Any, value: Any, name: str) -> Any:
        origin, members = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            if value is None and types.NoneType in members:
                return None
            (kind,) = (member for member in members if member is not types.NoneType)
            return self._read(kind, value, name)
        if origin is typing.Literal:
            if value not in members or isinstance(value, bool):
                self._note(name, f"is {value!r}; it must be one of {', '.join(map(str, members))}.")
            return value
        if origin is tuple:
            items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            return tuple(self._read(members[0], item, _join(name, number)) for number, item in enumerate(items))
        if origin is dict:
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                self._note(name, f"is {value!r}; it must hold keys and their values.")
                return value
            whole = members[1] is Any
            return {key: plain(v) if whole else self._read(members[1], v, _join(name, key)) for key, v in value.items()}
        if dataclasses.is_dataclass(kind):
            if isinstance(value, str) and len(required := _required(kind)) == 1:
                value = {required[0]: value}
            return self.make(typing.cast("type[Any]", kind), value, name)
        if kind is float and type(value) is int:
            return float(value)
        if kind is int and type(value) is float and value.is_integer():  # 1e4
            return int(value)
        if kind is bool and isinstance(value, str):
            value = _SWITCHES.get(value.lower(), value)
        if type(value) is not kind:
            quote = ", in quotation marks" if kind is str and isinstance(value, bool | int | float) else ""
            self._note(name, f"is {value!r}; it must be {_WORDS[kind]}{quote}.")
        return value

    def _note(self, name: str, text: str) -> None:
        self.problems.append(Problem(name, text))
        self._wrong.append(name)

    def _unknown(self, key: str, known: Mapping[str, Any], name: str) -> None:
        """A key that there is not; what was meant by it is not judged either."""
        if new := _KEYS.get(".".join(part for part in _join(name, key).split(".") if not part.isdigit())):
            self._note(_join(name, key), f"is the old name of {_join(name, new)}, and both are given: drop it.")
            return
        elsewhere = [other for other in self._known if other.rpartition(".")[2] == key]
        close = [_join(name, other) for other in difflib.get_close_matches(key, known, n=1, cutoff=0.5)]
        meant = (elsewhere or close)[:1]
        hint = f"did you mean {meant[0]}?" if meant else f"known here are {', '.join(known)}."
        self._note(_join(name, key), f"is not known; {hint}")
        self._wrong += meant


def _keys(kind: Any, name: str) -> Iterator[str]:
    """The dotted names of all settings that are no list's."""
    for key, hint in typing.get_type_hints(kind).items():
        yield _join(name, key)
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                yield from _keys(inner, _join(name, key))


def _touch(name: str, other: str) -> bool:
    """Whether one of the two settings is the other or in it."""
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}  # which YAML 1.1 reads so, as a text everywhere else
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _required(kind: Any) -> list[str]:
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def _join(name: str, key: object) -> str:
    return ".".join(str(part) for part in (name, key) if part != "")
