"""The interactive viewer: one HTML page that holds the volumes and needs no network."""
