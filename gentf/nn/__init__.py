"""Keras layers that several families use."""

from gentf.nn.dcgan import DCGANDiscriminator, DCGANGenerator
from gentf.nn.mlp import MLPDiscriminator, MLPGenerator
from gentf.nn.normalization import BatchNormalization

__all__ = ["BatchNormalization", "DCGANDiscriminator", "DCGANGenerator", "MLPDiscriminator", "MLPGenerator"]
