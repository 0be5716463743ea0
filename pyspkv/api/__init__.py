"""The public face: load, embed, verify, cluster, enrol, hand over."""
