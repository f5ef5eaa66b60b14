"""A kernel or the naive form of the same function, forward and backward, as a process that takes turns with the others.

    python operations.py FORM KERNEL

FORM: "ours" or "naive", with "-xla" where XLA compiles it; "torch" for PyTorch. `run.py` asks, as worker.py says.
"""

import os
import sys
from collections.abc import Callable

from worker import serve

TITLES = {
    "attention": "Attention, T = 8,192, 8 heads of 64, batch 1",
    "attention-causal": "The same, causal",
    "cross-entropy": "Last layer and cross-entropy, 4,096 tokens of 256, V = 50,257",
    "upfirdn": "upfirdn, 16 x 64 x 64 x 64, filter 1-3-3-1, up 2, down 2",
    "bias-act": "bias_act, 16 x 64 x 64 x 64, leaky ReLU with a gain and a clamp",
}
FORMS = {
    "attention": ("ours", "naive", "ours-xla", "naive-xla"),
    "attention-causal": ("ours", "naive", "ours-xla", "naive-xla"),
    "cross-entropy": ("ours", "naive", "ours-xla", "naive-xla"),
    "upfirdn": ("ours", "naive", "torch", "ours-xla", "naive-xla"),
    "bias-act": ("ours", "naive", "torch", "ours-xla", "naive-xla"),
}
STEPS = {"attention": 1, "attention-causal": 1, "cross-entropy": 1, "upfirdn": 5, "bias-act": 20}  # a measurement


def tensorflow_case(kernel: str, form: str) -> Callable[[], object]:
    """A function that runs one forward and backward pass."""
    import tensorflow as tf

    from gentf.kernels.attention import attention
    from gentf.kernels.bias_act import bias_act
    from gentf.kernels.cross_entropy import weighted_linear_cross_entropy
    from gentf.kernels.upfirdn import upfirdn

    def normal(*shape: int, seed: int = 0) -> tf.Tensor:
        return tf.random.stateless_normal(shape, seed=(seed, 0))

    ours = form.startswith("ours")
    if kernel.startswith("attention"):
        causal = kernel.endswith("causal")
        inputs = [normal(1, 8192, 8, 64, seed=seed) for seed in range(3)]

        def naive(q, k, v):
            scores = tf.einsum("bthd,bshd->bhts", q * 64**-0.5, k)
            if causal:
                seen = tf.range(8192)[:, None] >= tf.range(8192)
                scores = tf.where(seen, scores, -1e9)
            return tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), v)

        function = (lambda q, k, v: attention(q, k, v, causal=causal)) if ours else naive
    elif kernel == "cross-entropy":
        inputs = [normal(4096, 256), 0.05 * normal(256, 50257, seed=1), tf.zeros(50257)]
        labels = tf.cast(50257.0 * tf.random.stateless_uniform((4096,), (2, 0)), tf.int32)

        def naive(hidden, kernel, bias):
            logits = tf.matmul(hidden, kernel) + bias
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

        def fused(hidden, kernel, bias):
            return weighted_linear_cross_entropy(hidden, kernel, bias, labels, tf.fill((4096,), 1.0 / 4096))

        function = fused if ours else naive
    elif kernel == "upfirdn":
        inputs = [normal(16, 64, 64, 64)]
        taps = tf.constant([1.0, 3.0, 3.0, 1.0]) / 8.0

        def naive(x):
            x = tf.reshape(tf.pad(x[:, :, None, :, None], [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1], [0, 0]]),
                           (16, 128, 128, 64))  # fmt: skip
            x = tf.pad(x, [[0, 0], [2, 2], [2, 2], [0, 0]])
            outer = tf.tile((taps[:, None] * taps)[:, :, None, None], (1, 1, 64, 1))
            return tf.nn.depthwise_conv2d(x, outer, (1, 2, 2, 1), "VALID")

        function = (lambda x: upfirdn(x, (0.125, 0.375, 0.375, 0.125), up=2, down=2, padding=(2, 2, 2, 2))) if ours \
            else naive  # fmt: skip
    else:
        inputs = [normal(16, 64, 64, 64), normal(64, seed=1)]

        def naive(x, bias):
            return tf.clip_by_value(tf.nn.leaky_relu(x + bias, 0.2) * 2**0.5, -2.0, 2.0)

        function = (lambda x, bias: bias_act(x, bias, activation="lrelu", clamp=2.0)) if ours else naive

    @tf.function(jit_compile=form.endswith("-xla"))
    def step(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(function(*inputs) ** 2)
        return tape.gradient(loss, inputs)

    return lambda: [part[:1].numpy() for part in step(*inputs)]


def torch_case(kernel: str) -> Callable[[], object]:
    import torch
    from torch.nn import functional

    x = torch.randn(16, 64, 64, 64).requires_grad_()  # channels first: PyTorch's own layout
    if kernel == "bias-act":
        bias = torch.randn(64).requires_grad_()

        def function():
            y = functional.leaky_relu(x + bias[:, None, None], 0.2) * 2**0.5
            return torch.clamp(y, -2.0, 2.0), [x, bias]
    else:
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
        outer = (taps[:, None] * taps)[None, None].repeat(64, 1, 1, 1)

        def function():
            y = x.reshape(16, 64, 64, 1, 64, 1)
            y = functional.pad(y, [0, 1, 0, 0, 0, 1]).reshape(16, 64, 128, 128)
            return functional.conv2d(functional.pad(y, [2, 2, 2, 2]), outer, stride=2, groups=64), [x]

    def run():
        y, inputs = function()
        torch.autograd.grad((y**2).sum(), inputs)

    return run


def gemm(form: str) -> Callable[[], object]:
    if form == "torch":
        import torch

        matrix = torch.randn(1024, 1024)
        return lambda: torch.matmul(matrix, matrix)
    import tensorflow as tf

    square = tf.random.stateless_normal((1024, 1024), seed=(0, 0))
    return lambda: tf.matmul(square, square).numpy()[0, 0]


def main(form: str, kernel: str) -> None:
    case = torch_case(kernel) if form == "torch" else tensorflow_case(kernel, form)

    def run(steps: int) -> None:
        for _ in range(steps):
            case()

    product = gemm(form)
    product()  # what the first product allocates is no kernel's
    serve(lambda: run, product, 1)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if len(sys.argv) != 3 or sys.argv[1] not in FORMS.get(sys.argv[2], ()):
        known = "; ".join(f"{', '.join(forms)}: {kernel}" for kernel, forms in FORMS.items())
        sys.exit(f"usage: python operations.py FORM KERNEL\n{known}")
    main(*sys.argv[1:])
