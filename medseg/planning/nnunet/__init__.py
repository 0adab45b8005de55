"""Planning rules that must agree with nnU-Net's."""
