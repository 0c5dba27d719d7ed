"""The tasks: the GLUE table, metrics, and the data they are trained and scored on."""
