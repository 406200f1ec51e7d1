"""SeqKD covers a mixture, GAD commits to one part: ten classes, a Gaussian student, exact KLs."""

import torch

from stillroom.losses.policy import bradley_terry, clipped_surrogate, group_advantage

CLASSES = torch.arange(10, dtype=torch.float64)
MIXTURE = sum(w * torch.exp(-(((CLASSES - m) / 0.55) ** 2) / 2) for w, m in ((0.65, 2), (0.35, 7)))
TEACHER = (MIXTURE / MIXTURE.sum() + 1e-4) / (1 + 10 * 1e-4)


def student(mean, log_width):
    return torch.log_softmax(-(((CLASSES - mean) / log_width.exp()) ** 2) / 2, 0)


def seqkd(log_q, critic):
    return -(TEACHER * log_q).sum()


def gad(log_q, critic, prompts=16, n=8):  # two losses in one: neither has the other's parameters
    theirs = TEACHER.multinomial(prompts, replacement=True).repeat_interleave(n)
    own = log_q.exp().multinomial(prompts * n, replacement=True)
    advantage = group_advantage(critic[own].detach(), n)
    policy = clipped_surrogate(log_q[own], log_q[own].detach(), advantage, 0.2)
    return (bradley_terry(critic[theirs], critic[own]) + policy).mean()


print("              mean       width  reverse KL  forward KL")
for name, loss, rate in (("SeqKD", seqkd, 0.03), ("GAD", gad, 0.006)):
    torch.manual_seed(0)
    gauss = torch.tensor([3.0, 0.0], dtype=torch.float64, requires_grad=True)  # narrow, off both
    critic = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": gauss, "lr": rate}, {"params": critic, "lr": 0.05}])
    for _ in range(700):
        optimizer.zero_grad()
        loss(student(*gauss), critic).backward()
        optimizer.step()
    gap = student(*gauss).detach() - TEACHER.log()
    row = (gauss[0], gauss[1].exp(), (TEACHER * gap.exp()) @ gap, -TEACHER @ gap)
    print(f"{name:5}", *(f"{value:11.2f}" for value in row))
