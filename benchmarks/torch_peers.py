"""PyTorch, eager and compiled, and the generation of `transformers`. Run by an environment that has them."""

import sys

import torch
from rows import (
    CODE,
    CONTEXT,
    DECODE_HEADS,
    DECODE_LAYERS,
    DECODE_MODEL,
    EMA_DECAY,
    GAN_ADAM,
    HEADS,
    HEIGHT,
    HIDDEN,
    IMAGES,
    LATENT,
    LAYERS,
    MODEL,
    ROWS,
    STEPS,
    TOKENS,
    UNITS,
    VOCABULARY,
    WIDTH,
)
from torch import nn
from worker import serve

BATCH = ROWS["dcgan"].batch


def networks(name: str) -> tuple[nn.Module, nn.Module]:
    if name == "mlp-gan":
        generator = nn.Sequential(
            nn.Linear(LATENT, 128, bias=False), nn.BatchNorm1d(128), nn.LeakyReLU(0.2),
            nn.Linear(128, 256, bias=False), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
            nn.Linear(256, HEIGHT * WIDTH), nn.Tanh(), nn.Unflatten(1, (1, HEIGHT, WIDTH)),
        )  # fmt: skip
        discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(HEIGHT * WIDTH, 256), nn.LeakyReLU(0.2), nn.Linear(256, 128), nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )  # fmt: skip
        return generator, discriminator
    generator = nn.Sequential(
        nn.Linear(LATENT, 4 * 4 * 128, bias=False), nn.Unflatten(1, (128, 4, 4)), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.ZeroPad2d((0, -1, 0, -1)), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
        nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(64, 128, 4, 2, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(4 * 4 * 128, 1),
    )  # fmt: skip
    return generator, discriminator


def gan(name: str, compiled: bool):
    torch.manual_seed(0)
    generator, discriminator = networks(name)
    betas = GAN_ADAM["beta_1"], GAN_ADAM["beta_2"]
    options = {"lr": GAN_ADAM["learning_rate"], "betas": betas, "fused": True}
    g_optimizer = torch.optim.Adam(generator.parameters(), **options)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), **options)
    weights = [*generator.parameters(), *(b for b in generator.buffers() if b.is_floating_point())]
    average = [weight.detach().clone() for weight in weights]
    data = torch.randint(0, 256, (IMAGES, 1, HEIGHT, WIDTH), dtype=torch.uint8)
    bce = nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)

    def d_loss(batch, z):
        real = batch.float() / 127.5 - 1.0
        with torch.no_grad():
            fake = generator(z)
        return bce(discriminator(real), ones) + bce(discriminator(fake), zeros)

    def g_loss(z):
        return bce(discriminator(generator(z)), ones)

    if compiled:
        d_loss, g_loss = torch.compile(d_loss), torch.compile(g_loss)
    d_weights, g_weights = list(discriminator.parameters()), list(generator.parameters())

    def step(batch):
        loss = d_loss(batch, torch.randn(BATCH, LATENT))
        for weight, gradient in zip(d_weights, torch.autograd.grad(loss, d_weights)):
            weight.grad = gradient
        d_optimizer.step()
        other = g_loss(torch.randn(BATCH, LATENT))
        for weight, gradient in zip(g_weights, torch.autograd.grad(other, g_weights)):
            weight.grad = gradient
        g_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1.0 - EMA_DECAY)

    def run(number: int) -> None:
        order = torch.randperm(IMAGES)
        for index in range(number):
            start = index * BATCH % (IMAGES - BATCH)
            step(data[order[start : start + BATCH]])

    return run


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(HEIGHT * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, 2 * CODE),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HEIGHT * WIDTH)
        )

    def forward(self, image):
        x = image.float().flatten(1) / 255.0
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        logits = self.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
        nll = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return (nll + 0.5 * (log_var.exp() + mean**2 - 1.0 - log_var).sum(1)).mean()


class Recurrent(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, UNITS)
        self.layers = (nn.LSTM if kind == "lstm" else nn.GRU)(UNITS, UNITS, num_layers=2)  # time-major: its fastest
        self.head = nn.Linear(UNITS, VOCABULARY)

    def forward(self, tokens):
        tokens = tokens.t()
        logits = self.head(self.layers(self.embedding(tokens[:-1]))[0])
        return nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[1:].reshape(-1).long())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.LayerNorm(MODEL, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(MODEL, 3 * MODEL, bias=False), nn.Linear(MODEL, MODEL, bias=False)
        self.up, self.down = nn.Linear(MODEL, 4 * MODEL, bias=False), nn.Linear(4 * MODEL, MODEL, bias=False)

    def forward(self, x):
        shape = x.shape[0], CONTEXT, HEADS, MODEL // HEADS
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, MODEL), nn.Embedding(CONTEXT, MODEL)
        self.blocks, self.last = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(MODEL, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens[:, :-1]) + self.positions.weight
        logits = self.last(self.blocks(x)) @ self.embedding.weight.t()
        return nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1).long())


def likelihood(name: str, compiled: bool):
    torch.manual_seed(0)
    batch = ROWS[name].batch
    model: nn.Module = {"vae": VAE, "gpt": GPT}[name]() if name in ("vae", "gpt") else Recurrent(name)
    weights = list(model.parameters())
    if name == "gpt":
        tuned = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    else:
        tuned = torch.optim.Adam(weights, lr=1e-3, fused=True)
    if name == "vae":
        data = torch.randint(0, 256, (IMAGES, 1, HEIGHT, WIDTH), dtype=torch.uint8)
    else:
        data = torch.randint(0, VOCABULARY, (10 * batch, (CONTEXT if name == "gpt" else STEPS) + 1), dtype=torch.int32)
    loss_of = torch.compile(model) if compiled else model

    def run(number: int) -> None:
        order = torch.randperm(len(data))
        for index in range(number):
            start = index * batch % (len(data) - batch + 1)
            tuned.zero_grad(set_to_none=True)
            loss_of(data[order[start : start + batch]]).backward()
            if name == "gpt":
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
            tuned.step()

    return run


def generation(batch: int):
    """`generate` of `transformers`: greedy, 256 tokens after a prompt of one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=TOKENS + 1, n_embd=DECODE_MODEL, n_layer=DECODE_LAYERS, n_head=DECODE_HEADS,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.zeros((batch, 1), dtype=torch.long)

    def run(number: int) -> None:
        with torch.inference_mode():
            for _ in range(number // TOKENS):
                model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
                    do_sample=False, use_cache=True,
                )  # fmt: skip

    return run


def main(contender: str, name: str) -> None:
    matrix = torch.randn(1024, 1024)
    compiled = contender == "torch-compiled"
    if contender == "transformers":
        make, warm_up = lambda: generation(ROWS[name].batch), TOKENS
    elif name in ("mlp-gan", "dcgan"):
        make, warm_up = lambda: gan(name, compiled), 20
    else:
        make, warm_up = lambda: likelihood(name, compiled), 20
    serve(make, lambda: (matrix @ matrix)[0, 0].item(), warm_up)


if __name__ == "__main__":
    main(*sys.argv[1:])
