"""A recipe of training: its sections and their defaults, the pages in `configs/`, and the check of one."""

import dataclasses
import difflib
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal

import ml_collections

from tsp_jax.models import tsp

LABELS = ("action", "temporal_region")


@dataclasses.dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
      backbone: a key of `backbones.BACKBONES`.
      labels: what each head tells: `action`, `temporal_region`, or both in that order.
      label_counts: classes of each head.
    """

    backbone: str
    labels: tuple[str, ...]
    label_counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Data:
    """The clips.

    Attributes:
      folder: of the records, as `python -m data_builders.build` prints it.
      train_split: segments to train on.
      valid_split: segments to validate on.
      gvf: file of global video features; empty for a model without.
      batch_size: clips a device.
      clips_per_segment: clips that an epoch draws from a segment.
      balanced: equally many clips of each temporal region; the original's batches are not.
    """

    folder: str
    train_split: str
    valid_split: str
    gvf: str = ""
    batch_size: int = 32
    clips_per_segment: int = 5
    balanced: bool = False


@dataclasses.dataclass(frozen=True)
class Optim:
    """SGD and its schedule; the defaults are the original's.

    Attributes:
      backbone_lr: learning rate of layer1 to layer4.
      fc_lr: of the heads.
      stem_lr: of the stem; 0 freezes it.
      momentum: share of the buffer kept.
      weight_decay: on every parameter.
      warmup_epochs: of linear warm-up.
      milestones: epochs at which `gamma` multiplies the learning rates.
      gamma: that factor.
      epochs: of training.
      scale_lr_with_devices: learning rates are those of one device, times the number of devices.
    """

    backbone_lr: float
    fc_lr: float
    stem_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.005
    warmup_epochs: int = 2
    milestones: tuple[int, ...] = (4, 6)
    gamma: float = 0.01
    epochs: int = 8
    scale_lr_with_devices: bool = True


@dataclasses.dataclass(frozen=True)
class Loss:
    """The weight of each head's loss."""

    alphas: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a step is computed: see `train_step.make_train_step`."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_norm: Literal["global", "per_device"] = "per_device"
    accumulate: int = 1
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class Init:
    """What training starts from.

    Attributes:
      checkpoint: a released name, a `.pth` file, a checkpoint folder, an earlier run's workdir (its best weights), or `random`.
      heads: `new`, drawn afresh, or `kept` from the checkpoint.
    """

    checkpoint: str
    heads: Literal["new", "kept"] = "new"


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run reads, tells and saves: nothing that changes what is learned, so that a run may go on with another one.

    Attributes:
      log_every_steps: steps from one line of metrics to the next.
      checkpoint_every_steps: steps from one checkpoint to the next, besides each epoch's end; 0 for these alone.
      reader_processes: that read records ahead; 0 for threads alone.
      reader_threads: of each process, batches read at once.
    """

    log_every_steps: int = 20
    checkpoint_every_steps: int = 1000
    reader_processes: int = 0
    reader_threads: int = 4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole recipe, checked."""

    model: Model
    data: Data
    optim: Optim
    loss: Loss
    compute: Compute
    init: Init
    run: Run = Run()
    seed: int = 0

    @property
    def model_config(self) -> tsp.ModelConfig:
        """What the network is built from."""
        return tsp.ModelConfig(self.model.backbone, self.model.label_counts, gvf=bool(self.data.gvf))


SECTIONS = {"model": Model, "data": Data, "optim": Optim, "loss": Loss, "compute": Compute, "init": Init, "run": Run}


def recipe(
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    optim: Mapping[str, Any],
    loss: Mapping[str, Any],
    init: Mapping[str, Any],
    compute: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> ml_collections.ConfigDict:
    """A page's recipe with the defaults filled in, as the ConfigDict that flags may change.

    Raises:
      TypeError: a misspelt section, or a misspelt or missing key in one.
      ValueError: a value that `read` refuses.
    """
    sections = Recipe(
        Model(**model),
        Data(**data),
        Optim(**optim),
        Loss(**loss),
        Compute(**(compute or {})),
        Init(**init),
        Run(**(run or {})),
        seed,
    )
    page = ml_collections.ConfigDict(dataclasses.asdict(sections)).lock()
    read(page)
    return page


def load(spec: str, changes: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The page in a file, changed as flags ask.

    Args:
      spec: `configs/anet_tsp.py`, or with arguments of the page `configs/anet_tsp.py:backbone=r3d_18`.
      changes: `optim.epochs=4`, `optim.milestones=2,3`: sections' keys and values as text.

    Raises:
      FileNotFoundError: there is no such page.
      ValueError: the page can't be read, or one message with every change that is misspelt or not of the key's type.
    """
    file, colon, arguments = spec.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such page; expected a recipe such as configs/anet_tsp.py")
    try:
        page = runpy.run_path(file)["get_config"](*([arguments] if colon else []))
    except KeyError as error:
        raise ValueError(f"{file}: no {error} in it; expected a page such as configs/anet_tsp.py") from error
    except (TypeError, SyntaxError, NameError, ImportError, AttributeError) as error:
        raise ValueError(f"{spec}: the page can't be read ({type(error).__name__}: {error})") from error
    wrong = []
    for change in changes:
        key, _, text = change.partition("=")
        section, _, name = key.partition(".")
        known = typing.get_type_hints(SECTIONS[section]) if section in SECTIONS else {}
        try:
            if key == "seed":
                page.seed = _from_text(text, int)
            else:
                page[section][name] = _from_text(text, known[name])
        except KeyError:
            every = [
                "seed",
                *(f"{section}.{name}" for section in SECTIONS for name in typing.get_type_hints(SECTIONS[section])),
            ]
            close = difflib.get_close_matches(key, every, n=2, cutoff=0.8)
            known_keys = [item for item in every if item.startswith(f"{section}.")] or [*SECTIONS, "seed"]
            hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known_keys)}"
            wrong.append(f"{key}: unknown; {hint}")
        except TypeError as error:
            wrong.append(f"{key}: {error}")
    if wrong:
        raise ValueError("\n  ".join([f"the flags --config.… have {len(wrong)} mistakes:", *wrong]))
    return page


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Where two recipes differ, each as nested dicts, in lines; how a run reads, tells and saves makes no difference."""

    def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
        sections = {name: section for name, section in recipe.items() if isinstance(section, Mapping) and name != "run"}
        leaves = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
        leaves["seed"] = recipe.get("seed")
        # JSON knows no tuples.
        return {key: list(value) if isinstance(value, tuple) else value for key, value in leaves.items()}

    left, right = flat(first), flat(second)
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return [f"{key}: {left.get(key)!r} there, {right.get(key)!r} here" for key in keys]


def read(page: ml_collections.ConfigDict) -> Recipe:
    """The recipe of a ConfigDict.

    Raises:
      ValueError: one message with all that is wrong: missing and unknown keys, values of another type, impossible values.
    """
    found = page.to_dict()
    wrong = _differences(found.keys(), {*SECTIONS, "seed"}, "")
    values: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        content = found.get(name, {})
        if not isinstance(content, dict):
            wrong.append(f"{name}: expected a section, found {content!r}")
            continue
        types_of_keys = typing.get_type_hints(section)
        wrong += _differences(content.keys(), types_of_keys.keys(), f"{name}.") if name in found else []
        values |= {f"{name}.{key}": content[key] for key in types_of_keys.keys() & content.keys()}
        for key in types_of_keys.keys() & content.keys():
            try:
                values[f"{name}.{key}"] = _convert(content[key], types_of_keys[key])
            except TypeError as error:
                wrong.append(f"{name}.{key}: {error}")
                del values[f"{name}.{key}"]
    if "seed" in found and (not _is_int(found["seed"]) or found["seed"] < 0):
        wrong.append(f"seed: expected a whole number from 0 up, found {found['seed']!r}")
    wrong += _impossible(values)
    if wrong:
        raise ValueError("\n  ".join([f"the config has {len(wrong)} mistakes:", *sorted(wrong)]))
    made = {
        name: section(**{key.name: values[f"{name}.{key.name}"] for key in dataclasses.fields(section)})
        for name, section in SECTIONS.items()
    }
    return Recipe(**made, seed=found["seed"])


def page_arguments(text: str | None, **choices: Sequence[Any]) -> types.SimpleNamespace:
    """The arguments behind a page's colon, `backbone=r3d_18,gvf=avg`, each one of its choices; the first is the default.

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


def _differences(found: AbstractSet[str], expected: AbstractSet[str], where: str) -> list[str]:
    missing = [f"{where}{key}: missing" for key in expected - found]
    return missing + [f"{where}{key}: unknown; known are {', '.join(sorted(expected))}" for key in found - expected]


def _convert(value: Any, expected: Any) -> Any:
    """The value in its type: a whole number may stand for a float, a list for a tuple."""
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
    """The value that a flag's text says; several are parted by commas.

    Raises:
      TypeError: it says none of this type.
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


def _impossible(values: Mapping[str, Any]) -> list[str]:
    """Values of the right type that make no sense."""
    wrong = []

    def check(key: str, fits: Callable[[Any], bool], expected: str) -> None:
        if key in values and not fits(values[key]):
            wrong.append(f"{key}: expected {expected}, found {values[key]!r}")

    for key in ("data.batch_size", "data.clips_per_segment", "optim.epochs", "compute.accumulate"):
        check(key, lambda value: value > 0, "a number above 0")
    for key in ("run.log_every_steps", "run.reader_threads"):
        check(key, lambda value: value > 0, "a number above 0")
    for key in ("run.checkpoint_every_steps", "run.reader_processes"):
        check(key, lambda value: value >= 0, "a number from 0 up")
    for key in ("backbone_lr", "fc_lr", "stem_lr", "weight_decay", "warmup_epochs"):
        check(f"optim.{key}", lambda value: value >= 0, "a number from 0 up")
    check("optim.momentum", lambda value: 0 <= value < 1, "a number from 0 up, below 1")
    check("optim.gamma", lambda value: 0 < value <= 1, "a number above 0, at most 1")
    check("optim.milestones", lambda value: list(value) == sorted(value), "epochs in order")
    for key in ("data.folder", "data.train_split", "data.valid_split", "init.checkpoint"):
        check(key, bool, "a name")
    check(
        "model.labels",
        lambda value: value in (LABELS, LABELS[:1], LABELS[1:]),
        "action, temporal_region, or both in that order",
    )
    if {"model.backbone", "model.label_counts"} <= values.keys():
        try:
            tsp.ModelConfig(values["model.backbone"], values["model.label_counts"])
        except ValueError as error:
            wrong.append(f"model: {error}")
    heads = len(values.get("model.labels", ()))
    for key in ("model.label_counts", "loss.alphas"):
        check(key, lambda value: not heads or len(value) == heads, f"one number for each of the {heads} labels")
    if values.keys() >= {"data.batch_size", "compute.accumulate"}:
        parts = max(values["compute.accumulate"], 1)
        check("data.batch_size", lambda value: value % parts == 0, f"a multiple of compute.accumulate, {parts}")
    return wrong
