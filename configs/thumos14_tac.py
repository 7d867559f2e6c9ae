"""TAC on THUMOS14: trains on the action alone, as TSP's baseline. Background clips add no loss.

Source: Alwassel et al. 2021 and the released script of TAC on THUMOS14, which trains on the validation videos and validates
on the test ones.
Command: python -m tsp_jax.train --config configs/thumos14_tac.py --workdir runs/thumos14_tac
Ablations: configs/thumos14_tac.py:backbone=r3d_18,downscale=2
Result: not yet run.
"""

import ml_collections

from tsp_jax import config
from tsp_jax.training import encoder_task


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """Returns the recipe. `downscale` divides the batch size and the learning rates, for a small memory."""
    page = config.page_arguments(arguments, backbone=("r2plus1d_34", "r2plus1d_18", "r3d_18"), downscale=(1, 2, 4))
    return encoder_task.recipe(
        model={"backbone": page.backbone, "labels": ("action",), "label_counts": (20,)},
        data={
            "folder": "data/thumos14/jpeg/1.0.0",
            "train_split": "valid",
            "valid_split": "test",
            "batch_size": 32 // page.downscale,
        },
        optim={"backbone_lr": 1e-5 / page.downscale, "fc_lr": 2e-3 / page.downscale},
        loss={"alphas": (1.0,)},
        init={"checkpoint": f"{page.backbone}-kinetics_init"},
    )
