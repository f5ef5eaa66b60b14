"""What a config may hold: frozen dataclasses, one for each section, and one for each model family.

A field's allowed range or choices stand in its metadata, where `gentf.config.check` finds them.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any


def field(default: Any, text: str, *, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """A dataclass field with its help text and the values it accepts (`low` and `high` included)."""
    metadata = {"help": text, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and how they are cut into train, validation and test."""

    name: str = field("digits", "embedded set, TFDS builder, or the path of a file or folder")
    modality: str = field("image", "what the examples are", choices=("image", "text", "music", "pairs", "points"))
    cache_mb: int = field(1024, "decoded examples are held in memory up to this many MB, else streamed", low=0)
    validation_share: float = field(0.1, "cut from train where the data have no validation split", low=0.0, high=0.9)
    test_share: float = field(0.1, "cut from train where the data have no test split", low=0.0, high=0.9)
    max_corrupt_share: float = field(0.01, "corrupt files are skipped up to this share of all", low=0.0, high=1.0)


@dataclass(frozen=True)
class ImageConfig:
    """How images are brought to one shape."""

    size: tuple[int, int] | None = field(None, "[height, width] in pixels to resize to; null keeps the size", low=1)
    channels: int | None = field(None, "1 grey, 3 colour, 4 with alpha; null keeps the files' own", choices=(1, 3, 4))
    fit: str = field("crop", "crop keeps the aspect ratio, stretch does not", choices=("crop", "stretch"))
    binarize: str = field(
        "none",
        "black and white: by a threshold, or drawn once with the grey level as the chance of white",
        choices=("none", "threshold", "fixed"),
    )
    join_validation: bool = field(False, "train on the validation split too; then nothing is validated")


@dataclass(frozen=True)
class TextConfig:
    """How text, and pairs of texts, become tokens."""

    tokenizer: str = field(
        "char", "characters, bytes, or byte pairs learned from train", choices=("char", "byte", "bpe")
    )
    vocabulary: int | None = field(None, "bpe: number of tokens; null: 4096", low=257, high=2**20)
    documents: str = field("file", "what is a document", choices=("file", "blank_line", "line"))
    block: int = field(128, "tokens in a window that is learned from", low=1, high=65_536)


@dataclass(frozen=True)
class MusicConfig:
    """How pieces become frames or tokens."""

    tokens: str = field(
        "frames", "frames of 88 keys, chords or events as tokens", choices=("frames", "chords", "events")
    )
    block: int = field(128, "frames, or tokens, that are learned from together", low=1, high=65_536)
    transpose: int = field(0, "train also on transpositions by up to so many semitones, up and down", low=0, high=12)


@dataclass(frozen=True)
class PairsConfig:
    """How many pairs a generated set has."""

    examples: int = field(50_000, "pairs in train; validation and test have a tenth each", low=100, high=1_000_000)


@dataclass(frozen=True)
class GANConfig:
    """An adversarial model; the fields are the arguments of `gentf.models.GAN`."""

    family: str = field("gan", "model family", choices=("gan",))
    network: str = field(
        "mlp", "network of generator and discriminator", choices=("mlp", "dcgan", "resnet", "r3gan", "stylegan2")
    )
    loss: str = field(
        "non_saturating",
        "adversarial loss",
        choices=("minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"),
    )
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")
    latent_dim: int = field(100, "numbers of noise a sample is made from", low=1, high=100_000)
    hidden_units: tuple[int, ...] = field((128, 256), "mlp: generator layers; the discriminator mirrors them", low=1)
    generator_normalization: str = field("batch", "mlp: normalization in the generator", choices=("none", "batch"))
    width: int = field(64, "channels of the layer next to the image; resnet: of all", low=1, high=4096)
    blocks: int = field(2, "r3gan: residual blocks at each size", low=1, high=64)
    discriminator_normalization: str | None = field(
        None, "of the discriminator; null: the network's own", choices=("none", "batch", "layer", "spectral")
    )
    gradient_penalty: float = field(0.0, "weight of the gradient penalty; 10 for WGAN-GP", low=0.0)
    penalty_slope: float = field(1.0, "slope that the gradient penalty asks for; 0 for 0-GP", low=0.0)
    packing: int = field(1, "samples that the discriminator judges together", low=1, high=1024)
    r1: float = field(0.0, "gamma of the R1 penalty, the discriminator's slope at real images", low=0.0)
    r2: float = field(0.0, "gamma of the R2 penalty, its slope at fake images", low=0.0)
    penalty_interval: int = field(1, "the penalties are taken in every so many-th step", low=1, high=1000)
    penalty_decay_steps: int = field(0, "steps over which r1 and r2 fall as a cosine; 0: they stay", low=0)
    penalty_final_share: float = field(0.1, "of r1 and r2, what is left after them", low=0.0, high=1.0)
    augmentation: str = field(
        "none", "of what the discriminator sees: always, or as needed", choices=("none", "diffaug", "ada")
    )
    ada_target: float = field(0.6, "ada: mean sign of real logits above which more is augmented", low=-1.0, high=1.0)
    style_mixing: float = field(0.9, "stylegan2: share of images of two styles, in training", low=0.0, high=1.0)
    path_length: float = field(0.0, "stylegan2: weight of the path lengths' spread; 2 is the paper's", low=0.0)
    path_interval: int = field(4, "it is taken in every so many-th step", low=1, high=1000)
    truncation: float = field(1.0, "share of a style's way, or of the noise, at sampling", low=0.01, high=1.0)
    discriminator_steps: int = field(1, "discriminator updates a generator update", low=1, high=100)
    ema_decay: float = field(0.999, "decay a step of the averaged generator that samples", low=0.0, high=0.999999)


@dataclass(frozen=True)
class RNNConfig:
    """A recurrent model of sequences; the fields are the arguments of `gentf.models.RNN`."""

    family: str = field("rnn", "model family", choices=("rnn",))
    cell: str = field("lstm", "recurrent layer", choices=("rnn", "lstm", "gru"))
    layers: int = field(2, "recurrent layers on top of one another", low=1, high=64)
    units: int = field(256, "units of each layer", low=1, high=65_536)
    embedding: int | None = field(None, "numbers a token is embedded in; null: as units", low=1, high=65_536)
    dropout: float = field(0.0, "share of units left out between layers, the same at each step", low=0.0, high=0.95)
    input_dropout: float = field(0.0, "frames: share of keys left out of the input", low=0.0, high=0.95)
    tied: bool = field(False, "the last layer shares the embedding's weights")
    skip: bool = field(False, "frames: the last layer sees the frame before, too")
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder of self-attention; the fields are the arguments of `gentf.models.Transformer`."""

    family: str = field("transformer", "model family", choices=("transformer",))
    layers: int = field(4, "blocks of attention and feed-forward network", low=1, high=256)
    width: int = field(128, "numbers that stand for a token between blocks", low=1, high=65_536)
    heads: int = field(4, "heads of attention", low=1, high=1024)
    groups: int | None = field(None, "heads of keys and values; null: as heads", low=1, high=1024)
    hidden: int | None = field(None, "units of the feed-forward network; null: 4 times width", low=1, high=262_144)
    positions: str = field("rotary", "how places are known", choices=("rotary", "learned"))
    context: int | None = field(None, "tokens that a prediction may see; null: the data's block", low=1, high=1_048_576)
    dropout: float = field(0.0, "share of numbers left out after embedding and branches", low=0.0, high=0.95)
    bias: bool = field(False, "biases in linear layers and normalizations")
    tied: bool = field(True, "the last layer shares the embedding's weights")
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """An encoder and a decoder of attention; the fields are the arguments of `gentf.models.EncoderDecoder`."""

    family: str = field("encoder_decoder", "model family", choices=("encoder_decoder",))
    layers: int = field(2, "blocks of the encoder, and of the decoder", low=1, high=256)
    width: int = field(128, "numbers that stand for a token between blocks", low=1, high=65_536)
    heads: int = field(4, "heads of attention", low=1, high=1024)
    hidden: int | None = field(None, "units of the feed-forward network; null: 4 times width", low=1, high=262_144)
    buckets: int = field(32, "relative distances that are told apart, both directions together", low=4, high=1024)
    max_distance: int = field(128, "distances from here on are one bucket", low=3, high=65_536)
    dropout: float = field(0.0, "share of numbers left out after embedding and branches", low=0.0, high=0.95)
    tied: bool = field(True, "the last layer shares the embedding's weights")
    sentinels: int = field(0, "text: tokens for what pretraining cuts out; 0: pairs only", low=0, high=10_000)
    corrupt_share: float = field(0.15, "text: share of tokens to be restored in pretraining", low=0.01, high=0.9)
    corrupt_span: float = field(3.0, "text: mean length of what is cut out in pretraining", low=1.0, high=100.0)


@dataclass(frozen=True)
class PixelCNNConfig:
    """A masked convolutional model of images; the fields are the arguments of `gentf.models.PixelCNN`."""

    family: str = field("pixelcnn", "model family", choices=("pixelcnn",))
    layers: int = field(7, "gated blocks", low=1, high=256)
    width: int = field(32, "channels of each stack", low=1, high=4096)
    kernel_size: int = field(3, "of the blocks, odd", low=3, high=31)
    first_kernel_size: int = field(7, "of the first convolutions, odd", low=3, high=63)
    likelihood: str = field("bernoulli", "of a pixel", choices=("bernoulli", "categorical", "mixture"))
    components: int = field(10, "mixture: logistic components", low=1, high=1000)
    dropout: float = field(0.0, "share of channels left out inside blocks", low=0.0, high=0.95)
    ema_decay: float = field(
        0.999, "decay a step of the averaged weights that sample and score", low=0.0, high=0.999999
    )
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")


@dataclass(frozen=True)
class VAEConfig:
    """A variational autoencoder of images; the fields are the arguments of `gentf.models.VAE`."""

    family: str = field("vae", "model family", choices=("vae",))
    latent_dim: int = field(40, "numbers of a code", low=1, high=100_000)
    network: str = field("mlp", "network of encoder and decoder", choices=("mlp", "conv"))
    hidden_units: tuple[int, ...] = field((400,), "mlp: encoder layers; the decoder mirrors them", low=1)
    activation: str = field("relu", "mlp: of the hidden layers", choices=("relu", "tanh", "gated"))
    width: int = field(32, "conv: channels of the layer next to the image", low=1, high=4096)
    units: int = field(256, "conv: units of the dense layers", low=1, high=65_536)
    likelihood: str = field("bernoulli", "of a pixel", choices=("bernoulli", "categorical", "gaussian", "mixture"))
    scale: float | None = field(None, "gaussian: standard deviation, of values in [-1, 1]; null: learned", low=0.0)
    components: int = field(10, "mixture: logistic components", low=1, high=1000)
    posterior: str = field("diagonal", "normal, with every covariance, or a flow", choices=("diagonal", "full", "iaf"))
    flow_steps: int = field(2, "iaf posterior, flow prior: steps", low=1, high=64)
    flow_hidden: int = field(320, "iaf posterior, flow prior: units of a step's network", low=1, high=65_536)
    prior: str = field("normal", "of the codes", choices=("normal", "mixture", "vamp", "flow"))
    prior_components: int = field(500, "mixture, vamp: components", low=1, high=100_000)
    objective: str = field("elbo", "what is minimised", choices=("elbo", "iwae", "beta_tc", "info"))
    samples: int | None = field(None, "codes an example; null: 1, and 50 of iwae", low=1, high=10_000)
    beta: float | None = field(None, "price of the rate; of total correlation in beta_tc; null: 1, there 6", low=0.0)
    anneal_steps: int = field(0, "steps over which the price rises from 0", low=0)
    capacity: float = field(0.0, "nats that the rate is held to; 0: none", low=0.0)
    capacity_steps: int = field(0, "steps over which the capacity rises from 0", low=0)
    free_bits: float = field(0.0, "nats of each latent that cost nothing", low=0.0)
    doubly: bool = field(True, "iwae: doubly reparameterized gradients")
    info_alpha: float = field(0.0, "info: share of the rate that is left out", high=1.0)
    info_weight: float = field(1000.0, "info: of the distance of all codes from the prior", low=0.0)
    input_dropout: float = field(0.0, "share of pixels hidden from the encoder in training", low=0.0, high=0.99)
    shown: str = field("mean", "what a sample shows of its pixels' distribution", choices=("mean", "sample"))
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")


@dataclass(frozen=True)
class LadderVAEConfig:
    """A variational autoencoder of several layers; the fields are the arguments of `gentf.models.LadderVAE`."""

    family: str = field("ladder_vae", "model family", choices=("ladder_vae",))
    latent_dims: tuple[int, ...] = field((64, 32), "numbers of a code, of each layer from the image up", low=1)
    hidden_units: tuple[int, ...] = field((512, 256), "units of the two dense layers below each of them", low=1)
    activation: str = field("relu", "of the hidden layers", choices=("relu", "tanh", "gated"))
    likelihood: str = field("bernoulli", "of a pixel", choices=("bernoulli", "categorical", "gaussian", "mixture"))
    scale: float | None = field(None, "gaussian: standard deviation, of values in [-1, 1]; null: learned", low=0.0)
    components: int = field(10, "mixture: logistic components", low=1, high=1000)
    objective: str = field("elbo", "what is minimised", choices=("elbo", "iwae"))
    samples: int | None = field(None, "codes an example; null: 1, and 50 of iwae", low=1, high=10_000)
    beta: float | None = field(None, "elbo: price of the rate; null: 1", low=0.0)
    anneal_steps: int = field(0, "steps over which the price rises from 0", low=0)
    free_bits: float = field(0.0, "nats of each latent that cost nothing", low=0.0)
    input_dropout: float = field(0.0, "share of pixels hidden from the encoder in training", low=0.0, high=0.99)
    shown: str = field("mean", "what a sample shows of its pixels' distribution", choices=("mean", "sample"))
    conditional: bool = field(False, "learn the classes of labelled data, and sample by class")


@dataclass(frozen=True)
class VQVAEConfig:
    """An autoencoder whose codes are integers; the fields are the arguments of `gentf.models.VQVAE`."""

    family: str = field("vqvae", "model family", choices=("vqvae",))
    width: int = field(128, "channels of encoder and decoder", low=1, high=4096)
    residual_width: int = field(32, "channels inside residual blocks", low=1, high=4096)
    residual_layers: int = field(2, "residual blocks of encoder, and of decoder", low=0, high=64)
    downsamples: int = field(2, "times that height and width are halved", low=1, high=8)
    code_dim: int = field(64, "numbers of the vector that a code stands for", low=1, high=65_536)
    quantizer: str = field(
        "vq", "one codebook, several in turn, or rounding to levels", choices=("vq", "residual", "fsq")
    )
    codes: int = field(512, "vq, residual: vectors of a codebook", low=1, high=2**20)
    levels: tuple[int, ...] = field((8, 5, 5, 5), "fsq: levels of each number; their product is the codes", low=2)
    stages: int = field(2, "residual: codebooks", low=1, high=64)
    codebook: str = field("ema", "codes follow by averages or by gradient", choices=("ema", "gradient"))
    kmeans: bool = field(True, "the codes start from the first batch, by k-means")
    decay: float = field(0.99, "decay a step of the averages", low=0.0, high=0.999999)
    revive: float = field(0.05, "a code used less than this share of the mean is placed anew; 0: never", low=0.0,
                          high=0.999)  # fmt: skip
    beta: float = field(0.25, "price of the distance to the codes", low=0.0)
    gradient_estimator: str = field(
        "straight_through", "how gradients pass the codes", choices=("straight_through", "rotation")
    )
    reconstruction: str = field(
        "squared", "what is minimised of the image's error", choices=("squared", "absolute", "features")
    )
    feature_weight: float = field(0.2, "features: nats a pixel for a unit of their distance", low=0.0)


@dataclass(frozen=True)
class SequenceVAEConfig:
    """A variational autoencoder of sequences; the fields are the arguments of `gentf.models.SequenceVAE`."""

    family: str = field("sequence_vae", "model family", choices=("sequence_vae",))
    context: int | None = field(None, "symbols that share a code where streams are scored; null: those of a window",
                                low=1, high=2**20)  # fmt: skip
    cell: str = field("lstm", "recurrent cell", choices=("rnn", "lstm", "gru"))
    layers: int = field(1, "recurrent layers of the decoder", low=1, high=64)
    units: int = field(256, "units of each", low=1, high=65_536)
    embedding: int | None = field(None, "tokens: numbers a token is embedded in; null: units", low=1, high=65_536)
    dropout: float = field(0.0, "share of units left out after a decoder's layer", low=0.0, high=0.95)
    input_dropout: float = field(0.0, "share of keys, or tokens, hidden from the decoder in training", low=0.0,
                                 high=0.99)  # fmt: skip
    encoder_units: int | None = field(None, "units of the encoder, each way; null: units", low=1, high=65_536)
    latent_dim: int = field(32, "numbers of a code", low=1, high=100_000)
    posterior: str = field("diagonal", "normal, with every covariance, or a flow", choices=("diagonal", "full", "iaf"))
    prior: str = field("normal", "of the codes", choices=("normal", "mixture", "flow"))
    prior_components: int = field(100, "mixture: components", low=1, high=100_000)
    flow_steps: int = field(4, "iaf posterior, flow prior: steps", low=1, high=64)
    flow_hidden: int = field(128, "iaf posterior, flow prior: units of a step's network", low=1, high=65_536)
    objective: str = field("elbo", "what is minimised", choices=("elbo", "iwae", "beta_tc", "info"))
    samples: int | None = field(None, "codes an example; null: 1, and 50 of iwae", low=1, high=10_000)
    beta: float | None = field(None, "price of the rate; of total correlation in beta_tc; null: 1, there 6", low=0.0)
    anneal_steps: int = field(0, "steps over which the price rises from 0", low=0)
    capacity: float = field(0.0, "nats that the rate is held to; 0: none", low=0.0)
    capacity_steps: int = field(0, "steps over which the capacity rises from 0", low=0)
    free_bits: float = field(0.0, "nats of each latent that cost nothing", low=0.0)
    doubly: bool = field(True, "iwae: doubly reparameterized gradients")
    info_alpha: float = field(0.0, "info: share of the rate that is left out", high=1.0)
    info_weight: float = field(1000.0, "info: of the distance of all codes from the prior", low=0.0)


ModelConfig = (
    GANConfig
    | RNNConfig
    | TransformerConfig
    | EncoderDecoderConfig
    | PixelCNNConfig
    | VAEConfig
    | LadderVAEConfig
    | VQVAEConfig
    | SequenceVAEConfig
)
MODELS: dict[str, type] = {kind.__dataclass_fields__["family"].default: kind for kind in typing.get_args(ModelConfig)}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of every phase, and the course of its step size."""

    name: str = field("adam", "adam, adamw (decay of weights apart from the gradient) or lion",
                      choices=("adam", "adamw", "lion"))  # fmt: skip
    learning_rate: float = field(2e-4, "step size", low=0.0, high=10.0)
    discriminator_learning_rate: float | None = field(None, "null: as learning_rate", low=0.0, high=10.0)
    warmup_steps: int = field(0, "steps in which the step size rises from 0", low=0)
    decay_steps: int | None = field(None, "steps after warm-up in which it falls as a cosine; null: it stays", low=1)
    final_share: float = field(0.1, "of the step size, what is left after decay_steps", low=0.0, high=1.0)
    beta_1: float = field(0.5, "decay of the mean of gradients", low=0.0, high=0.999999)
    beta_2: float = field(0.999, "decay of the mean of squared gradients", low=0.0, high=0.9999999)
    weight_decay: float = field(
        0.0, "adamw, lion: share of a matrix that a step of size 1 takes off", low=0.0, high=10.0
    )
    clip_norm: float | None = field(None, "gradients are scaled down to this norm over all; null: never", low=0.0)
    accumulate: int = field(1, "batches whose gradients make one update", low=1, high=10_000)


@dataclass(frozen=True)
class TrainConfig:
    """How long and how a model is trained."""

    epochs: int = field(20, "passes over the train split", low=1)
    steps: int | None = field(None, "stop after so many steps, if that is sooner than the epochs", low=1)
    batch_size: int = field(64, "examples a step, over all devices", low=1)
    jit: str = field("auto", "compile the step with XLA: auto, true or false", choices=("auto", "true", "false"))
    precision: str = field("float32", "dtype policy", choices=("float32", "mixed_bfloat16"))
    devices: int | None = field(None, "number of devices; null: every GPU, or the CPU", low=1)
    shards: int | None = field(None, "parts of a batch computed side by side on a CPU; null: chosen for speed", low=1)
    steps_per_call: int = field(10, "steps in one compiled call; on several devices it is 1", low=1, high=1000)
    log_every: int = field(100, "steps between lines of metrics.jsonl", low=1)
    checkpoint_every: int | None = field(None, "steps between checkpoints; null: each epoch", low=1)
    keep_checkpoints: int = field(3, "last checkpoints kept, besides the best", low=1)
    sample_every: int = field(1, "epochs between sample grids", low=1)
    validation_samples: int = field(1000, "samples compared with validation images each epoch; 0: none", low=0)
    max_loss: float = field(1e5, "a loss beyond this magnitude stops the run", low=0.0)


@dataclass(frozen=True)
class Config:
    """A whole run. `preset` is the starting point's name and `seed` decides every random number."""

    preset: str = field("custom", "name of the preset it started from")
    description: str = field("", "one line on what it is")
    seed: int = field(0, "initial weights, shuffling, noise", low=0, high=2**31 - 1)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    music: MusicConfig = dataclasses.field(default_factory=MusicConfig)
    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    model: ModelConfig = dataclasses.field(default_factory=GANConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
