"""What is minimised, and the gates that say which labels count."""
