from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg.errors import ConfigError
from medseg.models import parse_options
from medseg.models.backbones.vit import Attention, ViT, ViTPyramid
from medseg.models.backbones.vit_adapter import Injector, ViTAdapter, to_maps, to_tokens
from medseg.models.layers.deformable_attention import DeformableAttention, centres
from tests.helpers.networks import toy_options


def config(**options):
    name = "mask_rcnn_vit_adapter_tiny_fpn"
    return parse_options(name, toy_options(name) | options)


@torch.no_grad()
def test_blocks_equal_timm():
    """Six blocks of timm's, by its own names; those in windows are given windows that hold the whole grid."""
    timm = pytest.importorskip("timm.models.vision_transformer")
    theirs = timm.VisionTransformer(
        img_size=32, embed_dim=24, depth=4, num_heads=2, class_token=False, num_classes=0, global_pool=""
    )
    torch.nn.init.normal_(theirs.pos_embed)
    ours = ViT(config(attention_window=2), 3).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("norm.")}
    ours.load_state_dict(state)
    image = torch.randn(2, 3, 32, 32)
    tokens = ours.embed(image)
    for block in ours.blocks:
        tokens = block(tokens)
    wanted = theirs.eval().patch_embed(image) + theirs.pos_embed
    wanted = theirs.blocks(wanted)
    assert (tokens.flatten(1, 2) - wanted).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 3)])
def test_windowed_attention_stays_in_its_window(size):
    """Each window of the grid, cut out and attended to as a whole, gives the same; cells beyond it are unseen."""
    windowed = Attention(8, 2, 3)
    whole = Attention(8, 2, None)
    whole.load_state_dict(windowed.state_dict())
    x = torch.randn(2, *size, 8)
    out = windowed(x)
    assert out.shape == x.shape
    for i in range(0, size[0], 3):
        for j in range(0, size[1], 3):
            part = x[:, i : i + 3, j : j + 3]
            assert (out[:, i : i + 3, j : j + 3] - whole(part)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 3)])
def test_without_a_mask_windows_are_completed_by_zero_keys_and_values(size):
    """Cells beyond the grid take a share of the attention of exp(0), and contribute nothing."""
    layer = Attention(8, 2, 3, masked=False)
    x = torch.randn(2, *size, 8)
    q, k, v = layer.qkv(x).view(2, *size, 3, 2, 4).unbind(3)
    out = layer(x)
    for i in range(size[0]):
        for j in range(size[1]):
            window = (slice(None), slice(i - i % 3, i - i % 3 + 3), slice(j - j % 3, j - j % 3 + 3))
            keys, values = k[window].flatten(1, 2), v[window].flatten(1, 2)
            scores = (torch.einsum("nhc,nthc->nht", q[:, i, j], keys) / 2).exp()
            total = scores.sum(dim=-1) + 9 - keys.shape[1]
            wanted = torch.einsum("nht,nthc->nhc", scores / total[..., None], values).flatten(1)
            assert (out[:, i, j] - layer.proj(wanted)).abs().max() < 1e-5


def test_last_block_of_each_group_attends_globally():
    tiny = ViT(parse_options("mask_rcnn_vit_tiny_fpn", {"width": 12, "pretrain_size": 32}), 1)
    assert [block.attn.window for block in tiny.blocks] == [14, 14, None] * 4
    large = ViT(parse_options("mask_rcnn_vit_large_fpn", {"width": 32, "pretrain_size": 32}), 1)
    assert [block.attn.window for block in large.blocks] == [14, 14, 14, 14, 14, None] * 4
    assert large.blocks[-1].drop_path.p == pytest.approx(0.4)
    assert large.blocks[0].drop_path.p == 0


@torch.no_grad()
def test_position_embedding_is_interpolated_to_the_grid():
    vit = ViT(config(pretrain_size=64), 2)
    vit.patch_embed.proj.weight.zero_()
    vit.pos_embed.copy_(torch.arange(16.0).view(1, 16, 1).expand(1, 16, 24))
    assert torch.equal(vit.embed(torch.zeros(1, 2, 64, 64))[0, :, :, 0], torch.arange(16.0).view(4, 4))
    wide = vit.embed(torch.zeros(1, 2, 64, 128))[0, :, :, 0]
    assert wide.shape == (4, 8)
    assert (wide.diff(dim=0) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", [ViTPyramid, ViTAdapter])
def test_adapter_returns_four_maps_of_stride_4_to_32(kind):
    maps = kind(config(), 2)(torch.randn(1, 2, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 16, 24), (24, 8, 12), (24, 4, 6), (24, 2, 3)]


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_deformable_attention_equals_transformers(ratio):
    from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

    torch.manual_seed(0)
    shapes = [(4, 6), (2, 3)]
    attention = DeformableAttention(16, heads=2, levels=2, points=3, ratio=ratio)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    query, places = torch.randn(2, 5, 16), torch.rand(5, 2)
    features = torch.randn(2, 30, 16)
    values = attention.value_proj(features).view(2, 30, 2, -1)
    offsets = attention.sampling_offsets(query).view(2, 5, 2, 2, 3, 2)
    weights = attention.attention_weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
    sizes = torch.tensor(shapes)[None, None, None, :, None]
    where = (places[None, :, None, None, None] + offsets / sizes).flip(-1)
    wanted = multi_scale_deformable_attention(values, shapes, where, weights)
    found = attention(query, places, features, shapes)
    assert (found - attention.output_proj(wanted)).abs().max() < 1e-5


@torch.no_grad()
def test_deformable_attention_samples_at_its_offsets():
    """With offsets of whole cells it reads those cells: the first axis is the first number."""
    attention = DeformableAttention(2, heads=1, levels=1, points=1)
    for layer in (attention.value_proj, attention.output_proj):
        layer.weight.copy_(torch.eye(2))
    grid = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij"), dim=-1)
    places = centres([(4, 5)], grid)
    assert places.shape == (20, 2)
    for offset in ([0.0, 0.0], [1.0, 0.0], [0.0, 2.0]):
        attention.sampling_offsets.bias.copy_(torch.tensor(offset))
        seen = attention(torch.zeros(1, 20, 2), places, grid.view(1, 20, 2), [(4, 5)]).view(4, 5, 2)
        inside = seen[: 4 - int(offset[0]), : 5 - int(offset[1])]
        assert (inside - grid[int(offset[0]) :, int(offset[1]) :]).abs().max() < 1e-4


def test_initial_offsets_point_in_all_directions():
    attention = DeformableAttention(16, heads=4, levels=2, points=2)
    offsets = attention.sampling_offsets.bias.detach().view(4, 2, 2, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    assert torch.equal(offsets[:, :, 1], 2 * offsets[:, :, 0])
    ahead = offsets[:, 0, 0].round().int().tolist()
    assert sorted(ahead) == [[-1, 0], [0, -1], [0, 1], [1, 0]]


@torch.no_grad()
def test_injector_starts_as_identity_and_adapter_depends_on_the_prior():
    torch.manual_seed(0)
    injector = Injector(config())
    tokens, prior, shapes = torch.randn(1, 2, 3, 24), torch.randn(1, 31, 24), [(4, 6), (2, 3), (1, 1)]
    assert torch.equal(injector(tokens, prior, shapes), tokens)
    injector.gamma.fill_(1.0)
    assert not torch.equal(injector(tokens, prior, shapes), tokens)


def test_every_adapter_parameter_gets_a_gradient():
    torch.manual_seed(0)
    adapter = ViTAdapter(config(drop_path=0.0), 2)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    sum(x.square().sum() for x in adapter(torch.randn(2, 2, 64, 64))).backward()
    silent = [name for name, p in adapter.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert silent == []


def test_tokens_and_maps_convert_both_ways():
    maps = [torch.randn(2, 3, 4, 6), torch.randn(2, 3, 2, 3)]
    for x, y in zip(to_maps(to_tokens(maps), [(4, 6), (2, 3)]), maps, strict=True):
        assert torch.equal(x, y)


@torch.no_grad()
def test_map_at_stride_16_contains_the_transformer_tokens():
    """With everything else silent, the adapter's maps are the plain transformer, resized."""
    adapter = ViTAdapter(config(), 2).eval()
    for part in (adapter.prior.projections, adapter.extractors, adapter.up):
        for parameter in part.parameters():
            parameter.zero_()
    adapter.level_embed.zero_()
    image = torch.randn(1, 2, 64, 64)
    tokens = adapter.vit.embed(image)
    for block in adapter.vit.blocks:
        tokens = block(tokens)
    plain = tokens.permute(0, 3, 1, 2) / (1 + adapter.norms[2].eps) ** 0.5
    maps = adapter(image)
    assert (maps[2] - plain).abs().max() < 1e-4
    resized = F.interpolate(plain, scale_factor=4, mode="bilinear", align_corners=False)
    assert (maps[0] - resized).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 6}, "depth 6 is not a multiple of 4"),
        ({"attention_heads": 5}, "width 24 is not a multiple of attention_heads 5"),
        ({"deform_heads": 5}, "not a multiple of deform_heads 5"),
        ({"pretrain_size": 100}, "multiple of 16"),
    ],
)
def test_invalid_options_raise(options, words):
    with pytest.raises(ConfigError, match=words):
        config(**options)
