"""What a method is asked to do: losses (torch) and metrics (no torch)."""
