"""What several test files use: tiny models and records, tasks, servers, oracles."""
