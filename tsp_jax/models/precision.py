"""The precision of matrix products and convolutions, which follows the dtype of their factors."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def is_wide(dtype: DTypeLike) -> bool:
    """Returns whether the dtype is float32 or float64."""
    return jnp.dtype(dtype).itemsize >= 4


def matmul_precision(dtype: DTypeLike) -> lax.Precision:
    """Returns HIGHEST for float32 and float64, whose factors a GPU or TPU would round to TF32 or bfloat16; else DEFAULT."""
    return lax.Precision.HIGHEST if is_wide(dtype) else lax.Precision.DEFAULT
