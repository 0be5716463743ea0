"""The public interface: load, embed, verify, cluster, enrol, export."""
