"""The production checklist as a program: a row for each item and hazard, with what to change."""
