"""Serving: an engine that batches by stage, a server for HTTP, and the same on a Ray cluster."""
