"""Records (text) and examples (tokens and labels): the first two rooms of the flow."""
