"""Export for TensorFlow Serving, and sampling from what was exported."""

from gentf.export.exporter import ExportResult, export
from gentf.export.served import ServedModel, is_export, load

__all__ = ["ExportResult", "ServedModel", "export", "is_export", "load"]
