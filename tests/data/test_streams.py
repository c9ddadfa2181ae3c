"""Tar shards: every record once per epoch over all readers, resuming at the recorded shard and offset."""

import itertools
from collections import Counter

import pytest
from small_data import png, write_tar

from genaim.data import DataConfig, StreamDataset, build_dataset, eval_batches, make_loader


@pytest.fixture
def shards(tmp_path):
    """Four shards of ten images; the label of image i is i."""
    for part in range(4):
        files = {}
        for i in range(10 * part, 10 * part + 10):
            files |= {f"{i:03d}.png": png((i, i, i)), f"{i:03d}.cls": str(i).encode()}
        write_tar(tmp_path / f"x-{part:03d}.tar", files)
    return tmp_path


def stream(folder, *, shuffle_buffer=1, pattern="x-{000..003}.tar", extra=(), **options):
    source = {"path": str(folder / pattern), "num_classes": 40, **options}
    return build_dataset(DataConfig(train=[source, *extra], image_size=8, shuffle_buffer=shuffle_buffer), "train")


def labels(loader, batches):
    return [label for batch in itertools.islice(loader, batches) for label in batch.labels.tolist()]


def test_evaluation_is_in_order_and_ranks_share_it(shards):
    data = stream(shards)
    assert isinstance(data, StreamDataset)
    assert [x for b in eval_batches(data, 16) for x in b.labels.tolist()] == list(range(40))
    ranks = [[b.index[0].item() for b in eval_batches(data, 16, rank=r, world_size=2)] for r in (0, 1)]
    assert ranks == [[0, 32], [16]]


def test_pixels_and_labels_stay_together(shards):
    batch = next(make_loader(stream(shards, shuffle_buffer=7), batch_size=8, seed=0))
    grey = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert grey == batch.labels.tolist()


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (1, 2), (8, 0)])
def test_readers_together_see_every_record_once_per_epoch(shards, world_size, num_workers):
    data = stream(shards)
    batch_size = 8
    batches = (40 - world_size * max(num_workers, 1)) // batch_size  # each reader holds one record in its buffer
    seen = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
        seen += labels(make_loader(data, batch_size=batch_size, seed=0, **options), batches)
    assert len(seen) >= 32 and max(Counter(seen).values()) == 1
    assert seen != sorted(seen)


def test_epochs_differ_in_order_and_seeds_too(shards):
    data = stream(shards, shuffle_buffer=20)
    first, second = (
        labels(make_loader(data, batch_size=40, seed=0), 1),
        labels(make_loader(data, batch_size=40, seed=1), 1),
    )
    assert first != second
    assert first == labels(make_loader(data, batch_size=40, seed=0), 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_continues_at_the_recorded_shard_and_offset(shards, num_workers):
    data = stream(shards)
    options = {"batch_size": 5, "seed": 0, "num_workers": num_workers}
    loader = make_loader(data, **options)
    before = labels(loader, 4)
    state = loader.state_dict()
    assert len(state) == max(num_workers, 1)
    resumed = make_loader(data, start_step=4, state=state, **options)
    assert resumed.step == 4
    after = labels(resumed, 3)
    assert not set(before) & set(after)  # within the epoch nothing comes twice
    assert len(set(before) | set(after)) == 35  # and only what the buffers held (one each) is lost


def test_record_names_epoch_shard_and_offset(shards):
    loader = make_loader(stream(shards), batch_size=5, seed=0)
    labels(loader, 4)
    assert loader.state_dict() == {"0/1": {"positions": [[0, 2, 1]], "draws": 20}}  # 20 given, one in the buffer
    labels(loader, 5)
    assert loader.state_dict() == {"0/1": {"positions": [[1, 0, 6]], "draws": 45}}


def test_reader_without_a_record_starts_its_epoch(shards):
    data = stream(shards)
    fresh = labels(make_loader(data, batch_size=5, seed=0, world_size=5), 1)
    assert fresh == labels(make_loader(data, batch_size=5, seed=0, world_size=5, state={"0/1": {}}), 1)


def test_broken_image_and_truncated_shard_are_counted_and_named(shards):
    write_tar(shards / "x-001.tar", {"010.png": b"junk", "010.cls": b"1", "011.txt": b"", "012.png": png((1, 1, 1))})
    whole = (shards / "x-002.tar").read_bytes()
    (shards / "x-002.tar").write_bytes(whole[: len(whole) // 2 + 300])
    batches = list(eval_batches(stream(shards), 16))
    bad = [name for batch in batches for name in batch.bad]
    assert any("x-001.tar:010 (not in an image format" in name for name in bad)
    assert any("x-001.tar:011 (no image among the extensions ['txt'])" in name for name in bad)
    assert any("x-001.tar:012 (no label 'cls'" in name for name in bad)
    assert any(name.startswith(str(shards / "x-002.tar") + " (cut short") for name in bad)
    assert sum(len(b) for b in batches) + len(bad) >= 27
    trained = list(itertools.islice(make_loader(stream(shards), batch_size=8, seed=0), 6))
    assert any("010 (not in an image format" in name for batch in trained for name in batch.bad)


def test_label_outside_the_classes_is_a_bad_record(shards):
    batches = list(eval_batches(stream(shards, num_classes=39), 40))
    assert len(batches[0]) == 39 and "label 39 is not below" in batches[0].bad[0]


def test_without_a_number_of_classes_labels_are_not_read(shards):
    data = stream(shards, num_classes=None)
    assert data.num_classes is None and set(next(eval_batches(data, 40)).labels.tolist()) == {-1}


def test_nothing_readable_stops(shards):
    write_tar(shards / "y.tar", {"1.png": b"junk"})
    write_tar(shards / "z.tar", {})
    with pytest.raises(ValueError, match="none of 1000 records") as error:
        next(make_loader(stream(shards, pattern="y.tar"), batch_size=2, seed=0))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds no records"):
        next(make_loader(stream(shards, pattern="z.tar"), batch_size=2, seed=0))


def test_a_reader_that_never_gets_a_record_stops(shards):
    files = {f"{i}.{ending}": data for i in range(3) for ending, data in {"png": png((1, 1, 1)), "cls": b"1"}.items()}
    write_tar(shards / "few.tar", files)
    few = stream(shards, pattern="few.tar")
    assert labels(make_loader(few, batch_size=4, seed=0, rank=2, world_size=4), 1)
    with pytest.raises(ValueError, match=r"no records for reader 4 of 4; check .*, or take fewer processes"):
        next(make_loader(few, batch_size=4, seed=0, rank=3, world_size=4))


def test_patterns_folders_and_stars_name_the_same_shards(shards):
    base = stream(shards).fingerprint()
    assert stream(shards, pattern="x-*.tar").fingerprint() == base
    assert stream(shards, pattern=".", split="x-").fingerprint() == base
    assert stream(shards, pattern="x-000.tar").fingerprint() != base


def test_mixture_with_a_folder(shards, flat):
    data = stream(shards, shuffle_buffer=4, extra=({"path": str(flat), "weight": 3.0},))
    seen = labels(make_loader(data, batch_size=50, seed=0), 8)
    assert abs(seen.count(-1) / len(seen) - 0.75) < 0.08


def test_classes_of_a_stream_cannot_be_balanced(shards):
    with pytest.raises(ValueError, match=r"^data\.class_balance=0\.5 needs counted images, not a stream; remove it"):
        make_loader(stream(shards), batch_size=4, seed=0, class_balance=0.5)
