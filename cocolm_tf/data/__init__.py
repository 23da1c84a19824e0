"""From a corpus to the batches of pretraining: sources, packing, shards, manifest, pipeline."""
