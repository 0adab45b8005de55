"""The meaning of label values: label tables, label sets of partial annotations, components and instances."""
