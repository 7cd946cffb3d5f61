"""What a command does, without the command line: capture, fit, check, reply."""
