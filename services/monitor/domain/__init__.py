"""Pure decisions of the monitor service: no I/O, no clock."""
