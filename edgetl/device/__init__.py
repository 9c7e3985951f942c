"""The device side: probe, build, prove, measure and run on the board, with numpy and Pillow alone. Python 3.8."""
