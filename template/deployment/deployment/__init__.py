"""Brings the project to Google Cloud."""
