"""Foreign formats: one file = one format, each with `DESCRIPTION` and `convert(path, **options) -> list[Sample]`."""
