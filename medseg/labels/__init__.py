"""The meaning of label values: label tables, label sets of partial annotations, and instances."""
