"""From rows of a data directory to batches: samplers, crops, augmentation."""
