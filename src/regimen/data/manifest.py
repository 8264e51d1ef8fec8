"""Names and version of what a pool folder holds."""

FORMAT = 1  # raise it when the same settings would give other rows
MANIFEST = "manifest.json"
