from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.models.layers.convs import PointwiseConv3d, conv_nd
from medseg.models.layers.memory_format import channels_last_format, is_channels_last, match_model_format
from medseg.models.layers.norms import GroupNorm, InstanceNorm, LayerNorm, channel_statistics, num_groups

SIZES = {2: (6, 5), 3: (4, 6, 5)}


def sample(dims: int, n: int, last: bool) -> torch.Tensor:
    x = torch.randn(n, 6, *SIZES[dims], generator=torch.Generator().manual_seed(0)) * 3 + 5
    return x.contiguous(memory_format=channels_last_format(dims)) if last else x


def instance(dims: int) -> tuple[nn.Module, nn.Module]:
    return (nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d)(6, affine=True), InstanceNorm(6)


def group(dims: int) -> tuple[nn.Module, nn.Module]:
    ours = GroupNorm(6)
    ours.num_groups = 3
    return nn.GroupNorm(3, 6), ours


@pytest.mark.parametrize("make", [instance, group])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_outputs_and_gradients_equal_torch(dims, n, last, make):
    theirs, ours = make(dims)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x = sample(dims, n, last).requires_grad_()
    y = x.detach().contiguous().requires_grad_()
    found, wanted = ours(x), theirs(y)
    assert (found - wanted).abs().max() < 1e-5
    assert is_channels_last(found) == last
    weight = torch.randn(found.shape)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert (x.grad - y.grad).abs().max() < 1e-5
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max() < 1e-4


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("size", [(3, 3, 3), (64, 64, 64)])
def test_statistics_are_exact_for_large_volumes_far_from_zero(size, offset):
    x = (torch.randn(1, 6, *size) + offset).to(memory_format=torch.channels_last_3d)
    mean, variance = channel_statistics(x)
    exact = x.double()
    assert (mean - exact.mean((0, 2, 3, 4))).abs().max() < 1e-6 * (1 + offset)
    assert (variance / exact.var((0, 2, 3, 4), correction=0) - 1).abs().max() < 2e-6
    assert (InstanceNorm(6)(x) - F.instance_norm(exact)).abs().max() < 1e-5 * (1 + offset / 10)
    assert (GroupNorm(6)(x) - F.group_norm(exact, 6)).abs().max() < 1e-5 * (1 + offset / 10)


@pytest.mark.parametrize("mean", [0.0, 2.9, 3.1, 1000.0])
@pytest.mark.parametrize("channels", [1, 70])
def test_statistics_are_exact_on_both_sides_of_the_limit_for_large_means(mean, channels):
    x = torch.randn(1, channels, 13, 17, 19, generator=torch.Generator().manual_seed(0))
    x[:, -1] += mean  # one channel decides for all
    x = x.to(memory_format=torch.channels_last_3d)
    found_mean, variance = channel_statistics(x)
    exact = x.double()
    assert (found_mean - exact.mean((0, 2, 3, 4))).abs().max() < 1e-6 * (1 + mean)
    assert (variance / exact.var((0, 2, 3, 4), correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_take_few_calls_whatever_the_size(dtype, offset):
    class Calls(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    x = (torch.randn(1, 32, 64, 64, 64) + offset).to(dtype).to(memory_format=torch.channels_last_3d)
    with Calls() as calls:
        channel_statistics(x)
    assert calls.count < 200  # 38 to 117; 781 with chunks that fit into the cache


@pytest.mark.parametrize("last", [False, True])
def test_instance_norm_is_the_same_in_evaluation(last):
    x, norm = sample(3, 2, last), InstanceNorm(6)
    assert torch.equal(norm(x), norm.eval()(x))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", [InstanceNorm, LayerNorm, GroupNorm])
@pytest.mark.parametrize("dims", [2, 3])
def test_bfloat16_input_with_float32_parameters_is_accepted(dims, norm, last):
    layer, x = norm(6), sample(dims, 2, last)
    out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert is_channels_last(out) == last
    assert (out.float() - layer(x)).abs().max() < 0.1
    out.float().pow(2).sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", [InstanceNorm, LayerNorm, GroupNorm])
def test_output_has_the_type_of_the_input(norm, dtype):
    x = sample(3, 2, last=True)
    layer = norm(6)
    wanted = layer(x)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert is_channels_last(out)
    assert (out - wanted).abs().max() < (0.1 if dtype == torch.bfloat16 else 1e-5)
    out.float().pow(2).sum().backward()
    assert layer.weight.grad.dtype == dtype


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_layer_norm_normalises_the_channels_of_each_voxel(dims, last):
    x = sample(dims, 2, last)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    found = LayerNorm(6)(x)
    assert (found - (x - mean) / (variance + 1e-6).sqrt()).abs().max() < 1e-5
    assert is_channels_last(found) == last


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (6, 6), (32, 32), (48, 24), (64, 32), (37, 1), (320, 32)]
)
def test_groups_are_the_largest_divisor_up_to_32(channels, groups):
    assert num_groups(channels) == groups


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("in_channels", [1, 5])
def test_point_convolution_equals_torch_in_every_memory_format(threads, in_channels):
    torch.set_num_threads(threads)
    conv = conv_nd(3, in_channels, 4)
    assert isinstance(conv, PointwiseConv3d)
    x = torch.randn(2, in_channels, 3, 4, 5)
    wanted = F.conv3d(x, conv.weight, conv.bias)
    assert (conv(x) - wanted).abs().max() < 1e-6
    last = conv(x.to(memory_format=torch.channels_last_3d))
    assert (last - wanted).abs().max() < 1e-6
    assert is_channels_last(last)


def test_images_get_the_memory_format_of_the_weights():
    x = torch.randn(2, 1, 4, 5)
    conv = nn.Conv2d(1, 3, 3)
    assert match_model_format(x, conv) is x
    conv.to(memory_format=torch.channels_last)
    turned = match_model_format(x, conv)
    assert is_channels_last(turned)
    assert torch.equal(turned, x)
    assert match_model_format(turned, conv) is turned
    assert match_model_format(x, nn.Conv2d(1, 3, 1)) is x
