"""Typer commands: parse, call one function, print. The only place that prints."""
