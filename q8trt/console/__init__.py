"""The console: names and commands as they are printed, progress, and signals."""
