"""Settings that all tests share."""

import numerics
import pytest
import torch
from hypothesis import settings

# Tiny tensors drown in the hand-over between threads, and one thread gives the same bits always.
torch.set_num_threads(1)

settings.register_profile("stillroom", deadline=None, max_examples=20)
settings.load_profile("stillroom")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-write",
        action="store_true",
        help="write tests/golden/*.json anew from this run (tests/contracts/test_golden.py)",
    )


def pytest_terminal_summary(config: pytest.Config) -> None:
    if config.option.markexpr == "numerics":
        numerics.show()
