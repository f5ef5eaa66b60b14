"""The `gentf` command: thin Click commands, one file each, that import TensorFlow only once they run."""
