"""Where a step runs, and whether it is compiled: both chosen once, with the reason."""

import contextlib
import functools
import json
import os

import tensorflow as tf

from gentf.errors import UserError
from gentf.schema import Config, GANConfig, VAEConfig

#: Whether XLA makes the step faster on a CPU, by network: measured with `make bench` (benchmarks/RESULTS.md).
FASTER_COMPILED_ON_CPU = {
    "mlp": True,
    "dcgan": False,
    "resnet": False,
    "r3gan": False,
    "stylegan2": False,
    "rnn": True,
    "transformer": True,
    "encoder_decoder": True,
    "pixelcnn": False,
    "vae-mlp": True,
    "vae-conv": False,
    "ladder_vae": True,
    "vqvae": False,
    "sequence_vae": True,
}


def make_strategy(devices: int | None) -> tf.distribute.Strategy:
    """The strategy for `devices` devices of this machine, or for the machines named in TF_CONFIG.

    GPUs are taken where there are any, else logical CPU devices (which share the cores: for tests).
    """
    if len(json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", [])) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_physical_devices("GPU")
    count = devices if devices is not None else max(1, len(gpus))
    if gpus and count > len(gpus):
        raise UserError(f"`train.devices` must be at most {len(gpus)} on this machine. Received: train.devices={count}")
    if count == 1:
        return tf.distribute.get_strategy()
    kind = "GPU" if gpus else "CPU"
    if len(tf.config.list_logical_devices(kind)) < count:
        raise UserError(f"`train.devices` must be set before TensorFlow starts. Received: train.devices={count}")
    return _mirrored(kind, count)


@functools.cache
def _mirrored(kind: str, count: int) -> tf.distribute.Strategy:
    """One strategy a process: a second one would number its collective operations from the start again, and TensorFlow
    holds those to the shapes of the first one's."""
    return tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(count)])


def prepare_logical_devices(devices: int | None) -> None:
    """Split the CPU into `devices` logical devices; has an effect only before TensorFlow's first operation."""
    if devices and devices > 1 and not tf.config.list_physical_devices("GPU"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        with contextlib.suppress(RuntimeError):  # TensorFlow has started: make_strategy says so if there are too few
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)


def choose_jit(config: Config, strategy: tf.distribute.Strategy) -> tuple[bool, str]:
    """Whether to compile the step with XLA, and why."""
    choice = config.train.jit
    if choice != "auto":
        return choice == "true", f"train.jit={choice}"
    gpu = bool(tf.config.list_physical_devices("GPU"))
    if strategy.num_replicas_in_sync > 1:
        return False, "several devices: batch statistics cross them inside the step"
    if gpu:
        return True, "a GPU"
    network = config.model.family
    if isinstance(config.model, GANConfig):
        network = config.model.network
    elif isinstance(config.model, VAEConfig):
        network = f"vae-{config.model.network}"
    faster = FASTER_COMPILED_ON_CPU[network]
    return faster, f"measured {'faster' if faster else 'slower'} compiled for {network} on a CPU"
