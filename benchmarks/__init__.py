"""What edgetl claims about speed and memory, measured: `python -m benchmarks` appends rows, `tables` shows them."""
