"""The weights that training starts from: fresh ones, or those of a checkpoint with new or kept heads."""

from collections.abc import Iterable

from tsp_jax import weights
from tsp_jax.models import functional, tsp
from tsp_jax.system import trees


def variables(wanted: tsp.ModelConfig, spec: str, *, keep_heads: bool, seed: int) -> tuple[functional.Variables, list[str]]:
    """Returns the start variables, and lines that say which weights were loaded and which were not.

    Args:
      wanted: the configuration of the model that is trained.
      spec: the start weights, as `weights.open_any` takes them, or `random`.
      keep_heads: whether the checkpoint's heads are loaded too; otherwise they are drawn at random.
      seed: the seed of every random draw.

    Raises:
      OSError, ValueError, RuntimeError, ImportError: there is no such checkpoint, or its backbone or the heads to keep are
        not the model's; every key that differs is named.
    """
    if spec == "random":
        return functional.init(wanted, seed), [f"weights: random, drawn by seed {seed}"]
    checkpoint = weights.open_any(spec)
    if checkpoint.config.backbone != wanted.backbone:
        raise ValueError(f"{spec}: its backbone is {checkpoint.config.backbone}; the recipe's is {wanted.backbone}")
    kept = wanted.head_names if keep_heads else ()
    found = {"features", *checkpoint.config.head_names} if kept else {"features"}
    parts, expected = _taken(checkpoint.variables, found), _taken(functional.shapes(wanted), {"features", *kept})
    trees.check_keys(trees.shapes(expected), trees.shapes(parts), spec)
    fresh = functional.init(wanted, seed)
    left, origin = [name for name in checkpoint.config.head_names if name not in found], checkpoint.origin
    lines = [
        f"weights: {wanted.backbone} from {spec} ({origin.source}; weights SHA-256 {checkpoint.weights_sha256[:8]}): "
        f"{len(trees.flatten(parts))} arrays loaded",
        f"heads: {', '.join(kept)} kept" if kept else f"heads: {', '.join(wanted.head_names)} new, drawn by seed {seed}",
        *([f"not loaded: {', '.join(left)}"] if left else []),
        *([f"note: {origin.note}"] if origin.note else []),
    ]
    return {kind: {**tree, **parts[kind]} for kind, tree in fresh.items()}, lines


def _taken(tree: functional.Variables, names: Iterable[str]) -> functional.Variables:
    """Returns the branches with these names in each collection."""
    return {kind: {name: branches[name] for name in names if name in branches} for kind, branches in tree.items()}
