"""TSP on THUMOS14: trains on action and temporal region, with the video's global feature.

Source: Alwassel et al. 2021 and the released script of TSP on THUMOS14, which trains on the validation videos and validates
on the test ones.
Command: python -m tsp_jax.train --config configs/thumos14_tsp.py --workdir runs/thumos14_tsp
Ablations: configs/thumos14_tsp.py:backbone=r2plus1d_18,gvf=none,labels=temporal_region,downscale=2
Result: not yet run.
"""

import ml_collections

from tsp_jax import config
from tsp_jax.training import encoder_task


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """Returns the recipe. `downscale` divides the batch size and the learning rates, for a small memory."""
    page = config.page_arguments(
        arguments,
        backbone=("r2plus1d_34", "r2plus1d_18", "r3d_18"),
        gvf=("max", "avg", "none"),
        labels=("action+temporal_region", "temporal_region"),
        downscale=(1, 2, 4),
    )
    labels = tuple(page.labels.split("+"))
    classes = {"action": 20, "temporal_region": 2}
    return encoder_task.recipe(
        model={"backbone": page.backbone, "labels": labels, "label_counts": tuple(classes[label] for label in labels)},
        data={
            "folder": "data/thumos14/jpeg/1.0.0",
            "train_split": "valid",
            "valid_split": "test",
            "gvf": "" if page.gvf == "none" else f"data/thumos14/global_video_features/{page.backbone}-{page.gvf}_gvf.h5",
            "batch_size": 32 // page.downscale,
        },
        optim={"backbone_lr": 1e-4 / page.downscale, "fc_lr": 4e-3 / page.downscale},
        loss={"alphas": (1.0,) * len(labels)},
        init={"checkpoint": f"{page.backbone}-kinetics_init"},
    )
