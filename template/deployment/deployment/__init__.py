"""Deploys the project to Google Cloud."""
