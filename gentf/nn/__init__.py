"""Keras layers that several families use."""

from gentf.nn.dcgan import DCGANDiscriminator, DCGANGenerator
from gentf.nn.mlp import MLPDiscriminator, MLPGenerator
from gentf.nn.normalization import BatchNormalization
from gentf.nn.r3gan import R3GANDiscriminator, R3GANGenerator
from gentf.nn.resnet import ResNetDiscriminator, ResNetGenerator
from gentf.nn.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator

__all__ = [
    "BatchNormalization",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "MLPDiscriminator",
    "MLPGenerator",
    "R3GANDiscriminator",
    "R3GANGenerator",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
]
