"""Judges of completed and enlarged emoji, on a few random pictures: what they refuse at once, and what they write."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file

from apps import judge_inpaint, judge_upscale
from apps.folders import make_parent
from apps.held_out import held_out_emoji, row_names
from genaim.evaluation.cifar import CifarResNet
from genaim.files import file_written_whole
from genaim.pretrained import save_model
from tests.evaluation.digits import random_var


def png(side: int, seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(40, 216, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six emoji, the second of which cannot be read, one photograph, and a classifier."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("noto_emoji", "sr/Set5", "classifiers"):
        (root / folder).mkdir(parents=True)
    emoji = [png(64, seed) if seed != 1 else b"nothing" for seed in range(6)]
    table = {"image": [{"bytes": content, "path": None} for content in emoji], "label": range(6)}
    pq.write_table(pa.table(table), root / "noto_emoji" / "test-00000-of-00001.parquet")
    (root / "sr" / "Set5" / "one.png").write_bytes(png(70, 9))
    save_file(CifarResNet().state_dict(), root / "classifiers" / "cifar10_resnet56.safetensors")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models of 64x64 pictures whose folders have one name."""
    folders = [tmp_path_factory.mktemp(name) / "same" for name in ("first", "second")]
    for number, folder in enumerate(folders):
        save_model(folder, random_var(64, num_classes=0, shift=0.1 * number))
    return [str(folder) for folder in folders]


def test_labels_are_those_of_the_images(data: Path) -> None:
    """In place of an emoji that cannot be read comes the next one, with its label."""
    images, labels = held_out_emoji(data, 6)
    assert images.shape == (6, 3, 64, 64) and labels.tolist() == [0, 2, 2, 3, 4, 5]
    assert images[1].equal(images[2]) and not images[0].equal(images[2])
    assert held_out_emoji(data, 3)[1].tolist() == [0, 2, 4]
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"-n is {count}; it must be in 1 to 6"):
            held_out_emoji(data, count)


def test_models_of_one_name_are_told_apart() -> None:
    assert row_names(["runs/a", "emoji-var", "other/b"]) == {"runs/a": "a", "emoji-var": "emoji-var", "other/b": "b"}
    assert row_names(["runs/a", "other/a", "b"]) == {"runs/a": "runs/a", "other/a": "other/a", "b": "b"}
    assert row_names(["runs/a", "runs/a"]) == {"runs/a": "a"}


def test_two_models_of_one_name_have_rows_each(data: Path, models: list[str], tmp_path: Path) -> None:
    """The second took the place of the first; and files in new folders could not be written in the end."""
    for package in ("cv2", "skimage", "torch_fidelity"):
        pytest.importorskip(package)
    report, sheet = tmp_path / "new" / "found.json", tmp_path / "other" / "sheet.png"
    judge_inpaint.judge(models, count=2, samples=2, device="cpu", data=data, report=report, sheet=sheet)
    rows = json.loads(report.read_text())
    assert rows[f"{models[0]}, one"] != rows[f"{models[1]}, one"]
    assert [name for name in rows if "same" in name] == [
        f"{model}, {what}" for model in models for what in ("one", "best of 2", "mean of 2")
    ]
    assert all(np.isfinite(list(row.values())).all() for row in rows.values())
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 64
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["found.json", "sheet.png"]


def test_enlarged_pictures_have_a_row_for_every_set_and_model(data: Path, models: list[str], tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    report = tmp_path / "new" / "found.json"
    judge_upscale.judge(models, factor=4, count=2, device="cpu", data=data, report=report)
    rows = json.loads(report.read_text())
    methods = ["bicubic", "bicubic, consistent", *models]
    assert [(row["set"], row["method"]) for row in rows] == [
        (name, method) for name in ("2 emoji", "Set5") for method in methods
    ]
    assert all(row["largest error"] <= 1 for row in rows if row["method"] != "bicubic")


@pytest.mark.parametrize("factor", [0, -4, 1, 3, 32, 64])
def test_factors_that_cannot_be_judged_are_refused_at_once(factor: int, tmp_path: Path) -> None:
    """0 was an internal error."""
    with pytest.raises(ValueError, match=rf"--factor is {factor}; .* must be one of \[2, 4, 8, 16\]"):
        judge_upscale.judge(["no such model"], factor=factor, data=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "-n is 1 and --samples 8; distance and diversity need 2 or more of each"),
        ({"samples": 1}, "-n is 100 and --samples 1"),
        ({"sheet": Path("sheet.xyz")}, "--sheet is 'sheet.xyz', which ends in no format of pictures"),
        ({"report": Path(".")}, "'.' is a folder; give the name of a file"),
    ],
)
def test_what_long_work_would_end_in_is_refused_at_once(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        judge_inpaint.judge(["no such model"], data=tmp_path, **options)


def test_files_are_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    make_parent(file)
    with file_written_whole(file) as temporary:
        temporary.write_text("old")
    with suppress(RuntimeError), file_written_whole(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]
