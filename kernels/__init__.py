"""TensorFlow functions with custom gradients, compilable by XLA and exportable without it. Imports TensorFlow only."""
