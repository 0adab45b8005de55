"""What holds for every name in the catalog, at toy size."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from medseg.data.slices2d.slice_view import SliceView
from medseg.errors import ModelError
from medseg.models import MODELS, SliceWise, list_models, parse_options, summarize
from tests.helpers.networks import cross_entropy, toy_options

pytestmark = pytest.mark.slow


def distinct_at_toy_size():
    """All names but those that differ from another in sizes alone, such as ResNet-50 from ResNet-101."""
    kinds = {}
    for name in list_models():
        options = parse_options(name, toy_options(name))
        kinds.setdefault((type(options), MODELS.get(name).dims, options.to_yaml()), name)
    return sorted(kinds.values())


NAMES = distinct_at_toy_size()
FLAT = [name for name in NAMES if MODELS.get(name).dims == 2]
DETECTORS = [name for name in NAMES if name.startswith("mask")]


def example(dims, *, channels=2, n=2):
    """Images with objects of two classes in the first, and none in the others."""
    size = (45, 38, 9)[:dims]
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(n, channels, *size, generator=generator)
    label = torch.zeros(n, 1, *size, dtype=torch.long)
    label[0, 0, 5:25, 8:30] = 1
    label[0, 0, 30:40, 3:12] = 2
    return image, label


@pytest.mark.parametrize("name", NAMES)
def test_logits_losses_gradients_and_saving_work(name, toy):
    model = toy(name)
    model.criterion = cross_entropy
    image, label = example(model.spatial_dims)
    losses = model.losses(image, label)
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    with torch.no_grad():
        logits = model.eval()(image)
        assert logits.shape == (2, 3, *image.shape[2:])
        assert logits.isfinite().all()
        # Through safetensors, which refuses weights that share memory.
        state = load(save({key: value.contiguous() for key, value in model.state_dict().items()}))
        other = toy(name, seed=1).eval()
        other.load_state_dict(state)
        assert torch.equal(other(image), logits)


# The models on one map of a ResNet have the heads of those with a pyramid, and take long.
@pytest.mark.parametrize("name", [name for name in FLAT if not name.endswith(("c4", "dc5"))])
def test_volume_is_predicted_slice_by_slice(name, toy):
    model = SliceWise(toy(name).eval(), SliceView(axis=1), batch_size=2)
    volume = torch.randn(1, 2, 34, 3, 33)
    with torch.no_grad():
        logits = model(volume)
        assert logits.shape == (1, 3, 34, 3, 33)
        assert (logits[:, :, :, 2] - model.model(volume[:, :, :, 2])).abs().max() < 1e-4


# An adapter with a pyramid consists of the parts of an adapter without one and of a transformer with one.
@pytest.mark.parametrize(
    "name", [n for n in NAMES if "unet" not in n and n != "mask_rcnn_vit_adapter_base_fpn"]
)
def test_summary_needs_no_memory(name, toy):
    model = toy(name)
    shape = (2, *(320, 256, 32)[: model.spatial_dims])
    summary = summarize(model, shape)
    assert summary.output_shape == (3, *shape[1:])
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.parameters == sum(part.parameters for part in summary.parts)
    # What a model multiplies outside of its parts, such as the sum over queries, is in the total alone.
    assert 0 < sum(part.multiply_adds for part in summary.parts) <= summary.multiply_adds


@pytest.mark.parametrize("name", [name for name in DETECTORS if not name.endswith("dc5")])
def test_instance_models_return_valid_instances(name, toy):
    options = {"score_threshold": 0.0, "mask_threshold": 0.1}
    model = toy(name, **options)
    image, label = example(2)
    nothing = model.losses(image[1:].repeat(2, 1, 1, 1), torch.zeros_like(label))
    assert all(torch.isfinite(loss) for loss in nothing.values())
    with torch.no_grad():
        if "former" in name:  # fresh queries agree in the class; let it not be the background
            model.network.class_predictor.bias[0] = -9
        probabilities = model.eval()(image).exp()
        assert (probabilities.sum(dim=1) - 1).abs().max() < 1e-5
        for one in model.instances(image):
            assert len(one.scores) == len(one.classes) == len(one.boxes) == len(one.masks) == len(one)
            assert len(one) > 0
            assert one.masks.dtype == torch.bool
            assert one.masks.shape[1:] == image.shape[2:]
            assert ((one.classes > 0) & (one.classes < 3)).all()
            assert (one.scores.diff() <= 0).all()
            assert (one.boxes[:, :2] >= 0).all()
            assert (one.boxes[:, 2:] <= torch.tensor(image.shape[2:])).all()
            assert (one.boxes[:, :2] < one.boxes[:, 2:]).all()


@pytest.mark.parametrize(
    "name", [name for name in DETECTORS if name.endswith(("101_fpn", "former_resnet_101"))]
)
def test_instance_map_defines_the_targets(name, toy):
    """Two touching objects of one class are one component, but two instances."""
    model = toy(name).eval()
    image, label = example(2, n=1)
    one, two = (label == 1).long(), (label == 1).long()
    two[..., 19:] *= 7

    def total(instances):
        torch.manual_seed(3)
        return sum(model.losses(image, label, instances).values()).item()

    second = 9 * (label == 2)
    assert total(one + second) == pytest.approx(total(None), rel=1e-5)
    assert abs(total(two + second) - total(None)) > 1e-4
    with pytest.raises(ModelError, match="instance map shape: found \\(1, 45, 38\\)"):
        model.losses(image, label, one[0])


@pytest.mark.parametrize("name", DETECTORS[:1] + DETECTORS[-1:])
def test_label_beyond_the_classes_raises(name, toy):
    image, label = example(2)
    with pytest.raises(ModelError, match="label values: found 0 to 3, expected 0 to 2"):
        toy(name).losses(image, label + (label == 2))


@pytest.mark.parametrize("name", ["fcn_resnet_50", "mask_rcnn_resnet_50_fpn", "maskformer_resnet_18"])
def test_batch_norm_of_one_value_raises(name, toy):
    image, label = torch.zeros(1, 2, 7, 8), torch.zeros(1, 1, 7, 8, dtype=torch.long)
    model = toy(name)
    model.criterion = cross_entropy
    with pytest.raises(ModelError, match=r"single value .* found \(7, 8\)"):
        model.losses(image, label)
    assert model.eval()(image).shape == (1, 3, 7, 8)


def test_slicewise_model_passes_instances_on(toy):
    model = SliceWise(toy("mask_rcnn_resnet_50_fpn"), batch_size=1)
    image, label = example(3, n=1)
    assert set(model.losses(image, label, label)) == {
        "objectness",
        "rpn_box_reg",
        "classifier",
        "box_reg",
        "mask",
    }
    with pytest.raises(ModelError, match="instance map shape"):
        model.losses(image, label, label[..., :5, :])


LEARNERS = {
    "mask_rcnn_vit_tiny_fpn": (
        40,
        {"width": 48, "drop_path": 0.0, "feature_channels": 32, "sampled_proposals_per_image": 64},
    ),
    "maskformer_resnet_18": (60, {"dropout": 0.0, "auxiliary_losses": False}),
    "mask2former_resnet_18": (25, {"num_points": 256}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_few_steps_learn_a_square(name, toy):
    steps, options = LEARNERS[name]
    if name.startswith("mask_rcnn"):
        options = options | {
            "box_head_width": 64,
            "mask_head_widths": [16, 16],
            "sampled_anchors_per_image": 64,
        }
    model = toy(name, in_channels=1, num_classes=2, **options)
    image = 0.1 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 1, 64, 64, dtype=torch.long)
    for i, (x, y) in enumerate([(8, 14), (36, 30)]):
        label[i, 0, x : x + 20, y : y + 20] = 1
    image += label
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model.losses(image, label).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(image).argmax(dim=1, keepdim=True)
        first = model.instances(image)[0]
    overlap = ((found == 1) & (label == 1)).sum() / ((found == 1) | (label == 1)).sum()
    assert overlap > 0.6
    assert first.scores[0] > 0.5
    assert (first.boxes[0] - torch.tensor([8.0, 14.0, 28.0, 34.0])).abs().max() < 5
    (inside,) = first.masks[:1]
    assert (inside & (label[0, 0] == 1)).sum() / (inside | (label[0, 0] == 1)).sum() > 0.6
