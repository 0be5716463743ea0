"""What every room stands on: errors, files, configuration, processes, devices."""
