"""Attacks on an unlearned model, what they brought out, and a page of evidence."""
