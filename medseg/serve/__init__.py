"""``medseg serve``: predict uploaded images in the order of their arrival, with a web page and an HTTP API."""
