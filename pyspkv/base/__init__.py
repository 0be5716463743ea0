"""What all other packages use: errors, files, configuration, processes, devices."""
