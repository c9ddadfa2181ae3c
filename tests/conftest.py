"""Fixtures of all tests."""

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads only cost; subprocesses inherit it

import numpy as np
import pytest
import torch

import genaim.config


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def data_root() -> Path:
    """The folder of development data, or a skip."""
    root = genaim.config.data_root()
    if root is None or not root.is_dir():
        pytest.skip("no development data: set GENAIM_DATA to its folder")
    return root
