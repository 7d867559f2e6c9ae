"""TAC on ActivityNet v1.3: trains on the action alone, as TSP's baseline. Background clips add no loss.

Source: Alwassel et al. 2021, table 1, and the released script of TAC on ActivityNet; the other backbones' learning rates are
in the names of the released models.
Command: python -m tsp_jax.train --config configs/anet_tac.py --workdir runs/anet_tac
Ablations: configs/anet_tac.py:backbone=r3d_18,downscale=2
Result: not yet run.
"""

import ml_collections

from tsp_jax import config
from tsp_jax.training import encoder_task


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """Returns the recipe. `downscale` divides the batch size and the learning rates, for a small memory."""
    page = config.page_arguments(arguments, backbone=("r2plus1d_34", "r2plus1d_18", "r3d_18"), downscale=(1, 2, 4))
    rates = {"r2plus1d_34": (1e-4, 2e-3), "r2plus1d_18": (1e-4, 4e-3), "r3d_18": (1e-3, 1e-2)}
    backbone_lr, fc_lr = rates[page.backbone]
    return encoder_task.recipe(
        model={"backbone": page.backbone, "labels": ("action",), "label_counts": (200,)},
        data={
            "folder": "data/activitynet/jpeg/1.0.0",
            "train_split": "train",
            "valid_split": "valid",
            "batch_size": 32 // page.downscale,
        },
        optim={"backbone_lr": backbone_lr / page.downscale, "fc_lr": fc_lr / page.downscale},
        loss={"alphas": (1.0,)},
        init={"checkpoint": f"{page.backbone}-kinetics_init"},
    )
