"""Readers of the published files of the tasks; a form of files is a module."""
