"""Frechet distance of two sets of features (Heusel et al. 2017, https://arxiv.org/abs/1706.08500, eq. 6).

Computed by torch-fidelity from features of the caller's choice; distances compare only at equal features and numbers
of images.
"""

import torch
from torch import Tensor


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """``|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of two sets of features.

    Args:
        features: (M, F), at least two rows.
        others: (L, F).

    Raises:
        ValueError: If torch-fidelity is not installed, or the sets do not fit.
    """
    try:
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    except ImportError:
        raise ValueError("Frechet distances need torch-fidelity; run pip install 'genaim[eval]'.") from None
    if features.dim() != 2 or others.dim() != 2 or features.shape[1] != others.shape[1]:
        raise ValueError(
            f"features must be (M, F) and (L, F), not {tuple(features.shape)} and {tuple(others.shape)}; flatten them."
        )
    if min(len(features), len(others)) < 2:
        raise ValueError(f"a covariance needs 2 images or more, not {len(features)} and {len(others)}.")
    sets = (fid_features_to_statistics(f.detach().to("cpu", torch.float64)) for f in (features, others))
    return float(fid_statistics_to_metric(*sets, verbose=False)[KEY_METRIC_FID])
