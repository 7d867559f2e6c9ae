"""The table of released models, known by name, and the command that lists and downloads them."""

import argparse
import dataclasses
import difflib
import pathlib
import sys
from collections.abc import Sequence

from convert import download
from tsp_jax.system import cache as cache_folder
from tsp_jax.system import cli


@dataclasses.dataclass(frozen=True)
class Released:
    """One released file.

    Attributes:
      name: the name by which commands know the model.
      description: backbone, pretraining and data set in words.
      sha256_prefix: the first 8 hex digits of the file's SHA-256.
      url: the file's address.
    """

    name: str
    description: str
    sha256_prefix: str
    url: str

    @property
    def filename(self) -> str:
        """The last part of the URL, which is also the file's name in the cache."""
        return self.url.rsplit("/", 1)[-1]


_TSP = "https://github.com/HumamAlwassel/TSP/releases/download/model_weights"
_IG65M = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0"
_TORCHVISION = "https://download.pytorch.org/models"

# Source: the README tables of HumamAlwassel/TSP, of moabitcoin/ig65m-pytorch, and torchvision's model URLs.
RELEASED: dict[str, Released] = {
    model.name: model
    for model in (
        Released(
            "r2plus1d_34-tsp_on_activitynet",
            "R(2+1)D-34 pretrained with TSP on ActivityNet",
            "0d2cf854",
            f"{_TSP}/r2plus1d_34-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_5-0d2cf854.pth",
        ),
        Released(
            "r2plus1d_34-tsp_on_thumos14",
            "R(2+1)D-34 pretrained with TSP on THUMOS14",
            "e6a30b2f",
            f"{_TSP}/r2plus1d_34-tsp_on_thumos14-max_gvf-backbone_lr_0.0001-fc_lr_0.004-epoch_4-e6a30b2f.pth",
        ),
        Released(
            "r2plus1d_34-tac_on_activitynet",
            "R(2+1)D-34 pretrained with TAC on ActivityNet",
            "98ccac94",
            f"{_TSP}/r2plus1d_34-tac_on_activitynet-backbone_lr_0.0001-fc_lr_0.002-epoch_5-98ccac94.pth",
        ),
        Released(
            "r2plus1d_34-tac_on_thumos14",
            "R(2+1)D-34 pretrained with TAC on THUMOS14",
            "54b5c8aa",
            f"{_TSP}/r2plus1d_34-tac_on_thumos14-backbone_lr_0.00001-fc_lr_0.002-epoch_3-54b5c8aa.pth",
        ),
        Released(
            "r2plus1d_34-tac_on_kinetics",
            "R(2+1)D-34 pretrained with TAC on Kinetics",
            "0547130e",
            f"{_TSP}/r2plus1d_34-tac_on_kinetics-0547130e.pth",
        ),
        Released(
            "r2plus1d_34-tsp_on_activitynet-avg_gvf",
            "R(2+1)D-34 pretrained with TSP on ActivityNet (average GVF)",
            "8b74eaa2",
            f"{_TSP}/r2plus1d_34-tsp_on_activitynet-avg_gvf-backbone_lr_0.0001-fc_lr_0.004-epoch_5-8b74eaa2.pth",
        ),
        Released(
            "r2plus1d_34-tsp_on_activitynet-no_gvf",
            "R(2+1)D-34 pretrained with TSP on ActivityNet (without GVF)",
            "fb38fdd2",
            f"{_TSP}/r2plus1d_34-tsp_on_activitynet-no_gvf-backbone_lr_0.0001-fc_lr_0.004-epoch_5-fb38fdd2.pth",
        ),
        Released(
            "r2plus1d_18-tsp_on_activitynet",
            "R(2+1)D-18 pretrained with TSP on ActivityNet",
            "22835b73",
            f"{_TSP}/r2plus1d_18-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_6-22835b73.pth",
        ),
        Released(
            "r2plus1d_18-tac_on_activitynet",
            "R(2+1)D-18 pretrained with TAC on ActivityNet",
            "9f56941a",
            f"{_TSP}/r2plus1d_18-tac_on_activitynet-backbone_lr_0.0001-fc_lr_0.004-epoch_5-9f56941a.pth",
        ),
        Released(
            "r2plus1d_18-tac_on_kinetics",
            "R(2+1)D-18 pretrained with TAC on Kinetics",
            "76ce975c",
            f"{_TSP}/r2plus1d_18-tac_on_kinetics-76ce975c.pth",
        ),
        Released(
            "r3d_18-tsp_on_activitynet",
            "R3D-18 pretrained with TSP on ActivityNet",
            "85584422",
            f"{_TSP}/r3d_18-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_6-85584422.pth",
        ),
        Released(
            "r3d_18-tac_on_activitynet",
            "R3D-18 pretrained with TAC on ActivityNet",
            "31fd6e95",
            f"{_TSP}/r3d_18-tac_on_activitynet-backbone_lr_0.001-fc_lr_0.01-epoch_5-31fd6e95.pth",
        ),
        Released(
            "r3d_18-tac_on_kinetics",
            "R3D-18 pretrained with TAC on Kinetics",
            "dcd952c6",
            f"{_TSP}/r3d_18-tac_on_kinetics-dcd952c6.pth",
        ),
        Released(
            "r2plus1d_34-kinetics_init",
            "R(2+1)D-34 from IG-65M, fine-tuned on Kinetics (start of TSP training)",
            "0aa0550b",
            f"{_IG65M}/r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth",
        ),
        Released(
            "r2plus1d_18-kinetics_init",
            "R(2+1)D-18 from torchvision, trained on Kinetics (start of TSP training)",
            "91a641e6",
            f"{_TORCHVISION}/r2plus1d_18-91a641e6.pth",
        ),
        Released(
            "r3d_18-kinetics_init",
            "R3D-18 from torchvision, trained on Kinetics (start of TSP training)",
            "b3b3357e",
            f"{_TORCHVISION}/r3d_18-b3b3357e.pth",
        ),
    )
}

_LIST_COMMAND = "python -m convert.released --list"


def find(name: str) -> Released:
    """Returns the released model of that name.

    Raises:
      ValueError: no released model has that name; the message suggests close ones.
    """
    if name in RELEASED:
        return RELEASED[name]
    close = difflib.get_close_matches(name, RELEASED, n=3)
    suggestion = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"no released model is named {name!r}; {suggestion}{_LIST_COMMAND} shows all {len(RELEASED)}")


def fetch(
    released: Released,
    cache: pathlib.Path | None = None,
    *,
    retry_pauses_sec: Sequence[float] = download.RETRY_PAUSES_SEC,
) -> pathlib.Path:
    """Returns the path of the model's file in the cache, its SHA-256 verified; downloads it first if it is not there.

    Args:
      released: the model.
      cache: the root of the cache; None for the user's own.
      retry_pauses_sec: the pauses in seconds between attempts if the connection fails or is cut, or the server is busy.

    Raises:
      convert.download.DownloadError: the file cannot be downloaded, or the cache cannot be written.
    """
    target = path_in_cache(released, cache)
    advice = f"make {target.parent} writable and free space there, or set TSP_JAX_CACHE to another folder"
    return download.fetch(released.url, target, released.sha256_prefix, advice=advice, retry_pauses_sec=retry_pauses_sec)


def path_in_cache(released: Released, cache: pathlib.Path | None = None) -> pathlib.Path:
    """Absolute path where the complete file belongs, whether or not it is there. `cache` is the root; None for the user's."""
    root = cache_folder.root() if cache is None else cache
    return (root / "checkpoints" / released.filename).absolute()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 if all went well, 1 if a download failed, 2 after wrong use."""
    return cli.run(_work, _parse(argv))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert.released",
        description="List the released models, or download them into the cache "
        "(the environment variable TSP_JAX_CACHE, else the user's cache folder).",
        epilog="example:\n  python -m convert.released --download r2plus1d_34-tsp_on_activitynet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="print the released models and which are in the cache")
    action.add_argument("--download", nargs="+", metavar="NAME", help="download these models and print their paths")
    options = parser.parse_args(argv)
    try:
        options.models = [find(name) for name in options.download or ()]
    except ValueError as error:
        parser.error(str(error))
    return options


def _work(options: argparse.Namespace) -> int:
    """Lists the models, or downloads each and goes on after a failure. Returns the exit status."""
    if options.list:
        print(_table())
    status = 0
    for model in options.models:
        try:
            print(fetch(model))
        except download.DownloadError as error:
            print(f"{model.name}: {error}", file=sys.stderr)
            status = 1
    return status


def _table() -> str:
    """The released models as aligned columns. "In cache" means that the file is there; its hash is checked on use."""
    rows = [("NAME", "DESCRIPTION", "SHA-256", "IN CACHE")]
    for model in RELEASED.values():
        present = "yes" if path_in_cache(model).is_file() else "no"
        rows.append((model.name, model.description, model.sha256_prefix, present))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
