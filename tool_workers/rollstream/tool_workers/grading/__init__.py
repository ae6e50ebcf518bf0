"""What an episode was worth, found out where its code can do nothing about it."""
