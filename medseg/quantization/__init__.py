"""Networks with 8-bit integers: calibrated on training cases, measured on held-out ones, stored in the model folder."""
