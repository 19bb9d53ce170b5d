"""What is in memory, and which code put it there: snapshots, and what their events tell."""
