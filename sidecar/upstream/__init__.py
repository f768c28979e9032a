"""The config service behind us: how it is asked, and how it is guarded."""
