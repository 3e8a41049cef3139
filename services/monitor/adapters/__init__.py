"""One file for each outside thing that the monitor service talks to."""
