"""Contenders on PyTorch: eager and compiled. Run by an environment of its own that has PyTorch."""

import sys

import torch
from torch import nn
from worker import BATCH, BETA_1, BETA_2, EMA_DECAY, HEIGHT, IMAGES, LATENT, LEARNING_RATE, WIDTH, serve


def networks(network: str) -> tuple[nn.Module, nn.Module]:
    if network == "mlp":
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


def trainer(network: str, compiled: bool):
    torch.manual_seed(0)
    generator, discriminator = networks(network)
    options = {"lr": LEARNING_RATE, "betas": (BETA_1, BETA_2), "fused": True}
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


if __name__ == "__main__":
    contender, network_name = sys.argv[1:]
    matrix = torch.randn(1024, 1024)
    serve(trainer(network_name, contender == "torch-compiled"), lambda: (matrix @ matrix)[0, 0].item())
