"""From the grid of a file to the grid of the network, computed slice by slice where possible."""
