"""Generated digits before an independent classifier: do they show what was asked, and are they varied?"""

from typing import Any

from torch import Tensor

from genaim.evaluation.digits import DigitCNN, digits_and_features
from genaim.evaluation.quality import NEIGHBOURS, precision_recall


def judge_digits(
    cnn: DigitCNN, images: Tensor, labels: Tensor, test: Tensor, train: Tensor, *, k: int = NEIGHBOURS
) -> dict[str, Any]:
    """Figures of generated digits, with those of real training digits as the reference.

    Args:
        cnn: The judge; its penultimate layer gives the features of precision and recall.
        images: Generated, (M, 1 or 3, 28, 28) in [-1, 1].
        labels: The digits asked for, (M,) int64.
        test: Real digits to compare with, (L, 1 or 3, 28, 28).
        train: Other real digits, best as many as generated ones.
        k: Neighbour that gives the radius of a ball.

    Returns:
        Shares in [0, 1] and numbers of images, JSON-able.

    Raises:
        ValueError: If torch-fidelity is not installed, or a set has no k-th neighbour.
    """
    digits, features = digits_and_features(cnn, images)
    real, other = (digits_and_features(cnn, some)[1] for some in (test, train))
    right = (digits == labels).double()
    found, reference = (precision_recall(candidates, real, k) for candidates in (features, other))
    return {
        "agreement": right.mean().item(),
        "agreement_per_class": {str(c): right[labels == c].mean().item() for c in labels.unique().tolist()},
        "recall": found.recall,
        "precision": found.precision,
        "training_digits_recall": reference.recall,
        "training_digits_precision": reference.precision,
        "generated": len(images),
        "training_digits": len(train),
        "test_digits": len(test),
        "k": k,
    }
