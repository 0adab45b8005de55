"""From files to training patches: cases, layouts, splits, phantoms and preprocessing."""
