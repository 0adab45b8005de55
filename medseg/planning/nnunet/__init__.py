"""The planning rules of nnU-Net, with results equal to those of the original."""
