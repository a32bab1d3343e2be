"""What a comparison comes to, and the table of those that wait, are drawn or have ended."""
