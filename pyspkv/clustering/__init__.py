"""From embeddings to pseudo-speakers: one round of labels."""
