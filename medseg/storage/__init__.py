"""Files that are either complete or absent: atomic writes, manifests, tables, archives and locks."""
