"""The commands behind `cypria`: processes, the control API from a shell, the load generator."""
