"""Adapters that earlier releases wrote: they load, and compute what they did."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import written

from fastmoe_lora import load_adapters

RELEASES = sorted((Path(__file__).parents[1] / "fixtures").glob("*/adapters.json"))


@pytest.mark.parametrize("file", RELEASES, ids=lambda file: file.parent.name)
def test_loads_and_computes_what_it_did(file):
    model = written.small_model()
    load_adapters(model, file.parent)
    assert model[0].rank_window == written.WINDOW
    with torch.no_grad():
        found = model.eval()(written.rows()).numpy()
    np.testing.assert_allclose(found, np.load(file.parent / "output.npy"), rtol=1e-4, atol=1e-5)
