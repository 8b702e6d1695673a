"""Training augmentation as pure, jitted functions that run on the accelerator."""
