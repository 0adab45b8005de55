"""The ``medseg`` command: one file a verb, each thin over the API."""
