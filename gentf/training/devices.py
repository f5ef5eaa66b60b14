"""Where a step runs, whether it is compiled, and in how many parts: each chosen once."""

import contextlib
import functools
import json
import os

import tensorflow as tf

from gentf.errors import UserError
from gentf.machine import cores
from gentf.models.base import GenerativeModel
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

#: Families whose step is faster on two cores where each computes the gradients of half a batch, with XLA: measured with
#: `make bench` (rnn, transformer) and on t5-dates (0.85 to 0.91 of the time). More shards than two were not measured.
FASTER_IN_SHARDS = ("rnn", "transformer", "encoder_decoder")
#: Those among them whose program has no loop, so that a shard needs but the thread it is on.
WITHOUT_LOOPS = ("transformer", "encoder_decoder")
SHARDS = 2


def make_strategy(devices: int | None) -> tf.distribute.Strategy:
    """The strategy for `devices` devices of this machine, or for the machines named in TF_CONFIG.

    GPUs are taken where there are any, else logical CPU devices (which share the cores: for tests).
    """
    if _workers() > 1:
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


def _workers() -> int:
    return len(json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", []))


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


def choose_shards(config: Config, jit: bool) -> int:
    """In how many parts a batch's gradients are computed side by side, see `GenerativeModel.shards`."""
    train = config.train
    if train.shards is not None:
        return train.shards
    several = cores() >= SHARDS and train.batch_size % SHARDS == 0
    return SHARDS if jit and several and _alone(config) and config.model.family in FASTER_IN_SHARDS else 1


def _alone(config: Config) -> bool:
    """Whether a step is of the CPU alone, and that one device."""
    return (config.train.devices or 1) == 1 and _workers() <= 1 and not tf.config.list_physical_devices("GPU")


def set_shards(model: GenerativeModel, config: Config, strategy: tf.distribute.Strategy) -> None:
    """Give the model the config's shards. UserError if they are not for it."""
    shards, devices = config.train.shards or 1, strategy.num_replicas_in_sync
    if config.train.batch_size % shards or (shards > 1 and devices > 1):
        raise UserError(
            "`train.shards` must divide `train.batch_size`, and be 1 on several devices. "
            f"Received: train.shards={shards}, train.batch_size={config.train.batch_size}, {devices} device(s)"
        )
    try:
        model.shards = shards
    except ValueError as error:
        raise UserError(f"`train.{str(error)[1:]}") from None


def use_one_thread_an_operation(config: Config) -> None:
    """Have each operation run on one thread, where there is a shard for every core and none gains by sharing.

    It is for a process that only trains: it holds for all that TensorFlow computes, and must come before its first
    operation (after it, nothing is changed).
    """
    if not _alone(config) or config.model.family not in WITHOUT_LOOPS:
        return
    jit, _ = choose_jit(config, tf.distribute.get_strategy())
    if choose_shards(config, jit) >= cores() > 1:
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)
