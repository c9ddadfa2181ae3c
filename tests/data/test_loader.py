"""Batches are a function of (seed, step): resuming, processes and workers change nothing; bad files are named."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import png

from genaim.data import BadFiles, DataConfig, StepSampler, build_dataset, collate, eval_batches, make_loader


@pytest.fixture
def dataset(flat):
    config = DataConfig(train={"path": str(flat)}, image_size=6, crop="resized", flip=True)
    return build_dataset(config, "train")


@pytest.fixture
def rare(tmp_path):
    """Nine images of one class and three of another."""
    for name, count in (("common", 9), ("rare", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(png((number, 0, 0)))
    return build_dataset(DataConfig(train={"path": str(tmp_path)}, image_size=6), "train")


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_equal(a, b):
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert torch.equal(a.index, b.index) and torch.equal(a.rows, b.rows) and a.bad == b.bad


def test_batch_of_a_step_is_the_same_when_started_there(dataset):
    through = take(make_loader(dataset, batch_size=6, seed=3), 8)
    for step in (1, 5):
        resumed = make_loader(dataset, batch_size=6, seed=3, start_step=step)
        assert resumed.step == step
        for expected in through[step:]:
            assert_equal(next(resumed), expected)
    other = next(make_loader(dataset, batch_size=6, seed=4))
    assert not torch.equal(other.index, through[0].index)


def test_two_processes_together_are_one(dataset):
    whole = take(make_loader(dataset, batch_size=6, seed=0), 4)
    halves = [take(make_loader(dataset, batch_size=6, seed=0, rank=r, world_size=2), 4) for r in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([first.images, second.images]))
        assert torch.equal(batch.index, torch.cat([first.index, second.index]))
        assert batch.rows.tolist() == first.rows.tolist() + second.rows.tolist() == list(range(6))


def test_workers_change_nothing_and_leave_the_global_generator_alone(dataset):
    plain = take(make_loader(dataset, batch_size=6, seed=0), 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for batch, expected in zip(take(make_loader(dataset, batch_size=6, seed=0, num_workers=2), 3), plain, strict=True):
        assert_equal(batch, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_is_keyed_by_step_and_row(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    config = DataConfig(train={"path": str(tmp_path)}, image_size=6, crop="resized")
    batches = take(make_loader(build_dataset(config, "train"), batch_size=4, seed=0), 2)
    pictures = {tuple(image.flatten().tolist()) for batch in batches for image in batch.images}
    assert len(pictures) == 8  # one image, drawn eight times


def test_uneven_batch_is_refused(dataset):
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        make_loader(dataset, batch_size=5, seed=0, world_size=2)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 25])
def test_each_epoch_is_a_permutation(batch_size):
    sampler = StepSampler([10], batch_size=batch_size, seed=1)
    draws = [i for step in range(100) for i in sampler.indices(step)]
    epochs = [draws[i : i + 10] for i in range(0, len(draws) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_order_does_not_depend_on_the_batch_size():
    small, large = (StepSampler([10, 4], weights=[3, 1], batch_size=b, seed=1) for b in (2, 8))
    assert [i for s in range(4) for i in small.indices(s)] == large.indices(0)


def test_mixture_shares_and_coverage():
    sampler = StepSampler([50, 7, 1], weights=[1, 2, 0.5], batch_size=100, seed=0)
    draws = np.array([i for step in range(200) for i in sampler.indices(step)])
    counts = [np.sum(draws < 50), np.sum((draws >= 50) & (draws < 57)), np.sum(draws == 57)]
    assert np.allclose(np.array(counts) / len(draws), np.array([1, 2, 0.5]) / 3.5, atol=2e-4)
    small = draws[(draws >= 50) & (draws < 57)]
    assert all(len(set(small[i : i + 7])) == 7 for i in range(0, len(small) - 6, 7))
    window = draws[:1000]  # the deal is shuffled, not in runs
    assert abs(np.mean(window < 50) - 1 / 3.5) < 0.06


@pytest.mark.parametrize("weights", [[1.0], [1e-9, 1.0], [1.0] * 7, [0.3, 0.3, 0.4], [1e-9] * 5 + [1.0]])
def test_quotas_fill_a_block_and_forget_no_source(weights):
    sampler = StepSampler([5] * len(weights), weights=weights, batch_size=1, seed=0)
    assert sum(sampler.quotas) == sampler.block and min(sampler.quotas) >= 1


def test_mixture_of_data_sets_joins_classes_by_name(tmp_path):
    for name, folders in {"a": ["cat", "dog"], "b": ["bird", "dog"]}.items():
        for folder in folders:
            (tmp_path / name / folder).mkdir(parents=True)
            (tmp_path / name / folder / "1.png").write_bytes(png((1, 2, 3)))
    sources = [{"path": str(tmp_path / n), "weight": w} for n, w in (("a", 3), ("b", 1))]
    config = DataConfig(train=sources, val=sources[1:], image_size=8)
    data = build_dataset(config, "train")
    assert data.class_names == ["cat", "dog", "bird"] and data.num_classes == 3
    assert [data.sample(i, (0,)).label for i in range(4)] == [0, 1, 2, 1]
    counts = Counter(i for b in take(make_loader(data, batch_size=100, seed=0), 10) for i in b.index.tolist())
    assert abs((counts[0] + counts[1]) / 1000 - 0.75) < 0.05
    val = build_dataset(config, "val", class_names=data.class_names)  # keeps the numbering of training
    assert [val.sample(i, (0,)).label for i in range(2)] == [2, 1]
    with pytest.raises(ValueError, match="class 'bird' is not one of the training classes") as error:
        build_dataset(config, "val", class_names=["cat", "dog"])
    assert "\n" not in str(error.value)


def test_evaluation_reads_everything_once_in_order(dataset, flat):
    data = build_dataset(DataConfig(train={"path": str(flat)}, image_size=8), "train")
    batches = list(eval_batches(data, 8))
    assert [b.index.tolist() for b in batches] == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    reds = torch.cat([b.images[:, 0, 0, 0] for b in batches])
    assert torch.equal(reds, torch.arange(20) * 10 / 127.5 - 1)
    ranks = [list(eval_batches(data, 8, rank=r, world_size=2)) for r in (0, 1)]
    assert [b.index[0].item() for b in ranks[0]] == [0, 16] and [b.index[0].item() for b in ranks[1]] == [8]


def test_validation_is_not_augmented(flat):
    config = DataConfig(train={"path": "x"}, val={"path": str(flat)}, image_size=6, crop="resized", flip=True)
    val = build_dataset(config, "val")
    assert not val.transform.random and torch.equal(val.sample(3, (1,)).image, val.sample(3, (2,)).image)


def test_fingerprint_changes_with_what_changes_the_pixels(flat):
    def fingerprint(**changes):
        config = DataConfig(**({"train": {"path": str(flat)}, "image_size": 6} | changes))
        return build_dataset(config, "train").fingerprint()

    base = fingerprint()
    assert base == fingerprint() == fingerprint(max_bad_share=0.5, num_workers=3) == fingerprint(crop_scale=(0.5, 1.0))
    changed = [
        fingerprint(image_size=7),
        fingerprint(flip=True),
        fingerprint(background="black"),
        fingerprint(crop="resized"),
        fingerprint(crop="resized", crop_scale=(0.5, 1.0)),
        fingerprint(train={"path": str(flat), "limit": 5}),
    ]
    assert len({base, *changed}) == 7


def test_unreadable_file_is_replaced_in_training_and_left_out_of_evaluation(flat):
    (flat / "05.png").write_bytes(b"junk")
    data = build_dataset(DataConfig(train={"path": str(flat)}, image_size=8), "train")
    sample = data.sample(5, (0,))
    assert sample.index == 6 and len(sample.bad) == 1 and "05.png (not in an image format" in sample.bad[0]
    batch = next(iter(eval_batches(data, 8)))
    assert batch.index.tolist() == batch.rows.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert len(batch) == len(batch.images) == 7 and "05.png" in batch.bad[0]


def test_a_source_without_one_readable_image_stops(flat):
    for file in flat.iterdir():
        file.write_bytes(b"junk")
    data = build_dataset(DataConfig(train={"path": str(flat)}, image_size=8), "train")
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"none of 20 images in a row could be read.*\.png") as error:
            next(make_loader(data, batch_size=2, seed=0, num_workers=workers))
        assert "\n" not in str(error.value)


def test_bad_files_stop_above_the_share_and_not_before():
    bad = BadFiles(0.02)
    bad.add(["a.png (x)"], 49)
    assert bad.summary() == "1 unreadable file, such as a.png (x)"
    bad.add(["a.png (x)"], 49)  # 2 of 100: at the limit, not above
    assert bad.summary().startswith("1 unreadable file,")
    with pytest.raises(
        ValueError, match=r"2 unreadable files, such as a.png \(x\); b.png: 2.9%.*max_bad_share"
    ) as error:
        bad.add(["b.png"], 2)
    assert "\n" not in str(error.value)


def test_bad_files_wait_for_a_hundred_or_all():
    BadFiles(0.01).add(["a"], 1)
    with pytest.raises(ValueError, match=r"50\.0%"):
        BadFiles(0.01, total=2).add(["a"], 1)
    assert BadFiles(0.01).summary() == "no unreadable files"


def test_collate_moves_and_takes(dataset):
    batch = collate([dataset.sample(i, (0,)) for i in range(4)])
    assert batch.images.shape == (4, 3, 6, 6) and batch.images.dtype == torch.float32
    assert batch.labels.dtype == batch.index.dtype == batch.rows.dtype == torch.int64 and len(batch) == 4
    assert batch.to("cpu").index.tolist() == [0, 1, 2, 3]
    assert batch.take(torch.tensor([True, False, False, True])).index.tolist() == [0, 3]


def test_a_run_of_bad_files_counts_each_draw_once(flat):
    for i in range(5, 10):
        (flat / f"{i:02d}.png").write_bytes(b"junk")
    data = build_dataset(DataConfig(train={"path": str(flat)}, image_size=8), "train")
    bad = BadFiles(1.0)
    for batch in take(make_loader(data, batch_size=20, seed=0), 2):  # two epochs
        bad.add(batch.bad, len(batch))
    assert bad.count == 10 and len(bad.names) == 5


def test_many_groups_lengthen_the_blocks():
    sampler = StepSampler([2] * 3000, batch_size=6000, seed=0)
    assert Counter(sampler.indices(0)).most_common(1)[0][1] < 10 and sum(sampler.quotas) == 30_000
    draws = Counter(index // 2 for step in range(5) for index in sampler.indices(step))
    assert set(draws.values()) == {10} and len(draws) == 3000


@pytest.mark.parametrize(("balance", "shares"), [(0.0, (0.75, 0.25)), (0.5, (0.634, 0.366)), (1.0, (0.5, 0.5))])
def test_class_balance_draws_rare_classes_more_often_and_every_image_equally_within(rare, balance, shares):
    batches = take(make_loader(rare, batch_size=100, seed=0, class_balance=balance), 100)
    counts = Counter(index for batch in batches for index in batch.index.tolist())
    assert [sum(counts[i] for i in range(9)) / 1e4, sum(counts[i] for i in range(9, 12)) / 1e4] == pytest.approx(
        shares, abs=1e-3
    )
    assert all(batch.labels.eq(batch.index >= 9).all() for batch in batches)
    for images in (range(9), range(9, 12)):
        assert max(counts[i] for i in images) - min(counts[i] for i in images) <= 1
    assert_equal(next(make_loader(rare, batch_size=100, seed=0, class_balance=balance, start_step=7)), batches[7])


def test_small_shares_lengthen_the_blocks():
    """A class of one image beside a large one was drawn 25 times too often."""
    weights = [1e6**0.9, *[1.0] * 500]
    sampler = StepSampler([10**6, *[1] * 500], weights=weights, batch_size=1, seed=0)
    assert sum(sampler.quotas[1:]) / sampler.block == pytest.approx(500 / sum(weights), rel=0.01)


def test_class_balance_keeps_the_weights_of_a_mixture(tmp_path):
    for folder in ("a/cat", "a/dog", "b/dog"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(6 if folder == "a/cat" else 2):
            (tmp_path / folder / f"{number}.png").write_bytes(png((1, 2, 3)))
    sources = [{"path": str(tmp_path / name), "weight": weight} for name, weight in (("a", 3), ("b", 1))]
    data = build_dataset(DataConfig(train=sources, image_size=8), "train")
    batches = take(make_loader(data, batch_size=100, seed=0, class_balance=1.0), 100)
    counts = Counter(index for batch in batches for index in batch.index.tolist())
    groups = [sum(counts[i] for i in indices) / 1e4 for indices in (range(6), (6, 7), (8, 9))]
    assert groups == pytest.approx([0.375, 0.375, 0.25], abs=1e-3)


def test_class_balance_needs_labels(dataset):
    with pytest.raises(ValueError, match=r"^data\.class_balance=0\.5 needs labels, and no image has one; remove it\.$"):
        make_loader(dataset, batch_size=4, seed=0, class_balance=0.5)
