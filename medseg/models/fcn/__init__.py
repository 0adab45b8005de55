"""Fully convolutional networks on a dilated ResNet."""
