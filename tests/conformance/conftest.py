"""Each kit's model, trained once for all tests of a module."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from kits import Kit, kits, losses_of

from gentf.models import GenerativeModel
from gentf.training import checkpoint
from gentf.training.steps import Steps


class Trained(NamedTuple):
    """A model after six batches, the losses on the way, and what a checkpoint after three would hold."""

    model: GenerativeModel
    losses: dict[str, np.ndarray]
    half_way: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=kits(), ids=lambda kit: kit.preset)
def kit(request) -> Kit:
    return request.param


@pytest.fixture(scope="module")
def batches(kit) -> list[dict[str, tf.Tensor]]:
    return kit.batches()


@pytest.fixture(scope="module")
def trained(kit, batches) -> Trained:
    model = kit.model()
    steps = Steps(model, tf.distribute.get_strategy(), 1, False)
    parts = [steps.run([batch]) for batch in batches[:3]]
    half_way = {name: np.array(value) for name, value in checkpoint.arrays(model).items()}
    parts += [steps.run([batch]) for batch in batches[3:]]
    return Trained(model, losses_of(parts), half_way)


@pytest.fixture(scope="module")
def served(trained) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """What the trained model's export would answer by name, for any number of rows."""
    return {
        name: tf.function(signature.function, autograph=False).get_concrete_function(**signature.inputs)
        for name, signature in trained.model.signatures().items()
    }
