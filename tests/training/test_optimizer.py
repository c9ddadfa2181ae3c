"""Which weights decay, how the learning rate goes, and what the averages are."""

import pytest
import torch
from torch import nn

from genaim.training.config import OptimizerConfig
from genaim.training.ema import EMA
from genaim.training.optimizer import learning_rate, make_optimizer
from tests.tiny import make_var


def test_only_matrices_decay() -> None:
    model = make_var(shared_adaln=True)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, kept = (
        {names[id(p)] for p in group["params"]} for group in make_optimizer(model, OptimizerConfig()).param_groups
    )
    assert {"head.linear.weight", "positions.positions", "transformer.blocks.0.attn.qkv.weight"} <= decayed
    assert {"head.linear.bias", "start_embed", "transformer.blocks.1.attn.log_scale"} <= kept
    assert not any(name.startswith("tokenizer.") for name in decayed | kept)


def test_warm_up_then_cosine() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, final_lr_share=0.1)
    rates = [learning_rate(config, step, 14) for step in range(15)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[9] == pytest.approx(0.55)  # half way
    assert rates[14] == pytest.approx(0.1)
    constant = OptimizerConfig(lr=2.0, schedule="constant")
    assert {learning_rate(constant, step, 10) for step in range(10)} == {2.0}


def test_averages_follow_their_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema, expected = EMA(module, 0.5), 0.0
    for step in range(20):
        module.weight.data.fill_(float(step))
        ema.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.averages["weight"].item() == pytest.approx(expected)
    with ema.applied(module):
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 19.0
    with pytest.raises(ValueError, match="do not fit"):
        ema.load_state_dict({"other": torch.zeros(1)})
