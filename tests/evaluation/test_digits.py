"""The judge of digits learns, repeats itself, and judges; its command refuses what it cannot judge."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_fidelity")

from apps.judge_digits import app
from genaim.evaluation.digits import (
    DigitCNN,
    accuracy,
    load_digit_cnn,
    load_digits,
    save_digit_cnn,
    shift,
    train_digit_cnn,
)
from genaim.evaluation.judge import judge_digits
from genaim.pretrained import save_model
from genaim.tokenizers import fingerprint
from tests.evaluation.digits import bars, random_var, write_bars


@pytest.fixture(scope="module")
def cnn() -> DigitCNN:
    return train_digit_cnn(*bars(640), epochs=4, batch_size=32)


def test_it_learns_separable_classes(cnn: DigitCNN) -> None:
    images, labels = bars(200, seed=1)
    assert accuracy(cnn, images, labels) > 0.98
    assert accuracy(cnn, images.expand(-1, 3, -1, -1), labels) > 0.98  # in colours


def test_training_is_repeatable_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, second = (train_digit_cnn(*bars(64), epochs=1, batch_size=32, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_images_and_other_sizes_are_refused(cnn: DigitCNN) -> None:
    with pytest.raises(ValueError, match="do not fill a batch"):
        train_digit_cnn(*bars(10), batch_size=32)
    with pytest.raises(ValueError, match="28, 28"):
        cnn.features(torch.zeros(1, 3, 32, 32))


def test_features_are_those_before_the_head(cnn: DigitCNN) -> None:
    images, _ = bars(5)
    with torch.no_grad():
        assert cnn.features(images).shape == (5, 128)
        torch.testing.assert_close(cnn.head(cnn.features(images)), cnn(images))


def test_shift_moves_every_image_by_itself() -> None:
    image = torch.full((1, 1, 28, 28), -1.0)
    image[0, 0, 10, 20] = 1.0
    moved = shift(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    places = moved.eq(1).nonzero()[:, 2:]  # one pixel of each image
    assert len(places) == 200
    assert {tuple(p) for p in places.tolist()} == {(r, c) for r in range(8, 13) for c in range(18, 23)}
    assert moved.eq(-1).sum() == 200 * (28 * 28 - 1)


def test_weights_and_accuracy_come_back(cnn: DigitCNN, tmp_path: Path) -> None:
    save_digit_cnn(tmp_path / "judge" / "cnn.safetensors", cnn, 0.9942)
    loaded, test_accuracy = load_digit_cnn(tmp_path / "judge" / "cnn.safetensors")
    assert test_accuracy == 0.9942
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in cnn.state_dict().items())
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no digit classifier"):
        load_digit_cnn(tmp_path / "other.safetensors")


def test_idx_digits_are_read_in_the_range_of_images(tmp_path: Path) -> None:
    write_bars(tmp_path / "mnist")
    images, labels = load_digits(tmp_path / "mnist", "test", limit=30)
    expected, expected_labels = bars(60, seed=1)
    torch.testing.assert_close(images, expected[:30], rtol=0, atol=1 / 255)
    assert torch.equal(labels, expected_labels[:30])


def test_judging_real_digits_finds_them_right_and_varied(cnn: DigitCNN) -> None:
    images, labels = bars(100, seed=2)
    test, train = bars(100, seed=3)[0], bars(100, seed=4)[0]
    good = judge_digits(cnn, images, labels, test, train)
    assert good["agreement"] > 0.98
    assert set(good["agreement_per_class"]) == set("0123456789")
    wrong = judge_digits(cnn, images, (labels + 1) % 10, test, train)
    assert wrong["agreement"] < 0.02
    assert wrong["recall"] == good["recall"]
    same = judge_digits(cnn, images[:10].repeat(10, 1, 1, 1), labels, test, train)
    assert same["agreement"] > 0.98
    assert same["recall"] < good["recall"]


@pytest.fixture
def workplace(tmp_path: Path, cnn: DigitCNN) -> Path:
    write_bars(tmp_path / "mnist")
    save_model(tmp_path / "noise", random_var(28, 10))
    save_digit_cnn(tmp_path / "cnn.safetensors", cnn, 0.995)
    return tmp_path


def judge(root: Path, *more: str, model: str = "noise", weights: str = "cnn") -> None:
    options = {
        "--model": str(root / model),
        "--judge": str(root / f"{weights}.safetensors"),
        "--data": str(root / "mnist"),
        "--json": str(root / "report.json"),
    }
    app([word for pair in options.items() for word in pair] + ["-n", "20", *more], standalone_mode=False)


def test_the_command_writes_its_figures(workplace: Path, cnn: DigitCNN) -> None:
    judge(workplace, "--temperature", "0", "--seed", "3")
    report = json.loads((workplace / "report.json").read_text())
    assert report["generated"] == 20
    assert report["equal_pairs"] >= 10  # without chance, both digits of a class are equal
    assert report["judge_accuracy"] == 0.995 and report["judge_weights"] == fingerprint(cnn)
    assert report["settings"]["seed"] == 3
    assert report["settings"]["batch_size"] == 64
    assert str(workplace) not in json.dumps(report["settings"])


def test_the_command_refuses_a_poor_judge(workplace: Path, cnn: DigitCNN) -> None:
    save_digit_cnn(workplace / "poor.safetensors", cnn, 0.98)
    with pytest.raises(ValueError, match=r"98\.00% of the test digits"):
        judge(workplace, weights="poor")


def test_the_command_trains_a_missing_judge_and_keeps_a_good_one_only(tmp_path: Path) -> None:
    save_model(tmp_path / "noise", random_var(28, 10))
    write_bars(tmp_path / "mnist", count=128)
    with pytest.raises(ValueError, match="less than 99%"):
        judge(tmp_path)
    assert not (tmp_path / "cnn.safetensors").exists()
    write_bars(tmp_path / "mnist", count=2560)
    judge(tmp_path)
    assert load_digit_cnn(tmp_path / "cnn.safetensors")[1] > 0.99


def test_the_command_refuses_what_makes_no_digits(workplace: Path) -> None:
    save_model(workplace / "emoji", random_var(16, 3))
    with pytest.raises(ValueError, match="16x16 pixels in 3 classes"):
        judge(workplace, model="emoji")
    with pytest.raises(ValueError, match="k = 3 needs more than 3"):
        judge(workplace, "-n", "3")
