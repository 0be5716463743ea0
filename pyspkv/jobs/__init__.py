"""Running commands as jobs of a cluster."""
