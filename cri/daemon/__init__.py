"""crispd: its configuration, directories, log, metrics, traces, and main program."""
