"""The machine that medseg runs on: devices, processes, memory, progress and text formatting."""
