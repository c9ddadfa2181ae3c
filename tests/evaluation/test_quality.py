"""Figures of generated images: equal to torch-fidelity's, to closed forms, and after any interruption."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("torch_fidelity")

from genaim.core.progress import SilentProgress
from genaim.data import DataConfig, ImageDataset, build_dataset
from genaim.evaluation.chunks import collect, extract, pictures
from genaim.evaluation.extractors import CIFAR, INCEPTION, Extractor, check_pickle, make_extractor
from genaim.evaluation.image_sets import CHUNK, ImageSet, choose_labels, evenly, from_array, from_folder, real, some
from genaim.evaluation.npz import read_npz, write_npz
from genaim.evaluation.quality import (
    PROTOCOLS,
    Layers,
    Reference,
    Statistics,
    bootstrap_error,
    features_to_statistics,
    frechet_distance,
    precision_recall,
    quality,
    rows_at_a_time,
    statistics_to_distance,
)

CPU = torch.device("cpu")


@pytest.fixture
def cifar(cifar_weights: Path) -> Extractor:
    return make_extractor(CIFAR, CPU, feature_extractor_weights_path=str(cifar_weights))


def noise_images(count: int, side: int = 8, shift: int = 0) -> ImageSet:
    """Random pictures of which each depends on its index alone."""

    def images(wanted: range) -> Tensor:
        rows = [np.random.default_rng((shift, i)).integers(shift, 256, (3, side, side)) for i in wanted]
        return torch.from_numpy(np.stack(rows)).to(torch.uint8)

    return ImageSet("noise", f"noise {count} {side} {shift}", count, (side, side), images)


def write_folder(folder: Path, images: ImageSet) -> Path:
    folder.mkdir()
    for i, pixels in enumerate(images.images(range(images.count))):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return folder


# Figures


def test_figures_equal_torch_fidelitys_own_to_its_print_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity import calculate_metrics

    path = inception_file(tmp_path, monkeypatch)
    a, b = (write_folder(tmp_path / name, noise_images(n, 12, s)) for name, n, s in (("a", 10, 0), ("b", 12, 40)))
    theirs = calculate_metrics(
        input1=str(a),
        input2=str(b),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor=INCEPTION,
        feature_layer_prc="2048",
        feature_extractor_weights_path=str(path),
        kid_subset_size=10,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    extractor = make_extractor(INCEPTION, CPU, feature_extractor_weights_path=str(path))
    found = []
    for folder in (a, b):
        images = from_folder(folder)
        extract(images, extractor, tmp_path / "features" / folder.name, SilentProgress())
        found.append(collect(tmp_path / "features" / folder.name, images.count, ["2048", "logits_unbiased"]))
    ours = quality(found[0], Reference(found[1]["2048"]), extractor.layers, PROTOCOLS["fidelity"])
    for name, value in {
        "fid": theirs["frechet_inception_distance"],
        "kid": theirs["kernel_inception_distance_mean"],
        "precision": theirs["precision"],
        "recall": theirs["recall"],
        "inception_score": theirs["inception_score_mean"],
    }.items():
        assert f"{ours[name].value:.7g}" == f"{value:.7g}", name
    assert f"{ours['kid'].error:.7g}" == f"{theirs['kernel_inception_distance_std']:.7g}"
    assert f"{ours['inception_score'].error:.7g}" == f"{theirs['inception_score_std']:.7g}"


def inception_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random Inception weights in the file format that torch-fidelity publishes."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        model = inception.FeatureExtractorInceptionV3("random", ["2048"])
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    path = folder / "inception.pth"
    torch.save(model.state_dict(), path)
    return path


def gaussian(count: int, features: int, seed: int) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    white = gaussian(4000, 3, 0).double()
    white = torch.linalg.qr(white - white.mean(0))[0] * 3999**0.5  # mean 0, covariance 1 exactly
    scale, shift = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 0.0, -2.0]).double()
    expected = (shift.square() + (scale - 1).square()).sum().item()
    assert frechet_distance(white, white * scale + shift) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-6)
    analytic = [Statistics(np.zeros(3), np.eye(3)), Statistics(shift.numpy(), np.diag(scale.square().numpy()))]
    assert statistics_to_distance(*analytic) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="needs 2 images or more"):
        frechet_distance(white[:1], white)
    with pytest.raises(ValueError, match="flatten them"):
        frechet_distance(white, white[:, :2])
    with pytest.raises(ValueError, match="3 features cannot be compared with those of 2"):
        statistics_to_distance(analytic[0], Statistics(np.zeros(2), np.eye(2)))


def test_bootstrap_error_is_the_spread_of_independent_sets() -> None:
    reference = Statistics(np.zeros(4), np.diag([1.0, 2.0, 0.5, 1.0]))
    sets = [gaussian(200, 4, seed) + 1 for seed in range(60)]
    spread = np.std([statistics_to_distance(features_to_statistics(s.double()), reference) for s in sets])
    errors = np.mean([bootstrap_error(s, reference, 60) for s in sets[:5]])
    assert errors == pytest.approx(spread, rel=0.3)


def test_what_cannot_be_compared_is_refused() -> None:
    layers, protocol = Layers("f"), PROTOCOLS["fidelity"]
    good = {"f": gaussian(12, 2, 0)}
    with pytest.raises(ValueError, match="9 generated images are too few for the statistics; give 10 or more"):
        quality({"f": gaussian(9, 2, 0)}, Reference(good["f"]), layers, protocol)
    with pytest.raises(ValueError, match="9 reference images are too few"):
        quality(good, Reference(gaussian(9, 2, 0)), layers, protocol)
    with pytest.raises(ValueError, match="has 3 features an image, and the generated images have 2"):
        quality(good, Reference(gaussian(12, 3, 0)), layers, protocol)


def test_the_adm_protocol_splits_in_order_and_leaves_out_kid() -> None:
    features = {"f": gaussian(40, 2, 0), "l": gaussian(40, 5, 1)}
    reference = Reference(gaussian(40, 2, 2))
    adm, fidelity = (quality(features, reference, Layers("f", "l"), PROTOCOLS[name]) for name in ("adm", "fidelity"))
    assert "kid" not in adm and fidelity["kid"].error is None  # of 40 images there is one subset of 40
    p = features["l"].double().softmax(1).unflatten(0, (10, 4))
    expected = (p * (p.log() - p.mean(1, keepdim=True).log())).sum(2).mean(1).exp().mean().item()
    assert adm["inception_score"].value == pytest.approx(expected, rel=1e-9)
    assert fidelity["inception_score"].value != pytest.approx(expected, rel=1e-6)


def test_statistics_alone_give_the_same_distance() -> None:
    features, others = {"f": gaussian(40, 2, 0)}, gaussian(30, 2, 2)
    whole = quality(features, Reference(others), Layers("f"), PROTOCOLS["adm"])
    alone = quality(features, Reference(None, features_to_statistics(others)), Layers("f"), PROTOCOLS["adm"])
    assert alone == {"fid": whole["fid"]}


def test_precision_and_recall_of_known_regions() -> None:
    features = gaussian(200, 8, 0)
    assert precision_recall(features, features) == (1.0, 1.0)
    assert precision_recall(gaussian(200, 8, 1) + 1000, features) == (0.0, 0.0)
    alike = precision_recall(gaussian(500, 8, 1), gaussian(500, 8, 0))
    assert min(alike) > 0.7
    two_modes = torch.cat([gaussian(250, 8, 0) - 10, gaussian(250, 8, 1) + 10])
    one_mode = precision_recall(gaussian(500, 8, 2) - 10, two_modes)
    assert one_mode.precision > 0.7 and one_mode.recall <= 0.5
    back = precision_recall(two_modes, gaussian(500, 8, 2) - 10)
    assert (back.recall, back.precision) == one_mode
    one_picture = precision_recall(two_modes[:1].expand(500, -1), two_modes)
    assert one_picture.precision == 1 and one_picture.recall < 0.003  # its own point or, by rounding, none
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0]])  # radii for k = 1: 1, 1, 2, 3
    assert precision_recall(torch.tensor([[-1.0], [-1.1], [5.0], [9.5]]), line, k=1).precision == 0.5


def test_precision_and_recall_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = gaussian(300, 16, 0), gaussian(250, 16, 1) * 1.2
    whole = precision_recall(*sets)
    for rows in (7, 40, 100):
        monkeypatch.setattr("genaim.evaluation.quality.rows_at_a_time", lambda count, rows=rows: rows)
        assert precision_recall(*sets) == whole
    assert 0.1 < whole.recall < 1 and 0.1 < whole.precision < 1
    assert (rows_at_a_time(1000), rows_at_a_time(1_281_167), rows_at_a_time(10**12)) == (10_000, 97, 32)


@pytest.mark.parametrize(
    ("generated", "reference", "k", "message"),
    [((9, 2), (3, 2), 3, "needs more than 3 images"), ((9, 2), (9, 2), 0, "k = 0"), ((9, 3), (9, 2), 3, "must be")],
)
def test_precision_and_recall_of_bad_sets_are_refused(
    generated: tuple[int, int], reference: tuple[int, int], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(torch.zeros(generated), torch.zeros(reference), k)


# Chunks


def test_interrupted_and_shared_work_gives_the_same_features(tmp_path: Path, cifar: Extractor) -> None:
    images = noise_images(2 * CHUNK + 20)
    extract(images, cifar, tmp_path / "whole", SilentProgress(), keep=True)

    def stops(wanted: range) -> Tensor:
        if wanted.start == CHUNK:
            raise KeyboardInterrupt
        return images.images(wanted)

    with pytest.raises(KeyboardInterrupt):
        extract(ImageSet("noise", "", images.count, images.size, stops), cifar, tmp_path / "cut", SilentProgress())
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["000000.safetensors"]
    extract(images, cifar, tmp_path / "cut", SilentProgress())
    for process in (1, 0):
        extract(images, cifar, tmp_path / "two", SilentProgress(), process=process, processes=2)
    whole = collect(tmp_path / "whole", images.count, ["features", "logits"])
    for name in ("cut", "two"):
        for layer, features in collect(tmp_path / name, images.count, ["features", "logits"]).items():
            assert features.equal(whole[layer])
    assert pictures(tmp_path / "whole", 2).equal(images.images(range(2 * CHUNK, images.count)))
    before = (tmp_path / "two" / "000001.safetensors").stat().st_mtime_ns
    extract(images, cifar, tmp_path / "two", SilentProgress())  # there is nothing to do
    assert (tmp_path / "two" / "000001.safetensors").stat().st_mtime_ns == before
    extract(images, cifar, tmp_path / "two", SilentProgress(), keep=True)  # the images are missing
    assert pictures(tmp_path / "two", 0).equal(images.images(range(CHUNK)))


def test_the_cost_is_told_before_and_after_the_first_chunk(tmp_path: Path, cifar: Extractor) -> None:
    told: list[str] = []

    class Said(SilentProgress):
        def say(self, text: str) -> None:
            told.append(text)

    extract(noise_images(2 * CHUNK), cifar, tmp_path, SilentProgress())
    extract(noise_images(4 * CHUNK - 1), cifar, tmp_path, Said())
    assert told[0] == f"features of noise: 2 of 4 chunks of {CHUNK} to compute"
    assert re.fullmatch(rf"features of noise: about 0:\d\d for 1 more of {CHUNK} images each", told[1])


# Images


def test_labels_of_an_image_do_not_depend_on_the_count() -> None:
    real_ones = torch.tensor([0] * 60 + [1] * 30 + [2] * 10 + [-1] * 5)
    for rule in ("balanced", "uniform", "data"):
        many = choose_labels(rule, 1000, [0, 1, 2], 5, real_ones)
        assert choose_labels(rule, 70, [0, 1, 2], 5, real_ones).equal(many[:70])
        shares = many.bincount(minlength=3) / 1000
        expected = [0.6, 0.3, 0.1] if rule == "data" else [1 / 3] * 3
        tolerance = 0.05 if rule == "uniform" else 0.005
        assert shares.tolist() == pytest.approx(expected, abs=tolerance)
    assert choose_labels("balanced", 6, [7, 3], 0).tolist() == [7, 3, 7, 3, 7, 3]
    assert not choose_labels("uniform", 100, [0, 1], 0).equal(choose_labels("uniform", 100, [0, 1], 1))
    with pytest.raises(ValueError, match="the list of classes is empty"):
        choose_labels("balanced", 4, [], 0)
    with pytest.raises(ValueError, match="which has none; take balanced or uniform"):
        choose_labels("data", 4, [0, 1], 0, torch.full((9,), -1))


def test_real_images_are_those_of_validation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", noise_images(12, 6))
    config = DataConfig.model_validate({"train": {"path": str(folder)}, "val": {"path": str(folder)}, "image_size": 6})
    data = build_dataset(config, "val")
    assert isinstance(data, ImageDataset)
    chosen = evenly(range(12), 5)
    assert chosen == [0, 2, 4, 7, 9]
    images = real("photos", data, chosen)
    raw = from_folder(folder)
    assert images.images(range(1, 4)).equal(raw.images(range(12))[[2, 4, 7]])
    assert images.key != real("photos", data, [0, 1]).key
    few = some(raw, 5)
    assert few.count == 5 and few.images(range(1, 4)).equal(images.images(range(1, 4))) and few.key != raw.key
    assert some(raw, 12) is raw and some(raw, None) is raw


def test_pictures_of_different_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", noise_images(3, 6))
    Image.new("RGB", (6, 5)).save(folder / "002.png")
    with pytest.raises(ValueError, match=r"has 6x5 pixels, and .* has 6x6; give images of one size"):
        from_folder(folder).images(range(3))


# Files


def test_npz_files_of_references(tmp_path: Path) -> None:
    statistics = features_to_statistics(gaussian(20, 3, 0))
    array = noise_images(4).images(range(4)).permute(0, 2, 3, 1).numpy()
    about: dict[str, Any] = {"extractor": "mine 123", "count": 4, "image_size": (8, 6)}
    write_npz(tmp_path / "a.npz", mu=statistics.mu, sigma=statistics.sigma, arr_0=array, **about)
    found = read_npz(tmp_path / "a.npz")
    assert found.statistics is not None and found.images is not None and found.extractor == "mine 123"
    assert (found.count, found.size) == (4, (8, 6))
    reshaped = from_array("a", array.reshape(4, 4, 16, 3))
    assert reshaped.key != from_array("a", array).key == found.images.key
    assert (found.statistics.mu == statistics.mu).all() and (found.statistics.sigma == statistics.sigma).all()
    assert found.images.images(range(1, 3)).equal(noise_images(4).images(range(1, 3)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    write_npz(tmp_path / "mu.npz", mu=statistics.mu, sigma=statistics.sigma[:2])
    write_npz(tmp_path / "none.npz", other=array)
    write_npz(tmp_path / "float.npz", arr_0=array / 255)
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "array.npy", array)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez_compressed(tmp_path / "deflate.npz", arr_0=np.zeros((9, 9, 9, 3), np.uint8))
    content = bytearray((tmp_path / "deflate.npz").read_bytes())
    content[44:60] = b"\xff" * 16  # within the compressed data
    (tmp_path / "deflate.npz").write_bytes(content)
    write_npz(tmp_path / "size.npz", mu=statistics.mu, sigma=statistics.sigma, image_size="large")
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    for name, told in {
        "mu": "they must be",
        "none": "neither mu and sigma nor images",
        "float": "it must be uint8",
        "text": "no readable npz",
        "pickle": "no readable npz",
        "array": "it is a single array",
        "deflate": "no readable npz",
        "size": "image_size that is no number",
    }.items():
        with pytest.raises(ValueError, match=told):
            read_npz(tmp_path / f"{name}.npz")


class Malice:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemError('code was run')",))


def test_weight_files_are_looked_at_before_torch_fidelity_unpickles_them(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pth")
    check_pickle(tmp_path / "good.pth")
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"a": Malice()}))
    torch.save({"a": Malice()}, tmp_path / "worse.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("bad", "worse", "text"):
        with pytest.raises(ValueError, match=r"is no file of plain weights"):
            check_pickle(tmp_path / f"{name}.pth")
    with pytest.raises(ValueError, match="holds no table of weights"):
        check_pickle(tmp_path / "list.pth")


def test_extractors_by_name(cifar_weights: Path) -> None:
    mine = make_extractor(
        "genaim.evaluation.extractors:CifarExtractor", CPU, feature_extractor_weights_path=str(cifar_weights)
    )
    assert mine(noise_images(2).images(range(2)))["features"].shape == (2, 64)
    for name, told in {
        "inceptoin-v3-compat": "did you mean 'inception-v3-compat'",
        "no.such:Thing": "cannot be imported",
        "pathlib:Path": "is no sub-class",
    }.items():
        with pytest.raises(ValueError, match=told):
            make_extractor(name, CPU)
