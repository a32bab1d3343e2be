"""Train jobs: their table, the frame of a process that works on one, and who starts it. No torch."""
