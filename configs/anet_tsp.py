"""TSP on ActivityNet v1.3: trains on action and temporal region, with the video's global feature.

Source: Alwassel et al. 2021, table 1, and the released script of TSP on ActivityNet; the ablations' learning rates are in the
names of the released models.
Command: python -m tsp_jax.train --config configs/anet_tsp.py --workdir runs/anet_tsp
Ablations: configs/anet_tsp.py:backbone=r2plus1d_18,gvf=none,labels=temporal_region,downscale=2
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
    classes = {"action": 200, "temporal_region": 2}
    return encoder_task.recipe(
        model={"backbone": page.backbone, "labels": labels, "label_counts": tuple(classes[label] for label in labels)},
        data={
            "folder": "data/activitynet/jpeg/1.0.0",
            "train_split": "train",
            "valid_split": "valid",
            "gvf": "" if page.gvf == "none" else f"data/activitynet/global_video_features/{page.backbone}-{page.gvf}_gvf.h5",
            "batch_size": 32 // page.downscale,
        },
        optim={
            "backbone_lr": 1e-4 / page.downscale,
            "fc_lr": {"max": 2e-3, "avg": 4e-3, "none": 4e-3}[page.gvf] / page.downscale,
        },
        loss={"alphas": (1.0,) * len(labels)},
        init={"checkpoint": f"{page.backbone}-kinetics_init"},
    )
