"""The fingerprint of a dataset: measurements, findings and the page that shows them."""
