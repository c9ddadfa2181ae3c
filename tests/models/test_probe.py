"""The attentive probe: what it may depend on, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from genaim.models import AttentiveProbe, AttentiveProbeConfig

CONFIG = AttentiveProbeConfig(width=16, num_heads=4, num_classes=3)


@torch.no_grad()
def test_the_order_of_patches_and_the_batch_do_not_matter() -> None:
    probe = AttentiveProbe(CONFIG).double().eval()
    probe.norm.running_mean.normal_()
    features = torch.randn(4, 9, 16, dtype=torch.float64)
    logits = probe(features)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(probe(features[:, torch.randperm(9)]), logits)
    torch.testing.assert_close(torch.cat([probe(row[None]) for row in features]), logits)


def test_it_finds_the_patch_that_tells_the_class() -> None:
    """One patch among noise carries the class: the mean of all patches says little, attention finds it."""
    torch.manual_seed(0)
    codes = torch.randn(3, 16)
    labels = torch.arange(300) % 3
    features = 0.3 * torch.randn(300, 9, 16)
    features[torch.arange(300), torch.randint(9, (300,))] += 3 * codes[labels]
    probe = AttentiveProbe(CONFIG).train()
    optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(probe(features), labels).backward()
        optimizer.step()
    assert (probe.eval()(features).argmax(1) == labels).float().mean() > 0.95


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads 3 must divide width 16"):
        AttentiveProbeConfig(width=16, num_heads=3, num_classes=2)
