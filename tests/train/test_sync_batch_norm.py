"""Batch norm over several processes."""

from __future__ import annotations

import torch
from torch import nn

from medseg.train.sync_batch_norm import CpuSyncBatchNorm, synchronise_batch_norms


def test_with_one_process_it_equals_batch_norm(monkeypatch):
    monkeypatch.setattr("torch.distributed.nn.functional.all_reduce", lambda tensor: tensor)
    own = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.BatchNorm3d(3, momentum=None))
    nn.init.uniform_(own[1].weight)
    other = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.BatchNorm3d(3, momentum=None))
    other.load_state_dict(own.state_dict())
    own, other = own.double(), other.double()  # because gradients in front of a norm are sums that cancel
    synchronise_batch_norms(other)
    assert [type(layer) for layer in other] == [nn.Conv3d, CpuSyncBatchNorm, CpuSyncBatchNorm]
    assert other.state_dict().keys() == own.state_dict().keys()
    for seed in range(2):
        image = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).double() * 5 + 2
        gradients = []
        for model in (own, other):
            model.zero_grad()
            model(image).square().mul(image[:, :1]).sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    for name, buffer in own.named_buffers():
        torch.testing.assert_close(dict(other.named_buffers())[name], buffer)
    own.eval(), other.eval()
    torch.testing.assert_close(own(image), other(image))
