"""The sliding-window engine: windows, rolling slabs, memory planning and export to the file grid."""
