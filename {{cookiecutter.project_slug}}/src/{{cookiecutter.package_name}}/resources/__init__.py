"""One file per resource or resource template."""
