"""U-Net, residual U-Net and Attention U-Net."""
