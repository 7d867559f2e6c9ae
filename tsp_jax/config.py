"""Reads recipes of training, of any task: the pages in `configs/` and the flags that change them; and checks the result.

A recipe is a frozen dataclass. Its fields are sections, dataclasses themselves, and single values such as `seed`. A page's
function `get_config` returns its content as a ConfigDict, made by `page`. Flags are parsed here, not by
`ml_collections.config_flags`: it reads `sys.argv` alone, stops at the first mistake, and shows the traceback of a wrong page.
"""

import dataclasses
import difflib
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import ml_collections

FIRST_TASK = "encoder"  # the task of a config that names none, as those of version 0.1.0 do


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run reads, logs and saves. Nothing here changes what is learned, so a run may go on with other values.

    Attributes:
      log_every_steps: steps from one line of metrics to the next.
      checkpoint_every_steps: steps from one checkpoint to the next, besides each epoch's end; 0 for these alone.
      reader_processes: processes that read ahead; 0 for threads alone.
      reader_threads: batches that each process reads at once, by one thread each.
    """

    log_every_steps: int = 20
    checkpoint_every_steps: int = 1000
    reader_processes: int = 0
    reader_threads: int = 4


@typing.runtime_checkable
class AnyRecipe(Protocol):
    """A recipe's dataclass. Each field is a section, a dataclass itself, or a single value; `run: Run` is one of them."""

    @classmethod
    def mistakes(cls, values: Mapping[str, Any]) -> list[str]:
        """Returns a line for each value that makes no sense; `values` holds those of the right type by `section.key`."""
        ...


R = TypeVar("R", bound=AnyRecipe)


class Checks:
    """Collects a line for each value that makes no sense.

    Attributes:
      wrong: the lines.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.wrong: list[str] = []
        self._values = values

    def __call__(self, key: str, fits: Callable[[Any], bool], expected: str) -> None:
        """Checks a value, if it is there; `expected` says what fits, such as "a number above 0"."""
        if key in self._values and not fits(self._values[key]):
            self.wrong.append(f"{key}: expected {expected}, found {self._values[key]!r}")


def page(task: str, kind: type[AnyRecipe], sections: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a page's content with the defaults filled in, as a ConfigDict that flags may change.

    Args:
      task: the name of the recipe's task, a key of `train.TASKS`.
      kind: the recipe's dataclass.
      sections: keyword arguments of each section by its name, and single values.

    Raises:
      TypeError: a section or key is misspelt or missing.
      ValueError: `read` refuses a value.
    """
    known = _sections(kind)
    made = kind(**{name: known[name](**value) if name in known else value for name, value in sections.items()})
    content = ml_collections.ConfigDict({"task": task, **dataclasses.asdict(typing.cast(Any, made))}).lock()
    read(content, kind)
    return content


def load(spec: str) -> ml_collections.ConfigDict:
    """Returns the content of a page.

    Args:
      spec: the page's file, `configs/anet_tsp.py`; the page's arguments may follow it, `configs/anet_tsp.py:backbone=r3d_18`.

    Raises:
      FileNotFoundError: there is no such page.
      ValueError: the page can't be read.
    """
    file, colon, arguments = spec.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such page; expected a recipe such as configs/anet_tsp.py")
    try:
        return runpy.run_path(file)["get_config"](*([arguments] if colon else []))
    except KeyError as error:
        raise ValueError(f"{file}: no {error} in it; expected a page such as configs/anet_tsp.py") from error
    except (TypeError, SyntaxError, NameError, ImportError, AttributeError) as error:
        raise ValueError(f"{spec}: the page can't be read ({type(error).__name__}: {error})") from error


def change(content: ml_collections.ConfigDict, changes: Sequence[str], kind: type[AnyRecipe]) -> None:
    """Changes a page's content as flags ask.

    Args:
      content: the page's content.
      changes: `optim.epochs=4`, `optim.milestones=2,3`: a section's key, or a single value's name, and its value as text.
      kind: the recipe's dataclass.

    Raises:
      ValueError: one message with every change that is misspelt or not of the key's type.
    """
    keys, wrong = _keys(kind), []
    for item in changes:
        key, _, text = item.partition("=")
        section, _, name = key.rpartition(".")
        try:
            value = _from_text(text, keys[key])
            target: Any = content[section] if section else content
            target[name] = value
        except KeyError:
            close = difflib.get_close_matches(key, keys, n=2, cutoff=0.8)
            begin = key.partition(".")[0]
            singles = [known for known in keys if "." not in known]
            known = [known for known in keys if known.startswith(f"{begin}.")] or [*_sections(kind), *singles]
            hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
            wrong.append(f"{key}: unknown; {hint}")
        except TypeError as error:
            wrong.append(f"{key}: {error}")
    if wrong:
        raise ValueError("\n  ".join([f"the flags --config.… have {len(wrong)} mistakes:", *wrong]))


def read(content: ml_collections.ConfigDict, kind: type[R]) -> R:
    """Returns the recipe that a page's content describes.

    Raises:
      ValueError: one message with all that is wrong: missing and unknown keys, values of another type, impossible values.
    """
    found = {name: value for name, value in content.to_dict().items() if name != "task"}
    sections, keys = _sections(kind), _keys(kind)
    wrong = _differences(found.keys(), {*sections, *(key for key in keys if "." not in key)}, "")
    given = {name: value for name, value in found.items() if name not in sections}
    for name, section in sections.items():
        part = found.get(name, {})
        if not isinstance(part, dict):
            wrong.append(f"{name}: expected a section, found {part!r}")
            continue
        wrong += _differences(part.keys(), typing.get_type_hints(section).keys(), f"{name}.") if name in found else []
        given |= {f"{name}.{key}": value for key, value in part.items()}
    values = {}
    for key in keys.keys() & given.keys():
        try:
            values[key] = _convert(given[key], keys[key])
        except TypeError as error:
            wrong.append(f"{key}: {error}")
    wrong += _impossible_run(values) + kind.mistakes(values)
    if wrong:
        raise ValueError("\n  ".join([f"the config has {len(wrong)} mistakes:", *sorted(wrong)]))
    made = {
        name: section(**{field.name: values[f"{name}.{field.name}"] for field in dataclasses.fields(section)})
        for name, section in sections.items()
    }
    return kind(**made, **{key: value for key, value in values.items() if "." not in key})


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Returns lines that show where two recipes differ, both given as nested dicts. The section `run` is not compared."""

    def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
        leaves: dict[str, Any] = {"task": FIRST_TASK}
        for name, value in recipe.items():
            if isinstance(value, Mapping):
                leaves |= {f"{name}.{key}": item for key, item in value.items() if name != "run"}
            else:
                leaves[name] = value
        # JSON knows no tuples.
        return {key: list(value) if isinstance(value, tuple) else value for key, value in leaves.items()}

    left, right = flat(first), flat(second)
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return [f"{key}: {left.get(key)!r} there, {right.get(key)!r} here" for key in keys]


def describe(recipe: Mapping[str, Any]) -> list[str]:
    """Returns lines that show a whole recipe, given as nested dicts: one line for each section."""
    lines = []
    for name, value in recipe.items():
        text = ", ".join(f"{key}={item!r}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
        lines.append(f"  {name}: {text}")
    return ["config:", *lines]


def page_arguments(text: str | None, **choices: Sequence[Any]) -> types.SimpleNamespace:
    """Returns the arguments after a page's colon, such as `backbone=r3d_18,gvf=avg`.

    Args:
      text: the text after the colon; None if there is none.
      **choices: the values that each argument may have; the first is the default.

    Raises:
      ValueError: one message with every unknown argument and choice.
    """
    chosen, wrong = {name: options[0] for name, options in choices.items()}, []
    for argument in filter(None, (text or "").split(",")):
        name, _, value = argument.partition("=")
        options = {str(option): option for option in choices.get(name, ())}
        if value in options:
            chosen[name] = options[value]
        elif name in choices:
            known = list(options) if len(options) < 10 else [next(iter(options)), "…", list(options)[-1]]
            wrong.append(f"{name}={value}: expected one of {', '.join(known)}")
        else:
            wrong.append(f"{argument}: unknown; this page takes {', '.join(choices)}")
    if wrong:
        raise ValueError("\n  ".join([f"the page's arguments {text!r} have {len(wrong)} mistakes:", *wrong]))
    return types.SimpleNamespace(**chosen)


def _sections(kind: type[AnyRecipe]) -> dict[str, Any]:
    """Returns the dataclass of each section by the section's name."""
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}


def _keys(kind: type[AnyRecipe]) -> dict[str, Any]:
    """Returns the type of each value by `section.key`, or by the value's name if it lies in no section."""
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint = typing.get_type_hints(kind)[field.name]
        if dataclasses.is_dataclass(hint):
            keys |= {f"{field.name}.{key}": value for key, value in typing.get_type_hints(hint).items()}
        else:
            keys[field.name] = hint
    return keys


def _impossible_run(values: Mapping[str, Any]) -> list[str]:
    check = Checks(values)
    for key in ("run.log_every_steps", "run.reader_threads"):
        check(key, lambda value: value > 0, "a number above 0")
    for key in ("run.checkpoint_every_steps", "run.reader_processes"):
        check(key, lambda value: value >= 0, "a number from 0 up")
    return check.wrong


def _differences(found: AbstractSet[str], expected: AbstractSet[str], where: str) -> list[str]:
    missing = [f"{where}{key}: missing" for key in expected - found]
    return missing + [f"{where}{key}: unknown; known are {', '.join(sorted(expected))}" for key in found - expected]


def _convert(value: Any, expected: Any) -> Any:
    """Returns the value in its type: a whole number may be given for a float, and a list for a tuple."""
    if typing.get_origin(expected) is Literal:
        options = typing.get_args(expected)
        if value not in options:
            raise TypeError(f"expected {' or '.join(map(repr, options))}, found {value!r}")
        return value
    if typing.get_origin(expected) is tuple:
        item = typing.get_args(expected)[0]
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected several of {item.__name__}, found {value!r}")
        return tuple(_convert(x, item) for x in value)
    if expected is float and _is_int(value):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise TypeError(f"expected {expected.__name__}, found {value!r}")
    return value


def _from_text(text: str, expected: Any) -> Any:
    """Returns the value that a flag's text names. Commas separate the values of a tuple.

    Raises:
      TypeError: the text names no value of this type.
    """
    if typing.get_origin(expected) is tuple:
        item = typing.get_args(expected)[0]
        return tuple(_from_text(part.strip(), item) for part in text.strip("()[]").split(",") if part.strip())
    if expected in (int, float):
        try:
            return expected(text)
        except ValueError:
            raise TypeError(f"expected {expected.__name__}, found {text!r}") from None
    if expected is bool:
        if text.lower() not in ("true", "false"):
            raise TypeError(f"expected true or false, found {text!r}")
        return text.lower() == "true"
    return _convert(text, expected)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
