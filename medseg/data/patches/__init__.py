"""Training samples: stored cases, patch sampling and augmentation."""
