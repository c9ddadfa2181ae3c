"""MAR and its tokenizer against stored outputs of the official implementation."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.layers import modulate
from genaim.core.order import Step
from genaim.heads import SamplingOptions
from genaim.heads.base import guide
from genaim.heads.diffusion import time_channels
from genaim.heads.schedule import Diffusion, at, diffusion_of
from genaim.models import MAR, MARConfig
from genaim.models.base import Predicted
from genaim.models.mar import MARState
from genaim.pretrained.mar import KL16_SCALE, load_official_kl16, load_official_mar
from genaim.tokenizers import KLAutoencoder, KLAutoencoderConfig
from genaim.tokenizers.latents import kl_divergence, latent_to_tokens, split_moments
from samplers.decode import decode
from tests.parity_sets import FOLDER, ParitySet
from tests.tiny import TOKENIZER as TINY
from tests.tiny import make_latents


class Draw:
    """Noise that is one stored draw."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def normal(self, *shape: int) -> Tensor:
        assert self.values.shape[1:] == shape
        return self.values

    uniform = normal


def make_tokenizer(config: dict[str, Any], image_size: int) -> KLAutoencoder:
    return KLAutoencoder(
        KLAutoencoderConfig.model_validate(
            {
                "image_size": image_size,
                "autoencoder": {
                    "channels": config["ch"],
                    "channel_multipliers": config["ch_mult"],
                    "num_res_blocks": config["num_res_blocks"],
                    "latent_channels": config["embed_dim"],
                    "decoder_attention": False,
                },
            }
        )
    )


def load_tokenizer(data: ParitySet, state: dict[str, Tensor]) -> KLAutoencoder:
    config = data.meta["official_config"] | data.config
    tokenizer = make_tokenizer(config, data["in_image"].shape[-1]).to(data.dtype)
    load_official_kl16(tokenizer, state)
    return tokenizer.eval()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def check_round_trip(data: ParitySet, tokenizer: KLAutoencoder) -> None:
    """What both sets hold: moments, a sample, and the image of given tokens."""
    image = data["in_image"]
    data.check("out_encoder", tokenizer.encoder(image))
    data.check("out_moments", tokenizer.moments(image))
    tokens = tokenizer.tokens_to_latent(tokenizer.encode(image, noise=Draw(data["in_posterior_noise"])))
    data.check("out_scaled_sample", tokens)
    data.check("out_sample", tokens / tokenizer.scale())
    data.check("out_decoded_tokens", tokenizer.decode_latent(data["in_tokens"] / tokenizer.scale()))


@torch.no_grad()
def test_tokenizer(dtype: torch.dtype) -> None:
    data = ParitySet("marvae_a", dtype)
    tokenizer = load_tokenizer(data, data.state())
    assert tokenizer.latent_scale.item() == pytest.approx(data.config["latent_scale"])
    check_round_trip(data, tokenizer)
    mean, std = tokenizer.posterior(data["in_image"])
    data.check("out_mean", mean)
    data.check("out_std", std)
    data.check("out_logvar", 2 * std.log())
    data.check("out_kl", kl_divergence(mean, std))
    data.check("out_decoded_mean", tokenizer.decode_latent(mean))
    data.check("out_moments2_logvar", 2 * split_moments(data["in_moments2"]).std.log())
    data.check("out_flat_encoder", tokenizer.encoder(data["in_image_flat"]))


@torch.no_grad()
def test_published_channel_layout(dtype: torch.dtype) -> None:
    data = ParitySet("marvae_layout", dtype)
    shapes = json.loads((FOLDER / "keys" / "mar-kl16.json").read_text())
    check_round_trip(data, load_tokenizer(data, data.formula_state(shapes)))


def test_published_tokenizer_loads_strictly() -> None:
    """The config's defaults are the published KL-16: every key has a place, and every weight a key."""
    shapes = json.loads((FOLDER / "keys" / "mar-kl16.json").read_text())
    with torch.device("meta"):
        tokenizer = KLAutoencoder(KLAutoencoderConfig())
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_official_kl16(tokenizer, state)
    assert (tokenizer.grid, tokenizer.token_channels, KL16_SCALE) == ((16, 16), 16, 0.2325)
    lacking = {key: value for key, value in state.items() if key != "encoder.mid.attn_1.k.bias"}
    with pytest.raises(ValueError, match=r"middle\.1\.qkv\.bias is \(1024,\) instead of \(1536,\)"):
        load_official_kl16(tokenizer, lacking)
    with pytest.raises(ValueError, match="not of an official MAR tokenizer"):
        load_official_kl16(tokenizer, state | {"quantize.embedding.weight": torch.zeros(1)})


# The transformer and the diffusion head

TIME_EMBEDDING = 1e-5  # it is float32 by design, and its last digits at large timesteps depend on the CPU (see remarks)


class Replay:
    """Noise that plays stored draws in turn; an order is turned into numbers that sort to it."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def normal(self, *shape: int) -> Tensor:
        drawn = self.draws.pop(0)
        assert drawn.shape[1:] == shape
        return drawn

    uniform = normal


def load_mar(data: ParitySet) -> MAR:
    c = data.config
    side = c["img_size"] // c["vae_stride"]
    latents = make_latents(
        image_size=2 * side, autoencoder={**TINY["autoencoder"], "latent_channels": c["vae_embed_dim"]}
    )
    config = {
        "width": c["width"],
        "encoder_depth": c["enc_depth"],
        "decoder_depth": c["dec_depth"],
        "num_heads": c["heads"],
        "num_buffer": c["buffer_size"],
        "num_classes": c["class_num"],
        "num_steps": c["num_iter"],
        "head": {
            "kind": "diffusion",
            "depth": c["diffloss_d"],
            "hidden": c["diffloss_w"],
            "draws": c["diffusion_batch_mul"],
            "diffusion_steps": int(c["num_sampling_steps"]),
        },
    }
    model = MAR(MARConfig.model_validate(config), latents).to(data.dtype)
    load_official_mar(model, data.state())
    return model.eval()


@torch.no_grad()
def test_trunk(dtype: torch.dtype) -> None:
    data = ParitySet("mar_a", dtype)
    model = load_mar(data)
    tokens = model.tokenizer.latent_to_tokens(data["in_latents"])
    data.check("out_tokens", tokens)
    data.check("out_unpatchify", model.tokenizer.tokens_to_latent(tokens))
    known = data["in_mask"] == 0
    condition = model.class_embed(data["in_labels"])
    encoded = model.encode_known(tokens, known, condition)
    data.check("out_enc", encoded)
    data.check("out_dec", model.decode_all(encoded, known))
    null = model.class_embed(model.class_embed.null(2))
    data.check("out_dec_uncond", model.decode_all(model.encode_known(tokens, known, null), known))
    data.check("out_small_z_proj_ln", model.token_norm(data["in_small_x"]))
    data.check("out_small_enc_block0", model.encoder.blocks[0](data["in_small_x"]))
    data.check("out_small_enc_norm", model.encoder.norm(data["in_small_x"]))
    data.check("out_small_dec_norm", model.decoder.norm(data["in_small_x"]))


def test_patches_of_a_latent_are_ordered_as_published() -> None:
    data = ParitySet("mar_a", torch.float64)
    data.check("out_patchify_p2", latent_to_tokens(data["in_patchify_p2"], 2))


@torch.no_grad()
def test_denoiser(dtype: torch.dtype) -> None:
    data = ParitySet("mar_a", dtype)
    net = load_mar(data).head.net
    x, time, features = data["in_net_x"], data["in_net_t"], data["in_net_c"]
    data.check("out_net_time_embed", net.time_embed(time_channels(time).to(dtype)))
    data.check("out_net", net(x, time, net.condition_embed(features)), float64=TIME_EMBEDDING)
    data.check("out_small_resblock0", net.blocks[0](data["in_small_h"], F.silu(data["in_small_y"])))
    shift, scale = net.norm_modulation(F.silu(data["in_small_y"])).chunk(2, dim=-1)
    data.check("out_small_final", net.out(modulate(net.norm(data["in_small_h"]), scale, shift)))


@torch.no_grad()
def test_guided_denoiser(dtype: torch.dtype) -> None:
    data = ParitySet("mar_a", dtype)
    net = load_mar(data).head.net
    noisy = data["in_net_x"][:5].repeat(2, 1)  # both branches see the first half, at timesteps of their own
    out = net(noisy, data["in_net_t"], net.condition_embed(data["in_net_c"]))
    cond, uncond = out.chunk(2)
    guided = torch.cat([guide(cond[:, :4], uncond[:, :4], data.config["cfg_net"]), cond[:, 4:]], dim=1)
    data.check("out_net_cfg", guided, part=(slice(5),), float64=TIME_EMBEDDING)


@torch.no_grad()
def test_schedule_tables() -> None:
    data = ParitySet("mar_a", torch.float32)
    train, respaced = Diffusion(), Diffusion(10)
    data.check("out_train_alphas_cumprod", train.sqrt_cumprod.double().square().float())
    data.check("out_gen_timestep_map", respaced.timesteps)
    data.check("out_gen_alphas_cumprod", respaced.sqrt_cumprod.double().square().float())
    data.check("out_gen_betas", respaced.log_betas.double().exp().float())
    data.check("out_gen_posterior_log_variance_clipped", respaced.log_variance)
    data.check("out_gen_posterior_mean_coef1", respaced.mean_of_start)
    data.check("out_gen_posterior_mean_coef2", respaced.mean_of_noisy)


@torch.no_grad()
def test_loss(dtype: torch.dtype) -> None:
    data = ParitySet("mar_a", dtype)
    model = load_mar(data)
    head, c = model.head, data.config
    tokens = model.tokenizer.latent_to_tokens(data["in_latents"])
    known = data["in_mask"] == 0
    features = model.decode_all(model.encode_known(tokens, known, model.class_embed(data["in_labels"])), known)
    shape = (c["diffusion_batch_mul"], 2, c["seq_len"])
    index, added = data["in_loss_t"].view(shape), data["in_loss_noise"].view(*shape, -1)
    start, condition = tokens.expand_as(added), head.net.condition_embed(features)

    noisy = head.diffusion.add_noise(start, index, added)
    epsilon, fraction = head.net(noisy, index, condition).chunk(2, dim=-1)
    data.check("out_loss_terms_mse", (epsilon - added).square().mean(-1).flatten(), float64=TIME_EMBEDDING)
    bound = head.diffusion.variational_bound(
        start, noisy, index, head.diffusion.reverse(epsilon, fraction, noisy, index)
    )
    data.check("out_loss_terms_vb", bound.flatten(), float64=TIME_EMBEDDING)

    # the same through the protocol: the head's timesteps come from uniform numbers in the middle of their bins
    uniform = (index.movedim(0, 1).to(dtype) + 0.5) / 1000
    losses = head.loss(features, tokens, noise=Replay(uniform, added.movedim(0, 1)))
    data.check("out_loss", (losses * ~known).sum() / (~known).sum(), float64=TIME_EMBEDDING)


@torch.no_grad()
def test_single_ancestral_steps(dtype: torch.dtype) -> None:
    data = ParitySet("mar_a", dtype)
    head, diffusion = load_mar(data).head, Diffusion(10)
    index = torch.arange(10)[:, None]
    x = data["in_step_x"]  # (10, 4, C)
    out = head.net(x, diffusion.timesteps[:, None], head.net.condition_embed(data["in_step_c"]))
    epsilon, fraction = out.chunk(2, dim=-1)
    mean, log_variance = diffusion.reverse(epsilon, fraction, x, index)
    data.check("out_step_mean", mean, float64=1e-5)
    data.check("out_step_log_variance", log_variance, float64=1e-5)
    start = at(diffusion.sqrt_recip_cumprod, index) * x - at(diffusion.sqrt_recip_cumprod_minus_one, index) * epsilon
    data.check("out_step_pred_xstart", start, float64=1e-5)
    noise = data["in_step_noise"] * (index > 0)[..., None]
    data.check("out_step_sample", mean + (0.5 * log_variance).exp() * noise * 0.9, float64=1e-5)


@pytest.mark.parametrize("run", ["s1", "s2", "s3", "s4"])
@torch.no_grad()
def test_sampling_trajectories(run: str, dtype: torch.dtype) -> None:
    data = ParitySet("mar_a", dtype)
    head, settings = load_mar(data).head, data.meta["sampler_runs"][run]
    cond, uncond = data["in_loop_c"].unsqueeze(1).chunk(2)  # six images of one token
    guided = settings["cfg"] != 1.0
    first = data[f"in_loop_{run}_draws_init"].unsqueeze(1)
    steps = [drawn[:6].unsqueeze(1) for drawn in data[f"in_loop_{run}_draws_steps"]]
    times = diffusion_of(10, first.device).timesteps.flip(0)
    predict = head.predictor(cond, uncond if guided else None, settings["cfg"], times)
    states = list(head.trajectory(predict, first, 10, settings["temperature"], Replay(*steps)))
    got = torch.stack(states).squeeze(2)
    data.check(f"out_loop_{run}_traj", got, part=(slice(None), slice(6)), float64=1e-5)
    sampled = head.sample(
        cond,
        SamplingOptions(temperature=settings["temperature"]),
        uncond_features=uncond if guided else None,
        guidance_scale=settings["cfg"],
        noise=Replay(first, *steps),
    )
    assert sampled.equal(states[-1])


@pytest.mark.parametrize("run", ["g1", "g2", "g3"])
@torch.no_grad()
def test_generation(run: str, dtype: torch.dtype) -> None:
    """Orders, masks, guidance scales, features and latents of whole generations."""
    data = ParitySet("mar_a", dtype)
    model, settings = load_mar(data), data.meta["generation_runs"][run]
    steps, batch = data.config["num_iter"], len(data["in_gen_labels"])
    draws: list[Tensor] = [data["in_gen_orders"].argsort(1).to(dtype)]
    for step in range(steps):
        init, later = data[f"in_{run}_draws{step}_init"], data[f"in_{run}_draws{step}_steps"]
        draws += [init.view(batch, -1, init.shape[-1])]
        draws += [drawn[: len(init)].view(batch, -1, init.shape[-1]) for drawn in later]

    features: list[Tensor] = []
    scales: list[Tensor] = []
    before: list[Tensor] = []
    head_sample, predict = model.head.sample, model.predict

    def watched_predict(state: MARState, positions: Tensor) -> Predicted:
        before.append(state.tokens.to(dtype) * state.known[..., None])
        found = predict(state, positions)
        features.append(torch.cat([part.flatten(0, 1) for part in found if part is not None]))
        return found

    def watched_sample(features: Tensor, options: SamplingOptions, **keywords: Any) -> Tensor:
        scales.append(keywords["guidance_scale"])
        return head_sample(features, options, **keywords)

    model.predict, model.head.sample = watched_predict, watched_sample
    seen: list[Step] = []
    tokens = decode(
        model,
        data["in_gen_labels"],
        noise=Replay(*draws),
        options=SamplingOptions(temperature=settings["temperature"]),
        guidance_scale=settings["cfg"],
        guidance_schedule={"linear": "linear_in_share", "constant": "constant"}[settings["cfg_schedule"]],
        num_steps=steps,
        on_step=lambda step, canvas: seen.append(step),
    )
    predicted = torch.stack([torch.zeros(batch, 16).long().scatter(1, step.positions, 1) for step in seen])
    data.check(f"out_{run}_mask_to_pred", predicted)
    masked = predicted.flip(0).cumsum(0).flip(0)
    data.check(f"out_{run}_mask_before", masked)
    data.check(f"out_{run}_mask_len", torch.cat([masked[1:, 0].sum(1), torch.tensor([1])]))
    data.check(f"out_{run}_cfg_iter", torch.stack(scales)[:, 0].to(dtype))
    data.check(f"out_{run}_tokens_before", torch.stack(before), float64=1e-5)
    for step in range(steps):
        data.check(f"out_{run}_z{step}", features[step], float64=1e-5)
    data.check(f"out_{run}_latents", model.tokenizer.tokens_to_latent(tokens), float64=1e-5)


@pytest.mark.parametrize(("preset", "heads"), [("base", 12), ("large", 16), ("huge", 16)])
def test_published_sizes_load_strictly(preset: str, heads: int) -> None:
    shapes = json.loads((FOLDER / "keys" / f"mar-{preset}.json").read_text())
    with torch.device("meta"):
        model = MAR(MARConfig(preset=preset, num_classes=1000), KLAutoencoder(KLAutoencoderConfig()))
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_official_mar(model, state)
    assert model.config.num_heads == heads
    state.pop("diffloss.net.final_layer.linear.bias")
    with pytest.raises(ValueError, match=r"missing head\.net\.out\.bias"):
        load_official_mar(model, state)
