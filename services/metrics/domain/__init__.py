"""Pure decisions of the metrics service: no I/O, no clock."""
