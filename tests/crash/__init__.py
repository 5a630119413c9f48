"""The crash matrix: a process killed at every failpoint, and what its database and the log say then."""
