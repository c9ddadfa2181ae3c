"""Which weights decay, how the learning rate goes, and what the averages are."""

import pytest
import torch
from torch import nn

from genaim.models import MAR, MARConfig
from genaim.training.config import OptimizerConfig
from genaim.training.ema import EMA
from genaim.training.optimizer import learning_rate, make_optimizer
from tests.tiny import SIZES, make_latents, make_var


def groups(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of the others."""
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, kept = make_optimizer(model, OptimizerConfig()).param_groups
    return {names[id(p)] for p in decayed["params"]}, {names[id(p)] for p in kept["params"]}


def test_only_matrices_decay() -> None:
    decayed, kept = groups(make_var(shared_adaln=True))
    assert {"head.linear.weight", "positions.positions", "transformer.blocks.0.attn.qkv.weight"} <= decayed
    assert {"positions.scales.weight", "transformer.blocks.0.modulation_offset"} <= decayed  # not in VAR's training
    assert {"head.linear.bias", "start_embed", "transformer.blocks.1.attn.log_scale"} <= kept
    assert not any(name.startswith("tokenizer.") for name in decayed | kept)


def test_the_head_decays_and_the_mask_token_does_not() -> None:
    """As the notes of MAR say; its published training has it the other way round."""
    shape = {**SIZES["mar"], "width": 16, "num_heads": 2, "head": {"kind": "diffusion", "depth": 1, "hidden": 8}}
    decayed, kept = groups(MAR(MARConfig.model_validate(shape), make_latents()))
    assert {"head.net.out.weight", "head.net.blocks.0.fc1.weight", "encoder_positions"} <= decayed
    assert {"mask_token", "head.net.out.bias"} <= kept


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
