"""Settings that all tests share."""

import torch
from hypothesis import settings

# Tiny tensors drown in the hand-over between threads, and one thread gives the same bits always.
torch.set_num_threads(1)

settings.register_profile("stillroom", deadline=None, max_examples=20)
settings.load_profile("stillroom")
