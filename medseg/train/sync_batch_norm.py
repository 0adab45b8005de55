"""Batch norm over the images of all processes, equal to that of one process with the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from medseg.runtime.distributed import sum_over_ranks


class CpuSyncBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all processes together in training.

    `torch.nn.SyncBatchNorm` does the same on CUDA devices only. Parameters and buffers have the names of batch norm.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Normalise an image `(n, c, *spatial)`; either all processes must be in training mode, or none."""
        if not self.training:
            found: Tensor = super().forward(image)
            return found
        axes = [axis for axis in range(image.dim()) if axis != 1]
        values = image.to(torch.promote_types(image.dtype, torch.float32))
        count = values.new_tensor([values.numel() / values.shape[1]])
        total, *_ = sums = sum_over_ranks(torch.cat([count, values.sum(axes)]))
        shape = (1, -1, *(1,) * (image.dim() - 2))
        centred = values - (sums[1:] / total).view(shape)
        variance = sum_over_ranks(centred.square().sum(axes)) / total
        self._remember(sums[1:] / total, variance * total / (total - 1).clamp(min=1))
        scaled: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(image.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes."""


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return a copy of running means and variances, which training passes change; an empty list if there are none."""
    return [buffer.clone() for buffer in _statistics(model)]


@torch.no_grad()
def restore_running_statistics(statistics: list[Tensor], model: nn.Module, skipped: Tensor) -> None:
    """Restore the `running_statistics` of a model from before a pass if `skipped`, a flag `()` on the device, is true."""
    for buffer, before in zip(_statistics(model), statistics, strict=True):
        buffer.copy_(torch.where(skipped, before, buffer))


def _statistics(model: nn.Module) -> list[Tensor]:
    norms = (module for module in model.modules() if isinstance(module, _NormBase))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def synchronise_batch_norms(model: nn.Module) -> None:
    """Replace the batch norms inside `model` by synchronised ones; on CUDA devices, by those of torch."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(model, name, _shared(child))
        else:
            synchronise_batch_norms(child)


def _shared(norm: _BatchNorm) -> nn.Module:
    """Return a synchronised norm that shares the parameters and buffers of `norm`."""
    track = norm.track_running_stats
    kind = nn.SyncBatchNorm if torch.cuda.is_available() else CpuSyncBatchNorm
    shared = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, track)
    shared.weight, shared.bias = norm.weight, norm.bias
    shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
    shared.num_batches_tracked = norm.num_batches_tracked
    shared.train(norm.training)
    return shared
