"""Tests that every recipe page builds its step, and that one message reports all mistakes in a recipe."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest

import train_child
from tsp_jax import config, train
from tsp_jax.models import backbones, functional
from tsp_jax.training import classification, encoder_task, train_step

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
# This is the smallest whole recipe: it has the sections without a default.
SECTIONS: dict[str, Any] = {
    "model": {"backbone": "r3d_18", "labels": ("action",), "label_counts": (20,)},
    "data": {"folder": "data/thumos14/jpeg/1.0.0", "train_split": "valid", "valid_split": "test"},
    "optim": {"backbone_lr": 1e-4, "fc_lr": 2e-3},
    "loss": {"alphas": (1.0,)},
    "init": {"checkpoint": "random"},
}


def page(name: str, arguments: str | None = None) -> ml_collections.ConfigDict:
    module = importlib.import_module(f"configs.{name}")
    return module.get_config() if arguments is None else module.get_config(arguments)


def read(content: ml_collections.ConfigDict) -> encoder_task.Recipe:
    return config.read(content, encoder_task.Recipe)


def recipe(name: str, arguments: str | None = None) -> encoder_task.Recipe:
    return read(page(name, arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, None) for name in PAGES),
        ("anet_tsp", "backbone=r2plus1d_18,gvf=avg,downscale=2"),
        ("anet_tsp", "backbone=r3d_18,gvf=none,labels=temporal_region"),
        ("thumos14_tsp", "backbone=r3d_18,labels=temporal_region"),
        ("anet_tac", "backbone=r3d_18"),
        ("folder_tsp", "classes=7,backbone=r3d_18,gvf=none,downscale=4"),
    ],
)
def test_page_builds_its_step(name: str, arguments: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are small ones of the page's family. Whole networks are traced in test_train_step.py."""
    for small, spec in train_child.small_backbones().items():
        monkeypatch.setitem(backbones.BACKBONES, small, spec)
    found = recipe(name, arguments)
    if found.model.backbone != "r3d_tiny":
        found = dataclasses.replace(found, model=dataclasses.replace(found.model, backbone=f"train_{found.model.backbone}"))
    optimizer, compute = encoder_task.make_optimizer(found.optim, 100, 1), found.compute
    loss = classification.ClipLoss(
        found.model_config, found.model.labels, found.loss.alphas, jnp.dtype(compute.dtype), compute.remat
    )
    step = train_step.make_step(loss, optimizer, train_step.Options(None, compute.batch_norm, compute.accumulate))
    rows = found.data.batch_size
    state = jax.eval_shape(lambda v: train_step.init_state(v, optimizer), functional.shapes(found.model_config))
    batch = {
        "video": jax.ShapeDtypeStruct((rows, 16, 128, 171, 3), jnp.uint8),
        "crop": jax.ShapeDtypeStruct((rows, 2), jnp.int32),
        "flip": jax.ShapeDtypeStruct((rows,), jnp.bool_),
        **{label: jax.ShapeDtypeStruct((rows,), jnp.int32) for label in classification.LABELS},
    }
    if found.data.gvf:
        width = backbones.BACKBONES[found.model.backbone].width
        batch["gvf"] = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    new, _ = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


@pytest.mark.parametrize(
    ("name", "rates", "labels", "counts", "gvf", "splits"),
    # Source: TSP's released training scripts.
    [
        ("anet_tsp", (1e-4, 2e-3), classification.LABELS, (200, 2), "max", ("train", "valid")),
        ("anet_tac", (1e-4, 2e-3), ("action",), (200,), "", ("train", "valid")),
        ("thumos14_tsp", (1e-4, 4e-3), classification.LABELS, (20, 2), "max", ("valid", "test")),
        ("thumos14_tac", (1e-5, 2e-3), ("action",), (20,), "", ("valid", "test")),
    ],
)
def test_page_has_the_originals_values(
    name: str, rates: tuple[float, float], labels: tuple[str, ...], counts: tuple[int, ...], gvf: str, splits: tuple[str, str]
) -> None:
    found = recipe(name)
    assert found.model == encoder_task.Model("r2plus1d_34", labels, counts)
    assert found.optim == encoder_task.Optim(*rates, 0.0, 0.9, 0.005, 2, (4, 6), 0.01, 8, True)
    assert found.data.gvf.endswith(f"r2plus1d_34-{gvf}_gvf.h5" if gvf else "") and bool(found.data.gvf) == bool(gvf)
    assert (found.data.train_split, found.data.valid_split) == splits
    assert (found.data.batch_size, found.data.clips_per_segment, found.data.balanced) == (32, 5, False)
    assert found.loss.alphas == (1.0,) * len(labels)
    assert found.compute == encoder_task.Compute("float32", "per_device", 1, False)
    assert found.init == encoder_task.Init("r2plus1d_34-kinetics_init", "new")


@pytest.mark.parametrize(
    ("name", "arguments", "rates"),
    # Source: the names of the released models.
    [
        ("anet_tsp", "gvf=avg", (1e-4, 4e-3)),
        ("anet_tsp", "gvf=none", (1e-4, 4e-3)),
        ("anet_tsp", "backbone=r2plus1d_18", (1e-4, 2e-3)),
        ("anet_tsp", "backbone=r3d_18", (1e-4, 2e-3)),
        ("anet_tac", "backbone=r2plus1d_18", (1e-4, 4e-3)),
        ("anet_tac", "backbone=r3d_18", (1e-3, 1e-2)),
    ],
)
def test_ablation_has_the_released_models_learning_rates(name: str, arguments: str, rates: tuple[float, float]) -> None:
    found = recipe(name, arguments).optim
    assert (found.backbone_lr, found.fc_lr) == rates


@pytest.mark.parametrize("name", ["anet_tsp", "anet_tac", "thumos14_tsp", "thumos14_tac"])
def test_downscale_divides_batch_and_learning_rates(name: str) -> None:
    whole, quarter = recipe(name), recipe(name, "downscale=4")
    assert quarter.data.batch_size == whole.data.batch_size / 4
    assert quarter.optim.backbone_lr == whole.optim.backbone_lr / 4
    assert quarter.optim.fc_lr == whole.optim.fc_lr / 4


def test_temporal_region_alone_trains_one_head() -> None:
    found = recipe("anet_tsp", "labels=temporal_region")
    assert found.model_config.head_names == ("fc",) and found.model_config.head_inputs == (1024,)
    assert found.loss.alphas == (1.0,)


def test_mistakes_in_page_arguments_are_reported_together() -> None:
    with pytest.raises(ValueError) as caught:
        page("anet_tsp", "backbone=r3d,downscal=2,gvf=max")
    assert str(caught.value).splitlines()[1:] == [
        "  backbone=r3d: expected one of r2plus1d_34, r2plus1d_18, r3d_18",
        "  downscal=2: unknown; this page takes backbone, gvf, labels, downscale",
    ]
    with pytest.raises(ValueError, match=r"classes=0: expected one of 1, …, 10000$"):
        page("folder_tsp", "classes=0")


def test_misspelt_section_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="optimizer"):
        encoder_task.recipe(**SECTIONS, optimizer={})


@pytest.mark.parametrize("section", [*SECTIONS, "compute"])
def test_misspelt_key_is_a_type_error(section: str) -> None:
    with pytest.raises(TypeError, match="bakbone"):
        encoder_task.recipe(**{**SECTIONS, section: {**SECTIONS.get(section, {}), "bakbone": 1}})


@pytest.mark.parametrize("section", SECTIONS)
def test_missing_key_is_a_type_error(section: str) -> None:
    with pytest.raises(TypeError, match="missing"):
        encoder_task.recipe(**{**SECTIONS, section: {}})


def test_unknown_key_can_not_be_set_on_a_recipe() -> None:
    found = encoder_task.recipe(**SECTIONS)
    with pytest.raises(AttributeError, match="bakbone"):
        found.model.bakbone = "r3d_18"


def test_read_gives_back_what_the_page_says() -> None:
    found = read(encoder_task.recipe(**SECTIONS, seed=3))
    assert found.optim == encoder_task.Optim(1e-4, 2e-3) and found.seed == 3
    assert found.model == encoder_task.Model("r3d_18", ("action",), (20,))


def test_whole_numbers_and_lists_are_taken_for_floats_and_tuples() -> None:
    changed = encoder_task.recipe(**SECTIONS).to_dict()
    changed["optim"]["backbone_lr"], changed["loss"]["alphas"], changed["optim"]["milestones"] = 1, [2], [3]
    found = read(ml_collections.ConfigDict(changed))
    assert (found.optim.backbone_lr, found.loss.alphas, found.optim.milestones) == (1.0, (2.0,), (3,))
    assert isinstance(found.optim.backbone_lr, float) and isinstance(found.loss.alphas[0], float)


def test_all_mistakes_of_a_config_are_reported_together() -> None:
    wrong = encoder_task.recipe(**SECTIONS).to_dict()
    wrong["model"]["backbone"] = "r3d"
    wrong["data"] |= {"batch_size": 0, "balanced": 1}
    wrong["optim"] |= {"milestones": (6, 4), "epochs": 2.5, "momentum": 1.0, "backbone_lr": "fast"}
    wrong["loss"]["alphas"] = (1.0, 1.0)
    wrong["compute"] |= {"dtype": "float16", "acumulate": 2}
    wrong["init"].pop("heads")
    wrong["seed"] = -1
    wrong["extra"] = {}
    with pytest.raises(ValueError) as caught:
        read(ml_collections.ConfigDict(wrong))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the config has 13 mistakes:"
    assert [line.strip().split(": ")[0] for line in lines[1:]] == sorted([
        "model", "data.batch_size", "data.balanced", "optim.milestones", "optim.epochs", "optim.momentum", "optim.backbone_lr",
        "loss.alphas", "compute.dtype", "compute.acumulate", "init.heads", "seed", "extra",
    ])  # fmt: skip
    assert "  optim.backbone_lr: expected float, found 'fast'" in lines
    assert "  compute.dtype: expected 'float32' or 'bfloat16', found 'float16'" in lines


def test_batch_that_accumulation_can_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.batch_size: expected a multiple of compute.accumulate, 3, found 32"):
        encoder_task.recipe(**SECTIONS, compute={"accumulate": 3})


def test_flags_change_values_of_every_type() -> None:
    changes = ["optim.backbone_lr=3", "optim.milestones=2,3", "data.balanced=true", "loss.alphas=(1, 0.5)", "seed=4"]
    changes += ["model.label_counts=20,2", "init.checkpoint=runs/a=b", "compute.dtype=bfloat16", "data.batch_size=64"]
    found = train.read_recipe(f"{ROOT}/configs/thumos14_tsp.py:backbone=r3d_18", changes)[1]
    assert (found.optim.backbone_lr, found.optim.milestones, found.data.balanced) == (3.0, (2, 3), True)
    assert (found.loss.alphas, found.seed, found.model.label_counts) == ((1.0, 0.5), 4, (20, 2))
    assert (found.init.checkpoint, found.compute.dtype, found.data.batch_size) == ("runs/a=b", "bfloat16", 64)
    assert found.model.backbone == "r3d_18"


def test_all_wrong_flags_are_reported_together() -> None:
    changes = ["optim.bakbone_lr=1", "optim.epochs=2.5", "data.balanced=maybe", "compute.dtype=float16", "zzz=1", "loss=3"]
    with pytest.raises(ValueError) as caught:
        train.read_recipe(f"{ROOT}/configs/anet_tac.py", changes)
    assert str(caught.value).splitlines() == [
        "the flags --config.… have 6 mistakes:",
        "  optim.bakbone_lr: unknown; did you mean optim.backbone_lr?",
        "  optim.epochs: expected int, found '2.5'",
        "  data.balanced: expected true or false, found 'maybe'",
        "  compute.dtype: expected 'float32' or 'bfloat16', found 'float16'",
        "  zzz: unknown; known are model, data, optim, loss, compute, init, run, seed",
        "  loss: unknown; known are loss.alphas",
    ]


@pytest.mark.parametrize(
    "text", ["x = 1", "def get_config(:", "import nothing_of_that_name", "def get_config(): return 1 + None"]
)
def test_file_that_is_no_page_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.py").write_text(text)
    with pytest.raises(ValueError, match=r"page.py: "):
        config.load(str(tmp_path / "page.py"))


def test_differences_are_of_what_is_learned() -> None:
    first, second = (read(encoder_task.recipe(**SECTIONS)) for _ in range(2))
    assert config.differences(dataclasses.asdict(first), json.loads(json.dumps(dataclasses.asdict(second)))) == []
    changed = dataclasses.asdict(second)
    changed["run"]["log_every_steps"], changed["optim"]["gamma"], changed["seed"] = 3, 0.5, 2
    del changed["data"]["gvf"]
    assert config.differences(dataclasses.asdict(first), changed) == [
        "data.gvf: '' there, None here",
        "optim.gamma: 0.01 there, 0.5 here",
        "seed: 0 there, 2 here",
    ]
