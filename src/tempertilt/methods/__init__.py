"""Unlearning methods: one file each, registered by one decorator with its name, its paper and its configuration."""
