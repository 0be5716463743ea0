"""Shared foundations of all packages: errors, atomic files, configuration, processes, devices."""
