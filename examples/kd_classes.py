"""Distil a three-layer CNN into a small one: modules and a DataLoader of one's own."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import stillroom as sr

torch.manual_seed(0)


def images(n):  # bars under noise in four orientations
    y = torch.randint(4, (n,))
    bars = torch.zeros(4, 12, 12)
    bars[0, 5:7], bars[1, :, 5:7] = 1, 1
    bars[2], bars[3] = torch.eye(12), torch.eye(12).flip(1)
    return TensorDataset(bars[y, None] + 0.9 * torch.randn(n, 1, 12, 12), y)


def cnn(*widths):
    pairs = zip((1, *widths), widths, strict=False)
    convs = [m for a, b in pairs for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    head = nn.Linear(9 * widths[-1], 4)
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(3), nn.Flatten(), head)


loader, teacher = DataLoader(images(2000), batch_size=64, shuffle=True), cnn(16, 16, 16)
optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
for x, y in loader:
    optimizer.zero_grad()
    F.cross_entropy(teacher(x), y).backward()
    optimizer.step()

done = sr.distill(
    {"name": "kd", "temperature": 4.0}, student=cnn(4), teacher=teacher, steps=100,
    data={"train": loader, "test": images(500)}, train={"lr": 0.01, "batch": 64},
    eval={"metrics": ["accuracy"], "every": None},
)  # fmt: skip
print(*(f"{row['name']}: {row['values']['accuracy']:.3f}" for row in done.table), sep="\n")
