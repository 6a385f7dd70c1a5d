"""The crash matrix: every mutating call, with a process killed at each point where something outside crispd changes."""
