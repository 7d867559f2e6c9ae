"""Tests that docs/scaling.md holds what the study prints, and that its measured numbers are those of docs/benchmarks.md."""

from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.studies import scaling
from tsp_jax.models import functional, tsp

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_holds_the_tables_in_their_order():
    page = (DOCS / "scaling.md").read_text()
    places = [page.find(table + "\n\n") for table in scaling.tables()]
    assert len(places) == 4 and -1 not in places, "docs/scaling.md is not what python -m benchmarks.studies.scaling prints"
    assert places == sorted(places)


def test_measured_numbers_are_those_of_docs_benchmarks():
    page = (DOCS / "benchmarks.md").read_text()
    for size, milliseconds in scaling.FRAME_MS.items():
        assert f"| {size} | {' | '.join(f'{x:.2f}' for x in milliseconds)} |" in page
    assert f"| {scaling.RECORD_CLIPS_PER_CORE_SEC} (" in page and f"to {scaling.RECORD_MB} MB" in page.replace("\n", " ")


@pytest.mark.parametrize("backbone", scaling.PARAMETERS_M)
def test_parameters_are_those_of_the_encoder(backbone: str):
    params = functional.shapes(tsp.ModelConfig(backbone))["params"]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(scaling.PARAMETERS_M[backbone], abs=0.1)


def test_twice_the_cores_read_twice_as_much_and_slower_memory_computes_less():
    one = scaling.MACHINES["1 H200"]
    found = scaling.extraction(one, "r3d_18", "640x360", 16)
    more = scaling.extraction(one._replace(cores=24, speed=0.5), "r3d_18", "640x360", 16)
    assert more["host decode"] == pytest.approx(2 * found["host decode"])
    assert more["compute"] == pytest.approx(found["compute"] / 2)
    # An hour at stride 16 is 3,375 clips, and 30 frames a second at 1.68 ms with 15 of them converted take 152.8 s of a core.
    assert found["host decode"] == pytest.approx(12 * 3375 / 152.8, rel=1e-3)
    alone = scaling.training(one, "r3d_18")
    assert alone["compute"] == pytest.approx(4800 * 0.35 / 3)
