"""TSP on the synthetic videos of `data_builders.synthetic`: action and temporal region, from random weights, on two cores.

Source: this project; nothing is tuned. The backbone is the cheapest of the three.
Command: python -m tsp_jax.train --config configs/synthetic_tsp.py --workdir runs/synthetic_tsp
Result: not yet run.
"""

import ml_collections

from tsp_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The recipe."""
    return config.recipe(
        model={"backbone": "r3d_18", "labels": ("action", "temporal_region"), "label_counts": (6, 2)},
        data={
            "folder": "data/video_folder/jpeg/1.0.0",
            "train_split": "training",
            "valid_split": "validation",
            "batch_size": 8,
            "balanced": True,
        },
        optim={"backbone_lr": 1e-2, "fc_lr": 1e-2, "stem_lr": 1e-2, "warmup_epochs": 1, "gamma": 0.1},
        loss={"alphas": (1.0, 1.0)},
        init={"checkpoint": "random"},
    )
