"""What lies in `dead-letters`: the letters, what was done with them, and doing something with them."""
