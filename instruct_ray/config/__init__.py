"""Every option of the config file, and how the file is read."""
