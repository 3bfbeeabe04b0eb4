"""Small requests: one person among others of the same name, employer and kind of facts, or two documents among five."""
