"""The transformer: causality, cache, backends, and every switch."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.attention import _compiled_flex, aligned, attention, prepare_mask
from genaim.core.cache import KVCache
from genaim.core.layers import drop_path
from genaim.core.masks import StepMask, step_mask
from genaim.core.noise import NoiseSource
from genaim.core.order import RasterOrder, ScaleOrder, prefix_steps
from genaim.core.transformer import Transformer, TransformerConfig
from genaim.models import MARConfig

FAMILIES = {
    "var": {
        "norm": "layernorm_no_affine",
        "activation": "gelu_tanh",
        "qkv_bias": "qv",
        "qk_norm": "l2",
        "conditioning": "adaln",
    },
    "var_shared": {"norm": "layernorm_no_affine", "qkv_bias": "qv", "qk_norm": "l2", "conditioning": "shared_adaln"},
    "mar": {},
    "aim": {"qkv_bias": "none", "bias": False},
    "aimv2": {"norm": "rmsnorm", "norm_eps": 1e-5, "activation": "swiglu", "qkv_bias": "none", "bias": False},
}

STEPS = {
    "raster": RasterOrder(2, 7).step_ids(),
    "scales": ScaleOrder([1, 2, 3]).step_ids(),
    "prefix": prefix_steps(torch.tensor([5]), 14)[0],
}


def build(family: str, **changes: object) -> tuple[Transformer, Tensor | None]:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=32, depth=3, num_heads=4, **{**FAMILIES[family], **changes}))
    for parameter in model.parameters():  # no gate at 0 and no norm at 1, or most tests could not fail
        parameter.data += 0.2 * torch.randn_like(parameter)
    condition = torch.randn(2, 32).double() if model.config.conditioning != "none" else None
    return model.double().eval(), condition


@pytest.mark.parametrize("order", STEPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_element_never_moves_an_earlier_feature(family: str, order: str) -> None:
    model, condition = build(family)
    steps = STEPS[order]
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    before = model(x, mask=StepMask(steps, steps), condition=condition)
    for step in steps.unique():
        moved = x.clone()
        moved[:, steps == step] += torch.randn(32, dtype=torch.float64)  # a constant would not pass a LayerNorm
        change = (model(moved, mask=StepMask(steps, steps), condition=condition) - before).abs().amax((0, 2))
        assert (change[steps < step] == 0).all()
        assert (change[steps >= step] > 1e-6).all()


@pytest.mark.parametrize("order", STEPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family: str, order: str) -> None:
    """Appending step by step needs no mask, and gives what one masked pass gives."""
    model, condition = build(family)
    steps = STEPS[order]
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    whole = model(x, mask=StepMask(steps, steps), condition=condition)
    cache = model.make_cache(2, 14)
    parts = [model(x[:, steps == s], condition=condition, cache=cache) for s in steps.unique()]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    assert cache.length == 14


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_what_the_blocks_pass_on(family: str) -> None:
    """The last one, normalised, is the output; who stops early computes no more."""
    model, condition = build(family)
    steps = STEPS["prefix"]
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    mask = StepMask(steps, steps)
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    states = list(model.hidden_states(x, mask=mask, condition=condition))
    assert len(states) == len(outputs) == 3
    assert all(state.equal(output) for state, output in zip(states, outputs, strict=True))
    assert model(x, mask=mask, condition=condition).equal(model.final_norm(states[-1], condition))
    outputs.clear()
    assert next(model.hidden_states(x, mask=mask, condition=condition)).equal(states[0])
    assert len(outputs) == 1


def test_prefill_with_a_mask_equals_steps() -> None:
    """Several steps may be appended at once when a mask covers the cached keys too."""
    model, _ = build("mar")
    steps = STEPS["raster"]
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    whole = model(x, mask=StepMask(steps, steps))
    cache = model.make_cache(2, 14)
    first = model(x[:, :5], mask=StepMask(steps[:5], steps[:5]), cache=cache)
    rest = model(x[:, 5:], mask=StepMask(steps[5:], steps), cache=cache)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=0, atol=1e-12)


def test_a_full_cache_says_so() -> None:
    cache = KVCache(1, 1, 1, 2, 4)
    with pytest.raises(ValueError, match="holds 2 elements; 3 were appended"):
        cache.layer(0).append(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))


@pytest.mark.parametrize("order", ["scales", "prefix"])
def test_flex_equals_sdpa(order: str) -> None:
    steps = STEPS[order].expand(2, -1)
    mask = StepMask(steps, steps)
    q, k, v = torch.randn(3, 2, 2, 14, 16)
    found = [
        attention(q, k, v, mask=prepare_mask(mask, backend, q.dtype), scale=0.25, backend=backend)
        for backend in ("sdpa", "flex")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_flex_is_not_compiled_for_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAR's encoder has another length in every batch; at the ninth graph the compiler would give up."""
    graphs: list[torch.fx.GraphModule] = []
    uncompiled = partial(torch.compile, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", uncompiled)
    compiled = _compiled_flex.__wrapped__()
    for length in (10, 14, 16, 40, 57):
        steps = torch.arange(length).expand(2, -1)
        q, k, v = torch.randn(3, 2, 2, length, 16)
        native, mask = (prepare_mask(StepMask(steps, steps), name, q.dtype) for name in ("flex", "sdpa"))
        expected = attention(q, k, v, mask=mask, scale=0.25)
        torch.testing.assert_close(compiled(q, k, v, block_mask=native, scale=0.25), expected, rtol=1e-5, atol=1e-5)
    assert len(graphs) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_an_xformers_bias_are_aligned(dtype: torch.dtype) -> None:
    steps = STEPS["scales"].expand(2, -1)
    bias = prepare_mask(StepMask(steps, steps), "xformers", torch.float32).to(dtype)  # (2, 1, 14, 14)
    padded = aligned(bias).expand(2, 3, -1, -1)
    assert padded.equal(bias.expand(2, 3, -1, -1)) and padded.dtype == dtype
    assert (padded.stride(-2), padded.stride(-1)) == (16, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["flex", "xformers"])
def test_backends_agree_on_cuda(backend: str) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers")
    steps = STEPS["scales"].cuda().expand(2, -1)
    mask = StepMask(steps, steps)
    inputs = [torch.randn(2, 2, 14, 64, device="cuda", requires_grad=True) for _ in range(3)]
    results = []
    for name in ("sdpa", backend):
        out = attention(*inputs, mask=prepare_mask(mask, name, torch.float32), scale=0.125, backend=name)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["xformers", "flash"])
def test_a_backend_that_cannot_run_names_sdpa(backend: str) -> None:
    q = torch.randn(1, 1, 4, 16)
    with pytest.raises(ValueError, match="sdpa") as error:
        attention(q, q, q, mask=None, scale=1.0, backend=backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [TransformerConfig, MARConfig])
def test_flex_refuses_attention_dropout_in_the_config(config: type[TransformerConfig | MARConfig]) -> None:
    """Not at the first step of a training."""
    sizes = {"width": 32, "num_heads": 4} | ({"depth": 1} if config is TransformerConfig else {})
    with pytest.raises(ValueError, match=r"'flex' cannot drop attention weights with probability 0\.1; set"):
        config.model_validate({**sizes, "attention_backend": "flex", "attention_dropout": 0.1})
    q = torch.randn(1, 1, 4, 16)
    with pytest.raises(ValueError, match="'flex' cannot drop"):
        attention(q, q, q, mask=None, scale=1.0, backend="flex", dropout=0.1)


def test_flex_refuses_to_train_on_cpu() -> None:
    q = torch.randn(1, 1, 4, 16, requires_grad=True)
    with pytest.raises(ValueError, match="use the backend 'sdpa'"):
        attention(q, q, q, mask=None, scale=1.0, backend="flex")


def test_l2_attention_is_the_cosine_with_a_capped_scale() -> None:
    """VAR: q and k of unit length, times exp(min(log scale, log 100)); the softmax scale is 1."""
    model, _ = build("var")
    attn = model.blocks[0].attn
    attn.log_scale.data[0] = 10.0  # far above the cap
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    bias = torch.cat([attn.q_bias, torch.zeros(32), attn.v_bias])
    q, k, v = (F.linear(x, attn.qkv.weight, bias)).view(1, 5, 3, 4, 8).permute(2, 0, 3, 1, 4)
    cosine = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    scale = attn.log_scale.clamp_max(math.log(100)).exp()
    expected = ((cosine * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attn(x, None, None), attn.proj(expected))
    assert scale[0].item() == pytest.approx(100)


def test_a_modulation_made_beforehand_changes_nothing() -> None:
    for name in ("var", "var_shared"):
        model, condition = build(name)
        x = torch.randn(2, 5, 32, dtype=torch.float64)
        assert model(x, condition=model.modulation(condition)).equal(model(x, condition=condition))


def test_gradient_checkpointing_changes_nothing() -> None:
    steps = STEPS["scales"]
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    gradients = []
    for checkpointing in (False, True):
        model, condition = build("var", gradient_checkpointing=checkpointing, drop_path=0.5)
        model.train()
        noise = NoiseSource(0, torch.arange(2))
        model(x, mask=StepMask(steps, steps), condition=condition, noise=noise).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


def test_drop_path_keeps_the_mean_and_is_per_image() -> None:
    uniform = torch.linspace(0.0005, 0.9995, 1000)
    out = drop_path(torch.ones(1000, 3, 2), 0.3, uniform)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert (out.amax((1, 2)) == out.amin((1, 2))).all()
    assert out.mean().item() == pytest.approx(1.0, abs=1e-3)


def test_a_block_starts_as_the_identity() -> None:
    model = Transformer(TransformerConfig(width=32, depth=2, num_heads=4, **FAMILIES["var"]))
    model.init_weights()
    x, condition = torch.randn(2, 5, 32), torch.randn(2, 32)
    for block in model.blocks:
        torch.testing.assert_close(block(x, condition=F.silu(condition)), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("given", [True, False])
def test_a_condition_must_fit(given: bool) -> None:
    model, _ = build("mar" if given else "var")
    condition = torch.randn(2, 32, dtype=torch.float64) if given else None
    with pytest.raises(ValueError, match="condition"):
        model(torch.randn(2, 3, 32, dtype=torch.float64), condition=condition)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads 5 must divide width 32"):
        TransformerConfig(width=32, depth=1, num_heads=5)


def test_masked_rows_differ() -> None:
    """A (B, S) mask gives each row what it would get alone."""
    model, _ = build("aim")
    lengths = torch.tensor([2, 9])
    steps = prefix_steps(lengths, 14)
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    both = model(x, mask=StepMask(steps, steps))
    for row in range(2):
        alone = model(x[row : row + 1], mask=StepMask(steps[row], steps[row]))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-12)
    assert step_mask(steps, steps).shape == (2, 1, 14, 14)
