"""A small convolutional classifier of digits: an independent judge of generated ones.

It is trained on real MNIST only and shares no weights with any tokenizer or generator. Its penultimate layer gives the
features for precision and recall in `genaim.evaluation.judge`.
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genaim.config import one_line
from genaim.data import DataConfig, SourceConfig, build_dataset, eval_batches
from genaim.evaluation.probe_training import Report
from genaim.files import file_written_whole

IMAGE_SIZE = 28
NUM_CLASSES = 10
NUM_FEATURES = 128
MAX_SHIFT = 2  # pixels; digits of MNIST are centred by mass to about this
CHUNK = 500  # images computed together in evaluation


class DigitCNN(nn.Module):
    """Three convolutions with pooling and two linear layers, 0.24M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * 3 * 3, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer.

        Args:
            images: (B, 1 or 3, 28, 28) in [-1, 1]; colours are averaged.

        Returns:
            (B, 128), not negative.

        Raises:
            ValueError: If the images have another size.
        """
        if images.dim() != 4 or tuple(images.shape[2:]) != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"DigitCNN takes images (B, C, {IMAGE_SIZE}, {IMAGE_SIZE}), not {tuple(images.shape)}; resize them."
            )
        maps = self.convolutions(images.mean(1, keepdim=True))
        return F.relu(self.hidden(maps.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the digits, (B, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def train_digit_cnn(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 3,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    report: Report | None = None,
) -> DigitCNN:
    """Trains a classifier with AdamW, one learning-rate cycle and random shifts.

    Args:
        images: (M, 1 or 3, 28, 28) in [-1, 1]; M is at least the batch size.
        labels: Digits, (M,) int64.
        epochs: Passes over the images; what a pass leaves over from whole batches is dropped.
        batch_size: Images of a step.
        lr: Peak learning rate.
        seed: Seed of weights, order and shifts; PyTorch's own generator is left as it was.
        report: Told about every step.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: If there are fewer images than a batch.
    """
    if len(images) < batch_size:
        raise ValueError(f"{len(images)} images do not fill a batch of {batch_size}; give more, or lower batch_size.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitCNN()
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(rows) < batch_size:
                continue
            loss = F.cross_entropy(model(shift(images[rows], generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if report is not None:
                report(step, steps)
    return model.eval()


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every image by up to 2 pixels in each direction; the ground is -1.

    Args:
        images: (B, C, H, W).
        generator: Source of the shifts.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (MAX_SHIFT,) * 4, value=-1.0)
    top, left = torch.randint(2 * MAX_SHIFT + 1, (2, batch, 1), generator=generator)
    rows = (top + torch.arange(height))[:, :, None]  # (B, H, 1)
    columns = (left + torch.arange(width))[:, None, :]  # (B, 1, W)
    which = torch.arange(batch)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)


@torch.no_grad()
def digits_and_features(model: DigitCNN, images: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely digit (M,) int64 and the features (M, 128) of images (M, 1 or 3, 28, 28) in [-1, 1]."""
    model.eval()
    features = torch.cat([model.features(part) for part in images.split(CHUNK)])
    return model.head(features).argmax(1), features


def accuracy(model: DigitCNN, images: Tensor, labels: Tensor) -> float:
    """Share of images whose most likely digit is their label."""
    return (digits_and_features(model, images)[0] == labels).double().mean().item()


def load_digits(folder: Path, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Real digits of an IDX folder such as MNIST's.

    Args:
        folder: Where the files lie.
        split: train or test.
        limit: Only the first n.

    Returns:
        Images (M, 1, 28, 28) float32 in [-1, 1] and labels (M,) int64.

    Raises:
        ValueError: If the folder holds no such digits.
    """
    source = SourceConfig(path=str(folder), format="idx", split=split, limit=limit)
    dataset = build_dataset(DataConfig(train=[source], val=[source], image_size=IMAGE_SIZE), "val")
    batches = list(eval_batches(dataset, CHUNK))
    labels = torch.cat([batch.labels for batch in batches])
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(f"'{folder}' has labels outside 0 to {NUM_CLASSES - 1}; give the folder of MNIST.")
    return torch.cat([batch.images[:, :1] for batch in batches if batch.images is not None]), labels


def save_digit_cnn(path: Path, model: DigitCNN, test_accuracy: float) -> None:
    """Writes the weights and their test accuracy, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as temporary:
        save_file(model.state_dict(), temporary, metadata={"test_accuracy": repr(test_accuracy)})


def load_digit_cnn(path: Path) -> tuple[DigitCNN, float]:
    """The classifier of `save_digit_cnn`, in evaluation mode, and its test accuracy.

    Raises:
        ValueError: If the file is not its weights.
    """
    model = DigitCNN()
    try:
        model.load_state_dict(load_file(path))
        with safe_open(path, "pt") as file:
            test_accuracy = float(file.metadata()["test_accuracy"])
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        problem = one_line(error)
        raise ValueError(f"'{path}' holds no digit classifier ({problem}); remove it to train it anew.") from None
    return model.eval(), test_accuracy
