"""Which networks an adversarial model is made of, by name."""

from typing import Any

from gentf import nn

#: What the discriminator of a network may be normalized by; the first is its own.
NORMALIZATIONS = {
    "mlp": ("none", "spectral"),
    "dcgan": ("batch", "layer", "spectral", "none"),
    "resnet": ("spectral", "none"),
    "r3gan": ("none",),
    "stylegan2": ("none",),
}
GENERATORS = {
    "mlp": nn.MLPGenerator,
    "dcgan": nn.DCGANGenerator,
    "resnet": nn.ResNetGenerator,
    "r3gan": nn.R3GANGenerator,
    "stylegan2": nn.StyleGAN2Generator,
}
DISCRIMINATORS = {
    "mlp": nn.MLPDiscriminator,
    "dcgan": nn.DCGANDiscriminator,
    "resnet": nn.ResNetDiscriminator,
    "r3gan": nn.R3GANDiscriminator,
    "stylegan2": nn.StyleGAN2Discriminator,
}


def generator(model: Any, name: str) -> nn.network.Generator:
    """The generator of a `GAN`, from its arguments."""
    arguments = _shared(model) | _sizes(model) | {"latent_dim": model.latent_dim, "name": name}
    if model.network == "mlp":
        arguments |= {"hidden_units": model.hidden_units, "normalization": model.generator_normalization}
    return GENERATORS[model.network](**arguments)


def discriminator(model: Any) -> nn.network.Discriminator:
    """The discriminator of a `GAN`, of packed images."""
    arguments = _shared(model) | _sizes(model)
    arguments |= {
        "image_shape": (*model.image_shape[:-1], model.packing * model.image_shape[-1]),
        "name": "discriminator",
        "seed": model.seed + 1000,
        "output_bias": model.loss_name != "wasserstein",
    }
    if model.network == "mlp":
        arguments["hidden_units"] = model.hidden_units[::-1]
    if len(NORMALIZATIONS[model.network]) > 1:
        arguments["normalization"] = model.discriminator_normalization
    return DISCRIMINATORS[model.network](**arguments)


def _shared(model: Any) -> dict[str, Any]:
    return {
        "image_shape": model.image_shape,
        "num_classes": model.num_classes,
        "seed": model.seed,
        "dtype": model.dtype_policy,
    }


def _sizes(model: Any) -> dict[str, Any]:
    if model.network == "mlp":
        return {}
    return {"width": model.width} | ({"blocks": model.blocks} if model.network == "r3gan" else {})
