"""Where cases come from: dataset layouts, case tables, splits and phantoms."""
