"""From an entry of wav.scp to samples and features."""
