"""Generative models for Keras 3 and TensorFlow: data, training, sampling, evaluation, export.

Importing `gentf` is instant: TensorFlow is imported with the first name that needs it.

    import gentf

    source = gentf.load("digits")             # or a TFDS name, or a folder of images
    model = gentf.from_preset("gan-digits")   # a keras.Model
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gentf.data import load as load
    from gentf.models import from_preset as from_preset

__version__ = "0.1.0"

_NAMES = {"load": "gentf.data", "from_preset": "gentf.models"}
_MODULES = (
    "config",
    "data",
    "errors",
    "evaluation",
    "export",
    "files",
    "kernels",
    "losses",
    "metrics",
    "models",
    "nn",
    "sampling",
    "training",
)
__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    """Import a name of the package with its first use (PEP 562)."""
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    elif name in _MODULES:
        return import_module(f"gentf.{name}")  # the import itself sets the attribute
    else:
        raise AttributeError(f"module 'gentf' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
