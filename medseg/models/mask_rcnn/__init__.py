"""Mask R-CNN on ResNet, ResNeXt, ViT and ViT-Adapter backbones."""
