"""Reports of finished runs: one self-contained HTML file, or tables in Markdown, LaTeX, JSON."""
