"""VAR and its tokenizer against stored outputs of the official implementation."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.attention import prepare_mask
from genaim.core.masks import StepMask
from genaim.core.noise import NoiseSource
from genaim.core.order import Step
from genaim.heads import SamplingOptions
from genaim.models import VAR, VARConfig
from genaim.pretrained.var import load_official_var, load_official_vqvae
from genaim.tokenizers import MultiScaleVQ, MultiScaleVQConfig
from samplers.decode import decode
from tests.parity_sets import FOLDER, ParitySet

DTYPES = [torch.float32, torch.float64]


def tokenizer_config(config: dict, patch_nums: list[int]) -> MultiScaleVQConfig:
    return MultiScaleVQConfig.model_validate(
        {
            "patch_nums": patch_nums,
            "autoencoder": {
                "channels": config["ch"],
                "channel_multipliers": config["ch_mult"],
                "num_res_blocks": config["num_res_blocks"],
                "latent_channels": config["z_channels"],
            },
            "codebook": {"size": config["vocab_size"], "commitment": config["beta"]},
            "num_residual_convs": config["share_quant_resi"],
            "residual_ratio": config["quant_resi"],
        }
    )


def load_tokenizer(data: ParitySet, state: dict[str, Tensor], patch_nums: list[int] | None = None) -> MultiScaleVQ:
    tokenizer = MultiScaleVQ(tokenizer_config(data.config, patch_nums or data.config["patch_nums"])).to(data.dtype)
    load_official_vqvae(tokenizer, state)
    return tokenizer.eval()


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@torch.no_grad()
def test_tokenizer(dtype: torch.dtype) -> None:
    data = ParitySet("vqvae_a", dtype)
    tokenizer = load_tokenizer(data, data.state())
    image = data["in_image"]

    data.check("out_encoder", tokenizer.encoder(image))
    latent = tokenizer.encode_latent(image)
    data.check("out_f", latent)
    tokens = tokenizer.encode(image)
    data.check("out_idx", tokens)
    running = tokenizer.running_latents(tokens)
    data.check("out_f_hat", torch.stack(running))
    data.check("out_var_input", tokenizer.scale_inputs(tokens))
    data.check("out_recon_scales", torch.stack([tokenizer.decode_latent(f).clamp(-1, 1) for f in running]))
    data.check("out_decoder_raw", tokenizer.decode_latent(data["in_z"]))
    data.check("out_flat_encoder", tokenizer.encoder(data["in_image_flat"]))


@torch.no_grad()
def test_tokens_that_come_from_no_image(dtype: torch.dtype) -> None:
    data = ParitySet("vqvae_a", dtype)
    tokenizer = load_tokenizer(data, data.state())
    tokens = data["in_idx2"]
    data.check("out_idx2_f_hat", tokenizer.tokens_to_latent(tokens))
    data.check("out_idx2_var_input", tokenizer.scale_inputs(tokens))
    data.check("out_idx2_image", tokenizer.decode_latent(tokenizer.tokens_to_latent(tokens)).clamp(-1, 1))


def test_training_pass(dtype: torch.dtype) -> None:
    data = ParitySet("vqvae_a", dtype)
    tokenizer = load_tokenizer(data, data.state())
    quantized = tokenizer.quantize_for_training(tokenizer.encode_latent(data["in_image"]))
    data.check("out_vq_loss", quantized.loss.mean())
    data.check("out_train_recon", tokenizer.decode_latent(quantized.latent))
    data.check("out_idx", quantized.tokens)


@torch.no_grad()
def test_ten_scales_share_convolutions_as_published(dtype: torch.dtype) -> None:
    data = ParitySet("vqvae_a", dtype)
    sides = data.meta["official_config"]["patch_nums_256"]
    tokenizer = load_tokenizer(data, data.state(), sides)
    assert tokenizer.residual_convs.conv_of_scale == data.meta["phi_index_of_scale_for_ten_scales"]
    tokens = tokenizer.quantize(data["in_f10"])
    data.check("out_f10_idx", tokens)
    data.check("out_f10_f_hat", tokenizer.tokens_to_latent(tokens))
    data.check("out_f10_var_input", tokenizer.scale_inputs(tokens))


@torch.no_grad()
def test_published_channel_layout(dtype: torch.dtype) -> None:
    data = ParitySet("vqvae_layout", dtype)
    shapes = json.loads((FOLDER / "keys" / "vqvae-ch160v4096z32.json").read_text())
    tokenizer = load_tokenizer(data, data.formula_state(shapes))
    image = data["in_image"]
    data.check("out_encoder", tokenizer.encoder(image))
    data.check("out_f", tokenizer.encode_latent(image))
    tokens = tokenizer.encode(image)
    data.check("out_idx", tokens)
    data.check("out_f_hat", torch.stack(tokenizer.running_latents(tokens)))
    data.check("out_var_input", tokenizer.scale_inputs(tokens))
    data.check("out_recon", tokenizer.decode(tokens))


def load_var(data: ParitySet) -> VAR:
    c = data.config
    vae = ParitySet(c["vae"], data.dtype)
    config = VARConfig(
        depth=c["depth"],
        width=c["embed_dim"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        shared_adaln=c["shared_aln"],
        num_classes=c["num_classes"],
    )
    model = VAR(config, load_tokenizer(vae, vae.state())).to(data.dtype)
    load_official_var(model, data.state())
    return model.eval()


VAR_SETS = ["var_a", "var_a_saln"]


@pytest.mark.parametrize("name", VAR_SETS)
@torch.no_grad()
def test_teacher_forcing(name: str, dtype: torch.dtype) -> None:
    data = ParitySet(name, dtype)
    model = load_var(data)
    logits = model.head.logits(model(data["in_x_BLCv_wo_first_l"], data["in_label"]))
    data.check("out_logits", logits)
    loss = F.cross_entropy(logits.flatten(0, 1), data["in_gt_idx"].flatten())
    data.check("out_train_loss", loss)


@pytest.mark.parametrize("name", VAR_SETS)
@torch.no_grad()
def test_first_block(name: str, dtype: torch.dtype) -> None:
    data = ParitySet(name, dtype)
    model = load_var(data)
    condition = F.silu(model.class_embed(data["in_label"]))
    if data.config["shared_aln"]:
        condition = model.transformer.shared_modulation(condition).unflatten(-1, (6, -1))
    steps = model.order.step_ids()
    mask = prepare_mask(StepMask(steps, steps), "sdpa", dtype)
    data.check("out_block0", model.transformer.blocks[0](data["in_block_x"], mask, condition))


@pytest.mark.parametrize("name", VAR_SETS)
@torch.no_grad()
def test_greedy_generation(name: str, dtype: torch.dtype) -> None:
    """The greedy trace, token by token: guided logits, codes, latent and picture."""
    data = ParitySet(name, dtype)
    model, labels = load_var(data), data["in_ar_label"]
    logits = []

    head, sample = model.head, model.head.sample

    def recording(features: Tensor, options: SamplingOptions, **kwargs: object) -> Tensor:
        cond, uncond = head.logits(features), head.logits(kwargs["uncond_features"])
        logits.append(uncond + kwargs["guidance_scale"][:, None, None] * (cond - uncond))
        return sample(features, options, **kwargs)

    model.head.sample = recording
    steps: list[Step] = []
    tokens = decode(
        model,
        labels,
        noise=NoiseSource(0, torch.arange(len(labels))),
        options=SamplingOptions(temperature=0.0),
        guidance_scale=1 + data.config["cfg"],  # published cfg t is ours minus 1, at the end of the same ramp
        on_step=lambda step, canvas: steps.append(step),
    )
    assert [s.number for s in steps] == list(range(len(data.config["patch_nums"])))
    data.check("out_ar_logits", torch.cat(logits, dim=1))
    data.check("out_ar_idx", tokens)
    data.check("out_ar_f_hat", model.tokenizer.tokens_to_latent(tokens))
    image = model.tokenizer.decode_latent(model.tokenizer.tokens_to_latent(tokens)).clamp(-1, 1)
    data.check("out_ar_image", (image + 1) / 2)


PUBLISHED_SCALES = {
    256: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
}


@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_published_sizes_load_strictly(depth: int) -> None:
    """Every key of the official checkpoints has a place, and every weight a key (on the meta device)."""
    shapes = json.loads((FOLDER / "keys" / f"var-d{depth}.json").read_text())
    with torch.device("meta"):
        sides = PUBLISHED_SCALES[512 if depth == 36 else 256]
        model = VAR(VARConfig(preset=f"d{depth}", num_classes=1000), MultiScaleVQ(MultiScaleVQConfig(patch_nums=sides)))
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_official_var(model, state)
    trunk = model.config.transformer()
    assert (trunk.width, trunk.num_heads, trunk.drop_path) == (64 * depth, depth, pytest.approx(0.1 * depth / 24))
    state.pop("head.bias")
    with pytest.raises(ValueError, match=r"missing head\.linear\.bias"):
        load_official_var(model, state)


def test_published_tokenizer_loads_strictly() -> None:
    shapes = json.loads((FOLDER / "keys" / "vqvae-ch160v4096z32.json").read_text())
    with torch.device("meta"):
        tokenizer = MultiScaleVQ(MultiScaleVQConfig())
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_official_vqvae(tokenizer, state)
    with pytest.raises(ValueError, match="not of an official VAR tokenizer"):
        load_official_vqvae(tokenizer, {"backbone.weight": torch.zeros(1)})
