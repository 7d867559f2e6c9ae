"""A folder of features with two files for each video: NAME.npy, and NAME.json with its attributes.

NAME.json is written first, then NAME.npy is moved into place whole. So a NAME.npy is complete and has its attributes next to
it, and a NAME.json without a NAME.npy is of a video that was not finished.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from tsp_jax import features
from tsp_jax.features import hdf5
from tsp_jax.system import errors, files

DType = Literal["float32", "float16"]
DTYPES: tuple[str, ...] = get_args(DType)
_FORMAT = "features of tsp_jax"


class Writer:
    """A context manager that writes features into one folder, and refuses a second writer of the same folder meanwhile.

    Each video is finished when `commit` returns. Files of others stay as they are.

    Attributes:
      done: attributes of the videos that the folder already holds, by name.
    """

    def __init__(self, folder: str | Path, run: hdf5.Attributes, *, dtype: str = "float32", overwrite: bool = False):
        """Opens the folder for a run. It is made if it is absent.

        Args:
          folder: the folder.
          run: the attributes that all its videos share. A folder with videos of others is refused.
          dtype: the precision of the arrays, one of `DTYPES`.
          overwrite: whether to delete the videos that earlier runs wrote.

        Raises:
          FeatureFileError: the folder holds arrays that were not written by this class or by another kind of run, is being
            written, or can't be made.
          ValueError: the dtype is unknown.
        """
        if dtype not in DTYPES:
            raise ValueError(f"the dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
        self.folder, self._dtype = Path(folder), np.dtype(dtype)
        self.run = {**run, "npy_dtype": dtype}
        self.done: dict[str, hdf5.Attributes] = {}
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            self._read_done(overwrite)
            self._held = stack.pop_all()  # only now, so that an error above frees the lock

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def commit(self, name: str, features: Float[np.ndarray, "n f"], attributes: hdf5.Attributes) -> None:
        """Writes one video to disk. After this returns, a kill can't lose it.

        Raises:
          FeatureFileError: a number is too large for the dtype, or a file of someone else has the name.
        """
        attributes = {**self.run, **attributes}
        with np.errstate(over="ignore"):
            rows = features.astype(self._dtype)
        if not np.array_equal(np.isfinite(rows), np.isfinite(features)):
            raise hdf5.FeatureFileError(f"{name}: a feature is too large for {self._dtype}; pass --npy_dtype float32")
        array, about = self.folder / f"{name}.npy", self.folder / f"{name}.json"
        if _read(about) is None and (about.exists() or array.exists()):
            raise hdf5.FeatureFileError(
                f"{about if about.exists() else array} was not written by tsp_jax; move it, or name another --output"
            )
        buffer = io.BytesIO()
        np.save(buffer, rows)
        content = {"format": _FORMAT, "bytes": len(buffer.getvalue()), "attributes": _plain(attributes)}
        with files.replacing(about) as temporary:
            temporary.write_text(
                json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
            )
        with files.replacing(array) as temporary:
            temporary.write_bytes(buffer.getvalue())
        self.done[name] = attributes

    def _lock(self, stack: contextlib.ExitStack) -> None:
        lock = self.folder / ".lock"
        try:
            files.make_folder(self.folder)
            stack.enter_context(files.locked(lock, f"another run is writing here ({self.folder}); name another --output"))
        except errors.InUseError as error:
            raise hdf5.FeatureFileError(str(error)) from error
        except OSError as error:
            raise hdf5.FeatureFileError(f"{self.folder} can't be written: {error.strerror or error}") from error
        stack.callback(lock.unlink, missing_ok=True)

    def _read_done(self, overwrite: bool) -> None:
        found = {}
        for array in sorted(self.folder.rglob("*.npy")):
            about = array.with_suffix(".json")
            found[array] = _read(about)
            if found[array] is None:
                raise hdf5.FeatureFileError(
                    f"{array} was not written by tsp_jax: no attributes are in {about}; move it, or name another --output"
                )
        for array, content in found.items():
            if overwrite:
                array.unlink()  # in this order, for an array without attributes is taken for someone else's
                array.with_suffix(".json").unlink()
            elif array.stat().st_size != content["bytes"]:
                array.unlink()  # A failing disk damaged it, so its video is extracted again.
            else:
                remedy = "name another --output, or pass --overwrite"
                features.check_same_run(self.run, "asked for", content["attributes"], str(array), remedy)
                self.done[array.relative_to(self.folder).as_posix().removesuffix(".npy")] = content["attributes"]


def _read(about: Path) -> dict[str, Any] | None:
    """Returns what `Writer` wrote about an array; None if the file is absent or someone else's."""
    try:
        content = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and content.get("format") == _FORMAT
    whole = ours and isinstance(content.get("bytes"), int) and isinstance(content.get("attributes"), dict)
    return content if whole else None


def _plain(attributes: hdf5.Attributes) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in sorted(attributes.items())
    }
