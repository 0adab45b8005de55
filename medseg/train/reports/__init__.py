"""Reports of a training: figures, files, and the loggers of other packages."""
