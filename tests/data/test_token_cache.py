"""The cache returns what encoding returns, is reused, and survives being killed."""

import itertools
import pickle

import pytest
import torch

from genaim.data import BadFiles, DataConfig, build_dataset, build_token_cache, eval_batches, make_loader
from genaim.data import token_cache as module


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_IMAGES", 6)


def images(folder, **options):
    return build_dataset(DataConfig(**({"train": {"path": str(folder)}, "image_size": 8} | options)), "train")


class Encoder:
    """Red level of the left and right columns, as codes or latents; counts its calls."""

    def __init__(self, continuous=False, fail_after=None):
        self.continuous, self.fail_after, self.calls, self.images = continuous, fail_after, 0, 0

    def __call__(self, batch):
        if self.calls == self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.images += len(batch)
        red = batch[:, 0, 0, [0, -1]]
        return red[..., None] if self.continuous else ((red + 1) * 127.5).round().long()


def build(data, encoder, folder, **options):
    options = {"tokenizer_fingerprint": "t", "batch_size": 4} | options
    return build_token_cache(data, encoder, folder=folder, **options)


def everything(tokens):
    batches = list(eval_batches(tokens, 7))
    return torch.cat([b.tokens for b in batches]), torch.cat([b.labels for b in batches])


def test_cache_holds_what_encoding_gives(flat, tmp_path):
    cached = build(images(flat), Encoder(), tmp_path / "c")
    tokens, labels = everything(cached)
    assert tokens.dtype == torch.int64 and len(cached) == 20
    assert torch.equal(tokens, (torch.arange(20) * 10)[:, None].expand(20, 2))
    assert labels.tolist() == [-1] * 20
    latents, _ = everything(build(images(flat), Encoder(continuous=True), tmp_path / "f", tokenizer_fingerprint="f"))
    assert latents.dtype == torch.float32
    assert torch.equal(latents[..., 0], tokens / 127.5 - 1)


def test_labels_classes_and_weights_come_along(classes, flat, tmp_path):
    sources = [{"path": str(classes), "weight": 3.0}, {"path": str(flat)}]
    data = images(flat, train=sources)
    cached = build(data, Encoder(), tmp_path / "c")
    assert everything(cached)[1].tolist() == [0, 0, 0, 1, 1, 1] + [-1] * 20
    assert (cached.class_names, cached.num_classes) == (["cat", "dog"], 2)
    assert (cached.lengths, cached.weights) == ([6, 20], [3.0, 1.0])
    views = build(images(flat, train=sources, flip=True), Encoder(), tmp_path / "c", views=3)
    assert everything(views)[1].tolist() == everything(cached)[1].tolist() and views.lengths == [6, 20]


def test_complete_cache_is_reused(flat, tmp_path):
    first = Encoder()
    build(images(flat), first, tmp_path / "c")
    again = Encoder()
    cached = build(images(flat), again, tmp_path / "c", batch_size=3)
    assert first.images == 20 and again.calls == 0 and len(cached) == 20


@pytest.mark.parametrize(
    ("data_options", "cache_options"),
    [({}, {"tokenizer_fingerprint": "u"}), ({"image_size": 7}, {}), ({}, {"seed": 1}), ({"background": "black"}, {})],
)
def test_another_key_is_another_cache(flat, tmp_path, data_options, cache_options):
    base = build(images(flat), Encoder(), tmp_path / "c")
    encoder = Encoder()
    other = build(images(flat, **data_options), encoder, tmp_path / "c", **cache_options)
    assert encoder.images == 20 and other.fingerprint() != base.fingerprint()
    assert len(list((tmp_path / "c").iterdir())) == 2


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_killed_build_resumes_to_the_same_content(flat, tmp_path):
    build(images(flat), Encoder(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build(images(flat), Encoder(fail_after=3), tmp_path / "cut")  # in the second shard: 4 + 2 images each
    done = contents(tmp_path / "cut")
    assert len(done) == 1
    rest = Encoder()
    reports = []
    build(images(flat), rest, tmp_path / "cut", report=lambda n, total: reports.append((n, total)))
    assert rest.images == 14
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert reports[0] == (6, 20) and reports[-1] == (20, 20) and reports == sorted(reports)


def test_cut_file_is_written_again_and_no_partial_name_is_left(flat, tmp_path, monkeypatch):
    build(images(flat), Encoder(), tmp_path / "c")
    whole = contents(tmp_path / "c")
    file = next((tmp_path / "c").rglob("shard-00001.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    encoder = Encoder()
    build(images(flat), encoder, tmp_path / "c")
    assert encoder.images == 6 and contents(tmp_path / "c") == whole

    def full_disk(content, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(OSError, match="disk full"):
        build(images(flat), Encoder(), tmp_path / "d")
    assert not [path for path in (tmp_path / "d").rglob("*") if path.is_file()]


def test_views_are_augmented_passes_chosen_by_key(tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "x").mkdir()
    for i in range(5):
        Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 20 + i, (8, 1))).save(tmp_path / "x" / f"{i}.png")
    data = images(tmp_path / "x", flip=True)
    encoder = Encoder()
    cached = build(data, encoder, tmp_path / "c", views=6)
    assert encoder.images == 30 and len(cached) == 5
    for i in range(5):
        seen = {tuple(cached.sample(i, (0, step)).tokens.tolist()) for step in range(60)}
        assert seen <= {(i, 140 + i), (140 + i, i)}
    both = {tuple(cached.sample(i, (0, s)).tokens.tolist()) for i in range(5) for s in range(60)}
    assert len(both) > 5  # some image shows both of its sides
    with pytest.raises(ValueError, match="views=2 needs a random crop or flip"):
        build(images(tmp_path / "x"), Encoder(), tmp_path / "c", views=2)


def test_low_resolution_images_are_of_the_view_of_their_tokens(flat, tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "x").mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "x" / f"{i}.png")
    data = images(tmp_path / "x", flip=True)
    plain = build(data, lambda batch: batch.flatten(1)[..., None], tmp_path / "c", views=4)
    cached = build(data, lambda batch: batch.flatten(1)[..., None], tmp_path / "c", views=4, low_res=2)
    assert cached.fingerprint() != plain.fingerprint() and plain.sample(0, (0,)).low_res is None
    batch = next(make_loader(pickle.loads(pickle.dumps(cached)), batch_size=20, seed=0))
    assert batch.take(batch.rows < 3).to("cpu").low_res.equal(batch.low_res[:3])
    for pixels, small in zip(batch.tokens, batch.low_res, strict=True):
        whole = Image.fromarray(((pixels.view(3, 8, 8) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
        expected = np.asarray(whole.resize((2, 2), Image.Resampling.BICUBIC)) / 127.5 - 1
        assert np.allclose(small.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_loader_resumes_on_tokens(flat, tmp_path):
    cached = build(images(flat), Encoder(), tmp_path / "c")
    through = list(itertools.islice(make_loader(cached, batch_size=6, seed=0), 5))
    resumed = make_loader(cached, batch_size=6, seed=0, start_step=3)
    assert torch.equal(next(resumed).tokens, through[3].tokens)
    assert through[0].images is None and through[0].tokens.shape == (6, 2)
    assert (through[0].tokens[:, 0] == through[0].index * 10).all()


def test_tokens_travel_to_spawned_workers_without_their_content(flat, tmp_path):
    cached = build(images(flat), Encoder(), tmp_path / "c")
    copy = pickle.loads(pickle.dumps(cached))
    assert torch.equal(everything(copy)[0], everything(cached)[0])
    assert "_tokens" not in cached.__getstate__()


def test_unreadable_images_are_left_out_counted_and_remembered(flat, tmp_path):
    for name in ("05.png", "06.png", "19.png"):
        (flat / name).write_bytes(b"junk")
    for encoder in (Encoder(), Encoder()):  # the second call finds them in the files
        bad = BadFiles(0.5)
        cached = build(images(flat), encoder, tmp_path / "c", bad_files=bad)
        assert len(cached) == 17 and cached.lengths == [17]
        assert bad.count == 3 and bad.seen == 20 and "05.png" in bad.summary()
    assert encoder.calls == 0
    expected = [i * 10 for i in range(20) if i not in (5, 6, 19)]
    assert everything(cached)[0][:, 0].tolist() == expected
    with pytest.raises(ValueError, match=r"15\.0%.*max_bad_share = 10\.0%"):
        build(images(flat), Encoder(), tmp_path / "c", bad_files=BadFiles(0.1, total=20))


def test_encoder_of_the_wrong_shape_is_named(flat, tmp_path):
    with pytest.raises(ValueError, match=r"encode_fn gave \(4, 3, 8, 8\) for 4 images"):
        build(images(flat), lambda batch: batch, tmp_path / "c")


def test_stream_is_refused(tmp_path):
    from small_data import write_tar

    write_tar(tmp_path / "x.tar", {})
    with pytest.raises(ValueError, match="not a stream"):
        build(images(tmp_path / "x.tar"), Encoder(), tmp_path / "c")
