"""Readers and writers: one module a format, one `open_stack`, one `save`."""
