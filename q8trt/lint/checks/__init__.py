"""The linter's checks, by subject. Each compares one `Context` with some of the rules and reports findings."""

__all__: list[str] = []
