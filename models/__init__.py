"""The embedded backbone's scripts and card; bundles made here are ignored by git."""
