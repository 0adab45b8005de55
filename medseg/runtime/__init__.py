"""The machine that medseg runs on: devices, processes, memory and text for people."""
