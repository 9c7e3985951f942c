"""What travels to a device, and what runs it there."""
