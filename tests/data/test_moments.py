"""MAR's cache of moments: written as read, mirrored by key, bad files named."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genaim.data import BadFiles, DataConfig, MomentsDataset, build_dataset, cache_moments, eval_batches, make_loader
from genaim.data.moments import read_moments, write_moments


def moments_of(images: torch.Tensor) -> torch.Tensor:
    """(B, 2, 1, 2): red level of the left and right columns as mean, -1 as log variance."""
    red = images[:, :1, :1, [0, -1]]
    return torch.cat([red, torch.full_like(red, -1)], dim=1)


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig(**({"train": {"path": str(folder)}, "val": {"path": str(folder)}, "image_size": 8} | options))


def write(folder: Path, name: str, moments: np.ndarray, mirrored: np.ndarray | None = None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, moments=moments, moments_flip=moments if mirrored is None else mirrored)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Ten files in two classes; the moments of file i are all i, those of its mirror image all -i."""
    for i in range(10):
        values = np.full((4, 2, 2), i, np.float32)
        write(tmp_path / "cached", f"{'odd' if i % 2 else 'even'}/{i:02}.JPEG.npz", values, -values)
    return tmp_path / "cached"


def test_a_folder_of_moments_is_a_data_set(cached: Path) -> None:
    data = build_dataset(config(cached), "val")
    assert isinstance(data, MomentsDataset)
    assert (len(data), data.class_names) == (10, ["even", "odd"])
    (batch,) = eval_batches(data, 16)
    assert batch.images is None
    assert batch.tokens is not None and batch.tokens.shape == (10, 4, 2, 2) and batch.tokens.dtype == torch.float32
    assert batch.tokens[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert batch.labels.tolist() == [0] * 5 + [1] * 5


def test_some_of_the_moments_still_have_to_fit(cached: Path) -> None:
    data = build_dataset(config(cached, train={"path": str(cached), "num_images": 4}), "train")
    assert isinstance(data, MomentsDataset) and len(data) == 4
    data.expect((6, 2, 2))
    with pytest.raises(ValueError, match="none of 4 images in a row could be read"):
        data.sample(0, (0,))


def test_half_of_the_training_draws_are_mirrored(cached: Path) -> None:
    data = build_dataset(config(cached, flip=True), "train")
    drawn = [data.sample(9, (0, step)).tokens[0, 0, 0].item() for step in range(200)]
    assert {abs(value) for value in drawn} == {9.0}
    assert 70 < sum(value < 0 for value in drawn) < 130
    assert drawn == [data.sample(9, (0, step)).tokens[0, 0, 0].item() for step in range(200)]
    for part, options in (("val", {"flip": True}), ("train", {"flip": False})):
        plain = build_dataset(config(cached, **options), part)
        assert all(plain.sample(9, (0, step)).tokens.min() == 9 for step in range(20))


def test_a_loader_resumes_and_workers_read_the_same(cached: Path) -> None:
    data = build_dataset(config(cached, flip=True), "train")
    through = list(itertools.islice(make_loader(data, batch_size=4, seed=1), 4))
    resumed = next(make_loader(pickle.loads(pickle.dumps(data)), batch_size=4, seed=1, start_step=3))
    assert resumed.tokens.equal(through[3].tokens)
    in_worker = next(make_loader(data, batch_size=4, seed=1, start_step=3, num_workers=1))
    assert in_worker.tokens.equal(through[3].tokens)


class Payload:
    def __reduce__(self) -> tuple:
        return print, ("unpickled",)


def test_bad_files_are_skipped_counted_and_named(cached: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = (cached / "even" / "00.JPEG.npz").read_bytes()
    (cached / "even" / "00.JPEG.npz").write_bytes(whole[:-30])
    (cached / "even" / "02.JPEG.npz").write_bytes(b"")
    np.savez(cached / "even" / "04.JPEG.npz", moments=np.zeros((4, 2, 2)))
    np.savez(cached / "even" / "06.JPEG.npz", moments=np.array([Payload()]), moments_flip=np.zeros((4, 2, 2)))
    write(cached, "even/08.JPEG.npz", np.zeros((4, 2, 2)), np.zeros((4, 2, 3)))
    write(cached, "odd/01.JPEG.npz", np.full((4, 2, 2), np.nan))
    write(cached, "odd/03.JPEG.npz", np.zeros((6, 2, 2)))
    data = build_dataset(config(cached), "val")
    data.expect((4, 2, 2))
    bad = BadFiles(1.0)
    kept = []
    for batch in eval_batches(data, 4):
        bad.add(batch.bad, len(batch))
        kept += batch.index.tolist()
    assert kept == [7, 8, 9]
    assert bad.count == 7
    reasons = {Path(name.split(" (")[0]).name[:2]: name.split(" (", 1)[1] for name in bad.names}
    for stem in ("00", "02", "04", "06"):
        assert reasons[stem] == "not an .npz file of moments and moments_flip)"
    assert "instead of (2 C, h, w) twice" in reasons["08"]
    assert reasons["01"] == "moments that are not finite)"
    assert reasons["03"] == "moments (6, 2, 2) instead of the tokenizer's (4, 2, 2))"
    assert "unpickled" not in capfd.readouterr().out
    assert data.sample(6, (0,)).index == 7  # training takes the next readable one


def test_written_moments_are_those_of_image_and_mirror(tmp_path: Path) -> None:
    for i in range(6):
        path = tmp_path / "images" / ("odd" if i % 2 else "even") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 20 + i, (8, 1))).save(path)
    images, folder, reports = build_dataset(config(tmp_path / "images"), "val"), tmp_path / "moments", []
    cache_moments(images, moments_of, folder, batch_size=4, report=lambda *counts: reports.append(counts))
    assert reports == [(4, 6), (6, 6)]
    names = ["even/0.png.npz", "even/2.png.npz", "even/4.png.npz", "odd/1.png.npz", "odd/3.png.npz", "odd/5.png.npz"]
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == names
    assert build_dataset(config(folder), "val").class_names == ["even", "odd"]
    for i, name in enumerate(names):
        pixels = images.sample(i, (0,)).image[None]
        image, mirrored = map(torch.from_numpy, read_moments(folder / name))
        assert image.equal(moments_of(pixels)[0])
        assert mirrored.equal(moments_of(pixels.flip(-1))[0])
        assert not image.equal(mirrored)


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    write_moments(tmp_path / "a.npz", (np.zeros((2, 1, 1)), np.ones((2, 1, 1))))
    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_moments(tmp_path / "a.npz", (np.ones((2, 1, 1)), np.ones((2, 1, 1))))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert not read_moments(tmp_path / "a.npz")[0].any()


def test_moments_of_another_autoencoder_have_another_fingerprint(tmp_path: Path) -> None:
    """Names and sizes are equal."""
    found = []
    for number in range(2):
        write(tmp_path / str(number), "a", np.full((4, 2, 2), number, np.float32))
        found.append(build_dataset(config(tmp_path / str(number)), "train").fingerprint())
    assert found[0] != found[1]


def test_images_of_several_sources_are_numbered(flat: Path, classes: Path, tmp_path: Path) -> None:
    (flat / "03.png").write_bytes(b"junk")
    bad, folder = BadFiles(0.5), tmp_path / "moments"
    two = build_dataset(config(flat, train=[{"path": str(flat)}, {"path": str(flat)}]), "train")
    cache_moments(two, moments_of, folder, bad_files=bad)
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:08}.npz" for i in range(40) if i not in (3, 23)]
    assert bad.count == 2 and next(iter(bad.names)).startswith(str(flat / "03.png"))
    cache_moments(
        build_dataset(config(classes, train=[{"path": str(classes)}] * 2), "train"), moments_of, tmp_path / "x"
    )
    assert sorted(p.name for p in (tmp_path / "x" / "dog").iterdir()) == [f"{i:08}.npz" for i in (3, 4, 5, 9, 10, 11)]
    mixed = build_dataset(config(flat, train=[{"path": str(classes)}, {"path": str(flat)}]), "train")
    with pytest.raises(ValueError, match="image 6 has no class, where others have one"):
        cache_moments(mixed, moments_of, tmp_path / "y")


def test_what_moments_cannot_do_is_refused(cached: Path, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be cropped anew; remove data\.crop=random"):
        build_dataset(config(cached, crop="random"), "train")
    with pytest.raises(ValueError, match=r"data\.train mixes images with cached moments"):
        build_dataset(config(cached, train=[{"path": str(cached)}, {"path": str(flat)}]), "train")
    with pytest.raises(ValueError, match=r"remove data\.crop and data\.flip"):
        cache_moments(build_dataset(config(flat, flip=True), "train"), moments_of, tmp_path / "x")
    (flat / "statistics.npz").write_bytes(b"")  # beside images it is no cache
    assert not isinstance(build_dataset(config(flat), "train"), MomentsDataset)
