"""What models of images (and of points) share: the form of a batch, and samples from row seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.models.base import Batch, GenerativeModel


class ImageModel(GenerativeModel):
    """Base of models of images.

    A subclass gives `sample_rows` beside what a `GenerativeModel` needs.

    Args:
        image_shape: (height, width, channels); where `ranks` has 1, also (D,), for points of D numbers.
        num_classes, seed: as of `GenerativeModel`.
    """

    #: How many axes an example may have.
    ranks: tuple[int, ...] = (3,)

    def __init__(self, image_shape: Sequence[int], num_classes: int = 0, seed: int = 0, **kwargs):
        super().__init__(num_classes, seed, **kwargs)
        if len(image_shape) not in self.ranks or min(image_shape) < 1:
            accepted = "(height, width, channels)" + (" or (D,)" if 1 in self.ranks else "")
            raise ValueError(f"`image_shape` must be {accepted}. Received: image_shape={image_shape}")
        self.image_shape = tuple(int(size) for size in image_shape)
        #: What data and answers call an example.
        self.example = "image" if len(self.image_shape) == 3 else "point"
        self._sampler: Callable | None = None

    def sample_rows(self, seed: tf.Tensor, label: tf.Tensor | None) -> tf.Tensor:
        """(B, 2) int32 row seeds, (B,) int32 classes or None -> (B, H, W, C) float32 in [-1, 1], or (B, D)."""
        raise NotImplementedError

    def prepare(self, data: Any) -> Batch:
        """A batch as the losses take it: {"image": float in [-1, 1], "label": int32} from what `fit` accepts.

        Args:
            data: {"image", "label"}, (image, label), (image,) or image. uint8 images are scaled from 0..255 to
                [-1, 1]; floats are taken to be in [-1, 1]. Points are {"point", ...}, and taken as they are.
        """
        if isinstance(data, Mapping):
            batch = dict(data)
        elif isinstance(data, (tuple, list)):
            batch = dict(zip(("image", "label"), (part for part in data if part is not None)))
        else:
            batch = {"image": data}
        image = tf.convert_to_tensor(batch["point"] if "point" in batch else batch["image"])
        if image.shape.rank == 3 and self.image_shape[2:] == (1,):
            image = image[..., None]
        if image.shape[1:] != self.image_shape:
            found = f"{self.example}.shape[1:]={tuple(image.shape[1:])}"
            raise ValueError(f"`{self.example}` must be batches of shape {self.image_shape}. Received: {found}")
        scaled = tf.cast(image, tf.float32) / 127.5 - 1.0 if image.dtype == tf.uint8 else tf.cast(image, tf.float32)
        prepared = {"image": scaled}
        if self.num_classes:
            if batch.get("label") is None:
                raise ValueError("`label` must be given to a conditional model. Received: label=None")
            prepared["label"] = tf.cast(batch["label"], tf.int32)
        return prepared

    def sample(self, num: int, *, condition: Any = None, seed: int | None = None) -> np.ndarray:
        """Draw `num` samples.

        Row i is made from the row seed [seed, i] alone: it is the same for any `num`, from an exported model, and in
        any process.

        Args:
            num: at least 1.
            condition: a class for all, or one a sample; None draws classes by the row seeds. Vectors, (V,) or
                (num, V), for a model that is conditioned on them.
            seed: 0 <= seed < 2**31; None takes a fresh one.
        Returns:
            (num, H, W, C) float32 in [-1, 1]; of points (num, D) float32.
        """
        seed = self.check_draw(num, seed)
        labels = self.check_condition(condition, num)
        if self._sampler is None:
            specs = [tf.TensorSpec((None, 2), tf.int32)]
            if labels is not None:
                specs.append(tf.TensorSpec((None, *labels.shape[1:]), labels.dtype))
            sampler = tf.function(lambda seed, label=None: self.sample_rows(seed, label), autograph=False)
            self._sampler = sampler.get_concrete_function(*specs)
        blocks = []
        for start in range(0, num, 1024):  # bounds the memory that a large `num` takes
            rows = min(1024, num - start)
            label = () if labels is None else (tf.constant(labels[start : start + rows]),)
            blocks.append(self._sampler(random.spread(seed, rows, start), *label).numpy())
        return np.concatenate(blocks)


def as_answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
    """What a served model answers of images (B, H, W, C) in [-1, 1]: themselves, and as PNG files of 0..255; of points
    (B, D), themselves."""
    if image.shape.rank == 2:
        return {"point": image}
    pixels = tf.cast(tf.clip_by_value(tf.round((image + 1.0) * 127.5), 0.0, 255.0), tf.uint8)
    return {"image": image, "image_bytes": tf.io.encode_png(pixels)}
