"""Generative adversarial networks. Reference: Goodfellow et al. (2014)."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gentf import losses
from gentf.kernels import random
from gentf.kernels.optimizer import Adam
from gentf.kernels.tracing import Size, size
from gentf.models import networks
from gentf.models.base import Batch, Losses, Phase, Signature, by_rows
from gentf.models.images import ImageModel, as_answer
from gentf.nn import augmentation as augmentations

# Streams of randomness inside a step.
DISCRIMINATOR_NOISE, GENERATOR_NOISE, MIX, VALIDATION_NOISE = range(4)
AUGMENT_REAL, AUGMENT_FAKE, AUGMENT_GENERATED, AUGMENT_PAIRED, PATH_NOISE, PATH_IMAGE = range(4, 10)
SECOND_NOISE, STYLE_CUTS = 10, 12  # and the number of the first noise's stream
#: Images in which the share of augmented ones can go from 0 to 1.
ADA_IMAGES = 200_000.0
# Streams of a sample's row seed.
SAMPLE_NOISE, SAMPLE_LABEL = range(2)


@keras.saving.register_keras_serializable("gentf")
class GAN(ImageModel):
    """A generator of images, or of points, from noise, trained against a discriminator.

    Samples and exports come from an exponential moving average of the generator, whose images change less from step to
    step. The discriminator is updated every step, the generator every `discriminator_steps` steps.

    Args:
        image_shape: (height, width, channels), or (D,) of points, with the network "mlp".
        num_classes: classes to learn from labels and to sample by; 0 learns without labels.
        latent_dim: numbers of N(0, 1) noise a sample is made from.
        network: "mlp", "dcgan", "resnet", "r3gan" or "stylegan2": see `gentf.nn`.
        loss: a name in `gentf.losses.ADVERSARIAL`.
        hidden_units: mlp: units of the generator's layers; the discriminator mirrors them.
        generator_normalization: mlp: "none" or "batch".
        width: channels of the feature map next to the image; resnet: of all.
        blocks: r3gan: residual blocks at each size.
        discriminator_normalization: mlp: "none" or "spectral"; dcgan: "batch", "layer", "spectral" or "none"; resnet:
            "spectral" or "none"; r3gan, stylegan2: "none". None takes the first of these.
        gradient_penalty: weight of the gradient penalty; 0 leaves it out, 10 is WGAN-GP's.
        penalty_slope: the slope that it asks for: 1 is WGAN-GP's, 0 is 0-GP's.
        packing: samples that the discriminator judges together, all real or all fake, side by side in the channels: a
            set without variety gives itself away. 1 judges each by itself; more is for models without classes.
            Reference: Lin et al. (2018), "PacGAN", section 2.
        r1, r2: gamma of the penalties of the discriminator's slope at real and at fake images, estimated on half of
            each batch; 0 leaves them out.
        penalty_interval: the penalties are taken in every so many-th step, and count as many times more there.
            Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN", section 4.
        penalty_decay_steps: steps over which r1 and r2 fall, as a cosine, to the share penalty_final_share; 0: they
            stay.
        augmentation: of all that the discriminator sees: "none"; "diffaug", always; or "ada", with a probability that
            follows how sure it is of real images. See `gentf.nn.augmentation`.
        ada_target: ada: mean sign of the real images' logits above which the probability rises; with a relativistic
            loss, of their lead over a fake image's.
        style_mixing: stylegan2: share of images in training whose layers from some one on follow a second style.
        path_length: stylegan2: weight of the squared distance of path lengths from their mean; 2 is the paper's.
        path_interval: in every so many-th step, where it counts as many times more, on half of the batch.
        truncation: stylegan2: share of a style's way from the mean style, at sampling; others: of the noise.
        discriminator_steps: discriminator updates for each generator update.
        ema_decay: decay a step of the averaged generator.
        seed: initial weights and training noise.
    """

    monitor = "val_sliced_wasserstein"
    ranks = (1, 3)

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 0,
        latent_dim: int = 100,
        network: str = "mlp",
        loss: str = "non_saturating",
        hidden_units: Sequence[int] = (128, 256),
        generator_normalization: str = "batch",
        width: int = 64,
        blocks: int = 2,
        discriminator_normalization: str | None = None,
        gradient_penalty: float = 0.0,
        penalty_slope: float = 1.0,
        packing: int = 1,
        r1: float = 0.0,
        r2: float = 0.0,
        penalty_interval: int = 1,
        penalty_decay_steps: int = 0,
        penalty_final_share: float = 0.1,
        augmentation: str = "none",
        ada_target: float = 0.6,
        style_mixing: float = 0.9,
        path_length: float = 0.0,
        path_interval: int = 4,
        truncation: float = 1.0,
        discriminator_steps: int = 1,
        ema_decay: float = 0.999,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(image_shape, num_classes, seed, **kwargs)
        if latent_dim < 1:
            raise ValueError(f"`latent_dim` must be positive. Received: latent_dim={latent_dim}")
        if loss not in losses.ADVERSARIAL:
            raise ValueError(f"`loss` must be one of {', '.join(losses.ADVERSARIAL)}. Received: loss={loss!r}")
        if network not in networks.NORMALIZATIONS:
            raise ValueError(
                f"`network` must be one of {', '.join(networks.NORMALIZATIONS)}. Received: network={network!r}"
            )
        if generator_normalization not in ("none", "batch"):
            raise ValueError(
                "`generator_normalization` must be 'none' or 'batch'. "
                f"Received: generator_normalization={generator_normalization!r}"
            )
        if discriminator_normalization is None or (network, discriminator_normalization) == ("mlp", "batch"):
            discriminator_normalization = networks.NORMALIZATIONS[network][
                0
            ]  # "batch" stands, without effect, in older files
        if discriminator_normalization not in networks.NORMALIZATIONS[network]:
            raise ValueError(
                f"`discriminator_normalization` must be one of {', '.join(networks.NORMALIZATIONS[network])} for "
                f"{network}. Received: discriminator_normalization={discriminator_normalization!r}"
            )
        if (gradient_penalty or r1 or r2) and discriminator_normalization == "batch" and network == "dcgan":
            raise ValueError(
                "`discriminator_normalization` must be 'layer', 'spectral' or 'none' with a gradient penalty, which is "
                "taken image by image. Received: discriminator_normalization='batch'"
            )
        if len(self.image_shape) == 1 and network != "mlp":
            raise ValueError(f"`network` must be 'mlp' for points. Received: network={network!r}")
        if packing < 1 or (packing > 1 and num_classes):
            accepted = "1 for a model of classes" if packing > 1 else "positive"
            raise ValueError(f"`packing` must be {accepted}. Received: packing={packing}")
        if augmentation not in ("none", "diffaug", "ada"):
            raise ValueError(f"`augmentation` must be none, diffaug or ada. Received: augmentation={augmentation!r}")
        if augmentation != "none" and len(self.image_shape) == 1:
            raise ValueError(f"`augmentation` must be none for points. Received: augmentation={augmentation!r}")
        for name, interval in (("penalty_interval", penalty_interval), ("path_interval", path_interval)):
            if interval < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={interval}")
        if path_length and network != "stylegan2":
            raise ValueError(f"`path_length` must be 0 but for stylegan2. Received: path_length={path_length}")
        if not 0.0 < truncation <= 1.0:
            raise ValueError(f"`truncation` must be above 0 and at most 1. Received: truncation={truncation}")
        if discriminator_steps < 1:
            raise ValueError(f"`discriminator_steps` must be positive. Received: {discriminator_steps}")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"`ema_decay` must be in [0, 1). Received: ema_decay={ema_decay}")
        self.latent_dim = latent_dim
        self.network = network
        self.loss_name = loss
        self.hidden_units = tuple(hidden_units)
        self.generator_normalization = generator_normalization
        self.width, self.blocks = width, blocks
        self.discriminator_normalization = discriminator_normalization
        self.gradient_penalty, self.penalty_slope = gradient_penalty, penalty_slope
        self.packing = packing
        self.r1, self.r2 = r1, r2
        self.penalty_interval = penalty_interval
        self.penalty_decay_steps, self.penalty_final_share = penalty_decay_steps, penalty_final_share
        self.augmentation, self.ada_target = augmentation, ada_target
        self.style_mixing, self.path_length, self.path_interval = style_mixing, path_length, path_interval
        self.truncation = truncation
        self.discriminator_steps = discriminator_steps
        self.ema_decay = ema_decay
        self.generator = networks.generator(self, "generator")
        self.discriminator = networks.discriminator(self)
        self.generator_ema = networks.generator(self, "generator_ema")
        self.generator_ema.trainable = False
        self.discriminator_optimizer: keras.optimizers.Optimizer | None = None
        if augmentation == "ada":
            self.augmented_share = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="augmented_share", dtype="float32",
                aggregation="mean",
            )  # fmt: skip
        if path_length:
            self.mean_path = self.add_weight(
                shape=(), initializer="zeros", trainable=False, name="mean_path", dtype="float32", aggregation="mean"
            )
        self.build()

    def build(self, input_shape=None) -> None:
        for network in (self.generator, self.discriminator, self.generator_ema):
            if not network.built:
                network.build()
        for average, weight in self._averaged():
            average.assign(weight)
        self.built = True

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | None = None,
        discriminator_optimizer: keras.optimizers.Optimizer | None = None,
        **kwargs,
    ) -> None:
        """Choose the optimizers; `kwargs` are those of `keras.Model.compile`.

        Args:
            optimizer: of the generator; None: Adam(2e-4, beta_1=0.5).
            discriminator_optimizer: None: one like the generator's.
        Reference for the defaults: Radford, Metz & Chintala (2016), section 4.
        """
        if optimizer is None:
            optimizer = Adam(learning_rate=2e-4, beta_1=0.5)
        optimizer = keras.optimizers.get(optimizer)
        if discriminator_optimizer is None:
            discriminator_optimizer = optimizer.from_config(optimizer.get_config())
        self.discriminator_optimizer = keras.optimizers.get(discriminator_optimizer)  # which a phase names
        super().compile(optimizer=optimizer, **kwargs)

    def get_compile_config(self) -> dict | None:
        if not self.compiled:
            return None
        serialize = keras.saving.serialize_keras_object
        return {
            "optimizer": serialize(self.optimizer),
            "discriminator_optimizer": serialize(self.discriminator_optimizer),
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution,
        }

    def compile_from_config(self, config: dict) -> None:
        names = ("optimizer", "discriminator_optimizer")
        optimizers = {name: keras.saving.deserialize_keras_object(config[name]) for name in names}
        self.compile(**{**config, **optimizers})

    def call(self, z: tf.Tensor, label: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        """(B, latent_dim) noise -> (B, H, W, C) float32 in [-1, 1] or (B, D) float32, by the averaged generator."""
        if self.network == "stylegan2":
            drawn = self.generator_ema(z, label, truncation=self.truncation)
        else:
            drawn = self.generator_ema(self.truncation * z, label, training=False)
        return drawn if self.example == "point" else tf.clip_by_value(drawn, -1.0, 1.0)  # not all networks end in tanh

    # Training

    def phases(self) -> list[Phase]:
        judge = (self.discriminator.trainable_variables, self.discriminator_optimizer)
        maker = (self.generator.trainable_variables, self.optimizer)
        found = [Phase("discriminator", self._discriminator_losses, *judge)]
        if self._penalized and self.penalty_interval > 1:
            found.append(Phase("penalty", self._penalty_losses, *judge, interval=self.penalty_interval, partial=True))
        found.append(Phase("generator", self._generator_losses, *maker, interval=self.discriminator_steps))
        if self.path_length:
            found.append(Phase("path", self._path_losses, *maker, interval=self.path_interval, partial=True))
        return found

    @property
    def _penalized(self) -> bool:
        return bool(self.gradient_penalty or self.r1 or self.r2)

    def _discriminator_losses(self, batch: Batch) -> Losses:
        real, fake, label = self._judged(batch)
        real_logits, fake_logits = self._logits(real, fake, label)
        loss, _ = losses.ADVERSARIAL[self.loss_name](real_logits, fake_logits)
        logs = {"real_logit": tf.reduce_mean(real_logits), "fake_logit": tf.reduce_mean(fake_logits)}
        if self.augmentation == "ada":
            logs["augmented_share"] = self._adapt(real_logits, fake_logits, tf.shape(batch["image"])[0])
        if not self._penalized or self.penalty_interval > 1:
            return {"loss": loss} | logs
        price, penalties = self._penalties(real, fake, label)
        return {"loss": loss + price} | logs | penalties

    def _penalty_losses(self, batch: Batch) -> Losses:
        """The penalties by themselves, for the steps between too."""
        price, penalties = self._penalties(*self._judged(batch))
        return {"loss": self.penalty_interval * price} | penalties

    def _judged(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """What the discriminator sees of a batch: real images, fake ones, and the classes of both."""
        label = batch.get("label")
        fake = self._generated(size(batch["image"], 0), label, DISCRIMINATOR_NOISE)
        real = self._packed(self._augmented(batch["image"], AUGMENT_REAL))
        return real, tf.stop_gradient(self._packed(self._augmented(fake, AUGMENT_FAKE))), label

    def _penalties(self, real: tf.Tensor, fake: tf.Tensor, label: tf.Tensor | None) -> tuple[tf.Tensor, Losses]:
        """What the discriminator's slopes cost, and each penalty before its weight."""
        rows, price, logs = size(real, 0), tf.zeros(()), {}
        if self.gradient_penalty:
            mix = random.uniform(self.row_seeds(rows, MIX), ())
            penalty = losses.gradient_penalty(
                lambda points: self.discriminator(points, label, training=True), real, fake, mix, self.penalty_slope
            )
            price += self.gradient_penalty * penalty
            logs["gradient_penalty"] = penalty
        # a gradient of a gradient costs as much as the rest of this phase: half the rows tell as much, less exactly
        half = (rows + 1) // 2
        asked = None if label is None else label[:half]
        for name, gamma, images in (("r1", self.r1, real), ("r2", self.r2, fake)):
            if gamma:
                penalty = losses.slope_penalty(
                    lambda points: self.discriminator(points, asked, training=True), images[:half]
                )
                price += gamma * self._penalty_share() * penalty
                logs[name] = penalty
        return price, logs

    def _penalty_share(self) -> tf.Tensor | float:
        """Of r1 and r2 at this step."""
        if not self.penalty_decay_steps:
            return 1.0
        done = tf.minimum(tf.cast(self.step.value, tf.float32) / self.penalty_decay_steps, 1.0)
        return self.penalty_final_share + (1.0 - self.penalty_final_share) * 0.5 * (1.0 + tf.cos(math.pi * done))

    def _augmented(self, images: tf.Tensor, stream: int) -> tf.Tensor:
        if self.augmentation == "none":
            return images
        seed = self.row_seeds(tf.shape(images)[0], stream)
        if self.augmentation == "diffaug":
            return augmentations.diffaug(images, seed)
        return augmentations.adaptive(images, seed, self.augmented_share.value)

    def _adapt(self, real_logits: tf.Tensor, fake_logits: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Move the share of augmented images towards what keeps the discriminator from being too sure; returns it."""
        lead = real_logits - fake_logits if self.loss_name in losses.PAIRED else real_logits
        sure = tf.reduce_mean(tf.sign(tf.stop_gradient(lead)))
        change = tf.sign(sure - self.ada_target) * tf.cast(rows, tf.float32) / ADA_IMAGES
        share = tf.clip_by_value(self.augmented_share.value + change, 0.0, 1.0)
        self.augmented_share.assign(share)
        return share

    def _generator_losses(self, batch: Batch) -> Losses:
        label = batch.get("label")
        fake = self._generated(size(batch["image"], 0), label, GENERATOR_NOISE)
        fake = self._packed(self._augmented(fake, AUGMENT_GENERATED))
        if self.loss_name in losses.PAIRED:
            real = self._packed(self._augmented(batch["image"], AUGMENT_PAIRED))
            real_logits, fake_logits = self._logits(real, fake, label)
        else:
            fake_logits = self.discriminator(fake, label, training=True)
            real_logits = tf.zeros_like(fake_logits)
        return {"loss": losses.ADVERSARIAL[self.loss_name](real_logits, fake_logits)[1]}

    def _path_losses(self, batch: Batch) -> Losses:
        """What path lengths that differ from their mean cost, for the steps between too; moves the mean."""
        rows, label = size(batch["image"], 0), batch.get("label")
        half = (rows + 1) // 2
        asked = None if label is None else label[:half]
        styles = self.generator.styles(self._noise(half, PATH_NOISE), asked, training=True)
        noise = random.normal(self.row_seeds(half, PATH_IMAGE), self.image_shape)
        lengths = losses.path_lengths(self.generator.synthesize, styles, noise)
        now, before = tf.reduce_mean(tf.stop_gradient(lengths)), self.mean_path.value
        # from 0 up, it would draw all lengths towards 0 first, and the images towards a single one
        mean = tf.where(before > 0.0, before + 0.01 * (now - before), now)
        self.mean_path.assign(mean)
        price = self.path_length * tf.reduce_mean(tf.square(lengths - mean))
        return {"loss": self.path_interval * price, "mean_path": mean}

    def _generated(self, rows: Size, label: tf.Tensor | None, stream: int) -> tf.Tensor:
        """Images in training."""
        z = self._noise(rows, stream)
        if self.network != "stylegan2" or not self.style_mixing:
            return self.generator(z, label, training=True)
        drawn = random.uniform(self.row_seeds(rows, STYLE_CUTS + stream), (2,))
        layers = self.generator.style_layers
        cut = 1 + tf.cast(drawn[:, 0] * (layers - 1), tf.int32)
        cut = tf.where(drawn[:, 1] < self.style_mixing, cut, layers)
        styles = self.generator.styles(z, label, training=True)
        others = self.generator.styles(self._noise(rows, SECOND_NOISE + stream), label)
        return self.generator.synthesize(styles, others, cut)

    def _logits(self, real: tf.Tensor, fake: tf.Tensor, label: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if not self.discriminator.rowwise:  # batch statistics of real and of fake images, each by itself
            return self.discriminator(real, label, training=True), self.discriminator(fake, label, training=True)
        both = None if label is None else tf.concat([label, label], axis=0)
        return tf.split(self.discriminator(tf.concat([real, fake], axis=0), both, training=True), 2)

    def _packed(self, images: tf.Tensor) -> tf.Tensor:
        """(B, ..., C) -> (ceil(B / packing), ..., packing * C); where B is no multiple, the first ones come again."""
        if self.packing == 1:
            return images
        rows, count = tf.shape(images)[0], self.packing
        images = tf.gather(images, tf.range(-(-rows // count) * count) % rows)
        if len(self.image_shape) == 1:
            return tf.reshape(images, (-1, count * self.image_shape[0]))
        height, width, channels = self.image_shape
        images = tf.reshape(images, (-1, count, height, width, channels))
        return tf.reshape(tf.transpose(images, (0, 2, 3, 1, 4)), (-1, height, width, count * channels))

    def losses_on(self, batch: Batch, training: bool) -> Losses:
        """Losses of both players on held-out images, with the averaged generator.

        "loss" is their sum, for callbacks to watch: an adversarial model minimises each in its own phase.
        """
        real, label = batch["image"], batch.get("label")
        fake = self.generator_ema(self._noise(tf.shape(real)[0], VALIDATION_NOISE), label, training=False)
        real_logits, fake_logits = (
            self.discriminator(self._packed(images), label, training=False) for images in (real, fake)
        )
        discriminator, generator = losses.ADVERSARIAL[self.loss_name](real_logits, fake_logits)
        return {
            "loss": discriminator + generator,
            "discriminator_loss": discriminator,
            "generator_loss": generator,
            "real_logit": tf.reduce_mean(real_logits),
            "fake_logit": tf.reduce_mean(fake_logits),
        }

    def _averaged(self) -> list[tuple[keras.Variable, keras.Variable]]:
        return list(zip(self.generator_ema.weights, self.generator.weights, strict=True))

    def _noise(self, rows: Size, stream: int) -> tf.Tensor:
        return random.normal(self.row_seeds(rows, stream), (self.latent_dim,))

    # Sampling

    def sample_rows(self, seed: tf.Tensor, label: tf.Tensor | None) -> tf.Tensor:
        def rows(seed, label):
            if label is not None:
                drawn = random.categorical(seed, tf.zeros((tf.shape(seed)[0], self.num_classes)), SAMPLE_LABEL)
                label = tf.where(label < 0, drawn, label)
            return self(random.normal(seed, (self.latent_dim,), SAMPLE_NOISE), label)

        return by_rows(rows, seed, label)

    def signatures(self) -> dict[str, Signature]:
        def serving_default(seed, label=None):
            return as_answer(self.sample_rows(seed, label))

        def decode(z, label=None):
            return {self.example: by_rows(self, z, label)}

        def discriminate(label=None, **inputs):
            return {"logit": by_rows(self.discriminator, inputs[self.example], label)}

        labels = {"label": tf.TensorSpec((None,), tf.int32)} if self.num_classes else {}
        return {
            "serving_default": Signature(serving_default, {"seed": tf.TensorSpec((None, 2), tf.int32)} | labels),
            "decode": Signature(decode, {"z": tf.TensorSpec((None, self.latent_dim), tf.float32)} | labels),
            "discriminate": Signature(
                discriminate,
                {self.example: tf.TensorSpec((None, *self.discriminator.image_shape), tf.float32)} | labels,
            ),
        }

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "latent_dim": self.latent_dim,
            "network": self.network,
            "loss": self.loss_name,
            "hidden_units": self.hidden_units,
            "generator_normalization": self.generator_normalization,
            "width": self.width,
            "blocks": self.blocks,
            "discriminator_normalization": self.discriminator_normalization,
            "gradient_penalty": self.gradient_penalty,
            "penalty_slope": self.penalty_slope,
            "packing": self.packing,
            "r1": self.r1,
            "r2": self.r2,
            "penalty_interval": self.penalty_interval,
            "penalty_decay_steps": self.penalty_decay_steps,
            "penalty_final_share": self.penalty_final_share,
            "augmentation": self.augmentation,
            "ada_target": self.ada_target,
            "style_mixing": self.style_mixing,
            "path_length": self.path_length,
            "path_interval": self.path_interval,
            "truncation": self.truncation,
            "discriminator_steps": self.discriminator_steps,
            "ema_decay": self.ema_decay,
            "seed": self.seed,
        }
