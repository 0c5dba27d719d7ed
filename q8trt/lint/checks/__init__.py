"""The linter's checks, by subject: each compares one `Context` to some of the rules and reports findings."""

__all__: list[str] = []
