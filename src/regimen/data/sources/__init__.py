"""Where text comes from. Each source yields records; `open_source` picks one by the settings."""
