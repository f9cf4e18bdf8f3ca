"""From files to samples to batches. Nothing here knows a model."""
