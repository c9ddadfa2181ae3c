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


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of official models: empty, and no test reads or writes the user's."""
    folder = tmp_path_factory.getbasetemp() / "no-home"
    monkeypatch.setenv("GENAIM_HOME", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    return folder


@pytest.fixture
def data_root() -> Path:
    """The folder of development data, or a skip."""
    root = genaim.config.data_root()
    if root is None or not root.is_dir():
        pytest.skip("no development data: set GENAIM_DATA to its folder")
    return root


@pytest.fixture(scope="session")
def cifar_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a CIFAR-10 ResNet-56 in the published layout."""
    from safetensors.torch import save_file

    from genaim.evaluation.cifar import CifarResNet

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("extractor") / "resnet.safetensors"
    save_file(CifarResNet().state_dict(), path)
    return path
