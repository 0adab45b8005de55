"""Losses are read in order; on a CUDA device one step late."""

from __future__ import annotations

import math

import torch

from medseg.train.step_losses import StepLosses


def test_the_processor_reads_each_loss_in_its_step():
    losses = StepLosses(torch.device("cpu"))
    losses.add(1, torch.tensor(0.5))
    assert list(losses.read()) == [(1, 0.5)]
    assert list(losses.read(everything=True)) == []


def test_a_device_keeps_the_newest_loss_until_everything_is_read():
    losses = StepLosses(torch.device("cuda"))
    read = []
    for step in range(1, 4):
        losses.add(step, torch.tensor(float(step), dtype=torch.float64))
        read.append(list(losses.read()))
    assert read == [[], [(1, 1.0)], [(2, 2.0)]]
    assert list(losses.read(everything=True)) == [(3, 3.0)]
    assert list(losses.read(everything=True)) == []
    losses.add(4, torch.tensor(math.nan))
    assert [math.isnan(loss) for _, loss in losses.read(everything=True)] == [True]
