"""Knowledge distillation with torch alone: a wide teacher, a narrow student, one plain loop."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
T = 4.0  # temperature


def points(n):
    x = torch.rand(n, 2) * 6 - 3
    return x, (x.sin().prod(1) > 0).long() + 2 * (x.norm(dim=1) > 2).long()  # four classes


def network(width):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 4))


def fit(net, loss_of):
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    for _ in range(400):
        x, y = points(256)
        optimizer.zero_grad()
        loss_of(net(x), x, y).backward()
        optimizer.step()


def distance(logits, x, y):
    target = (teacher(x).detach() / T).softmax(1)
    return T**2 * F.kl_div((logits / T).log_softmax(1), target, reduction="batchmean")


teacher, student = network(128), network(12)
fit(teacher, lambda logits, x, y: F.cross_entropy(logits, y))
fit(student, distance)
x, y = points(5000)
right = [(net(x).argmax(1) == y).float().mean().item() for net in (teacher, student)]
print(f"accuracy: teacher {right[0]:.3f}, student {right[1]:.3f}")
