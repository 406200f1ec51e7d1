"""What several networks share is kept once: in memory by snapshots, on disk by checkpoints."""

import torch
from worlds import EOS, PAD, gap

from stillroom.engine import checkpoint
from stillroom.models import text


def lm():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "tie_word_embeddings": True}
    return text.build("llama", 11, EOS, PAD, **sizes)


def bytes_of(networks):
    tensors = [p for network in networks for p in network.parameters()]
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in tensors}.values())


def test_a_snapshot_shares_what_is_frozen_and_nothing_that_learns():
    model = lm()
    table = model.model.get_input_embeddings().weight.requires_grad_(False)
    frozen = model.snapshot()
    assert frozen.model.get_input_embeddings().weight is table
    assert frozen.model.get_output_embeddings().weight is table
    learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in learns.items()}
    with torch.no_grad():
        for p in learns.values():
            p.add_(1)
    kept = dict(frozen.named_parameters())
    assert all(torch.equal(kept[n], before[n]) for n in learns)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training
    assert bytes_of([model, frozen]) == 2 * bytes_of([model]) - table.numel() * 4


def test_a_checkpoint_holds_what_is_shared_once_and_gives_it_back_everywhere(tmp_path):
    model = lm()
    model.model.get_input_embeddings().requires_grad_(False)
    networks = {"student": model, "start": model.snapshot()}
    state = {name: network.state_dict() for name, network in networks.items()}
    state |= {"none": [torch.zeros(0), torch.zeros(0, 3)]}
    state["parts"] = (part := torch.arange(6.0).view(2, 3), part.T, part[0])
    place = checkpoint.save(tmp_path, 1, state, keep=1)
    size = (place / "tensors.safetensors").stat().st_size
    assert bytes_of(networks.values()) < size < bytes_of(networks.values()) + 8192
    assert gap(checkpoint.load(place), {**state, "parts": list(state["parts"])}) == 0
