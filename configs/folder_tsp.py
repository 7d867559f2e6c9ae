"""TSP on a folder of your own videos: trains on action and temporal region, with the video's global feature.

Source: the values of THUMOS14's recipe (Alwassel et al. 2021), whose data set is small. Set `optim` for your data set.
Command: python -m tsp_jax.train --config configs/folder_tsp.py:classes=7 --workdir runs/folder_tsp
Arguments: configs/folder_tsp.py:classes=7,backbone=r3d_18,gvf=none,downscale=2
Result: not yet run.
"""

import ml_collections

from tsp_jax import config
from tsp_jax.training import encoder_task


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """Returns the recipe. `classes` is the number of labels in action_label_mapping.json; `downscale` is for a small memory."""
    page = config.page_arguments(
        arguments,
        classes=range(1, 10_001),
        backbone=("r2plus1d_34", "r2plus1d_18", "r3d_18"),
        gvf=("max", "avg", "none"),
        downscale=(1, 2, 4),
    )
    return encoder_task.recipe(
        model={"backbone": page.backbone, "labels": ("action", "temporal_region"), "label_counts": (page.classes, 2)},
        data={
            "folder": "records/video_folder/jpeg/1.0.0",
            "train_split": "train",
            "valid_split": "valid",
            "gvf": "" if page.gvf == "none" else "gvf.h5",
            "batch_size": 32 // page.downscale,
        },
        optim={"backbone_lr": 1e-4 / page.downscale, "fc_lr": 4e-3 / page.downscale},
        loss={"alphas": (1.0, 1.0)},
        init={"checkpoint": f"{page.backbone}-kinetics_init"},
    )
