"""The source that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from regimen.data.settings import DatasetSettings
from regimen.data.sources.records import Source


def open_source(settings: DatasetSettings, root: Path) -> Source:
    """The source of `settings`; digests of files are remembered under `root`."""
    if settings.source == "local":
        from regimen.data.sources.local import LocalSource

        return LocalSource(settings)
    if settings.source == "local_sft":
        from regimen.data.sources.local_sft import LocalSftSource

        return LocalSftSource(settings)
    if settings.source == "hub":
        from regimen.data.sources.hub import HubSource

        return HubSource(settings)
    from regimen.data.sources.files import FileSource

    return FileSource(settings, root)
